"""What steps cost on this device, and whether tokens are cheaper appended than sampled."""

from bisect import bisect_left
from collections.abc import Sequence

from jaxserve.batch import Bucket, Mode

_CAUTION = 2.0
_TRANSFER_S = 2e-4  # who waits longer for tokens waits for the device, not for the transfer


class StepTimes:
    """The shortest time seen of each bucket's size.

    The shortest, because a device does not get faster: all that is longer is somebody else's.

    Args:
        extend_tokens, decode_rows: the ladders of the buckets, ascending.
    """

    def __init__(self, extend_tokens: Sequence[int], decode_rows: Sequence[int]) -> None:
        self._ladders = {Mode.EXTEND: extend_tokens, Mode.DECODE: decode_rows}
        self._seconds: dict[tuple[Mode, int], float] = {}
        self._fetched_s = 0.0
        self._is_exact = False

    def finished(self, bucket: Bucket, launched_s: float, asked_s: float, fetched_s: float) -> None:
        """Tokens of a step were fetched; call it for every step, in order.

        Its time counts if both its ends are known: the device took it up when it was launched, or
        when the step before ended; and that was when its tokens arrived, if somebody waited.

        Args:
            launched_s: when it was launched.
            asked_s, fetched_s: when it was asked for its tokens, and when they were there.
        """
        is_first = launched_s >= self._fetched_s  # nothing else was on the device
        is_exact = fetched_s - asked_s > _TRANSFER_S
        if is_exact and (is_first or self._is_exact):
            self.record(bucket, fetched_s - max(launched_s, self._fetched_s))
        self._fetched_s, self._is_exact = fetched_s, is_exact

    def record(self, bucket: Bucket, seconds: float) -> None:
        """A step took this long."""
        key = (bucket.mode, bucket.num_tokens)
        self._seconds[key] = min(seconds, self._seconds.get(key, seconds))

    def is_worth_appending(self, num_tokens: int, num_rows: int) -> bool:
        """Whether to append tokens that could only be what they are.

        Appended to some of ``num_rows`` running sequences, they make the next step an EXTEND;
        sampled, one by one, each takes its row's place in a DECODE step.  As long as one of both
        has not been measured, it is worth a try.

        Args:
            num_tokens: of all rows together.
        """
        extend_s = self._find(Mode.EXTEND, num_tokens + num_rows)
        decode_s = self._find(Mode.DECODE, num_rows)
        if extend_s is None or decode_s is None:
            return True
        # What it costs, all rows pay; what it saves, first of all its own row does, and a row that
        # ends sooner makes a step hardly shorter.  Measured on two cores with 8 rows of JSON
        # records and no factor: 7 % less throughput than with masks alone.
        return num_tokens * decode_s >= _CAUTION * num_rows * (extend_s - decode_s)

    def _find(self, mode: Mode, num_tokens: int) -> float | None:
        ladder = self._ladders[mode]
        size = ladder[min(bisect_left(ladder, num_tokens), len(ladder) - 1)]
        return self._seconds.get((mode, size))
