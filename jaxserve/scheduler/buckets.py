"""The finite list of step shapes, so that every shape is compiled before the first request."""

from bisect import bisect_left
from collections.abc import Iterable

from jaxserve.batch import Bucket, Mode

MAX_BUCKETS = 32
_FIRST_EXTEND_TOKENS = 128
_DENSE_FROM_ROWS = 16
_GROWTH_FACTORS = (2, 4, 8, 16, 64)


class Buckets:
    """Two ladders, EXTEND by tokens and DECODE by rows, each times a ladder of table widths.

    EXTEND has a fixed number of rows: its cost is in its tokens.

    Raises:
        ValueError: an empty ladder, a value below 1, or more than ``MAX_BUCKETS`` shapes.
    """

    def __init__(
        self,
        *,
        extend_tokens: Iterable[int],
        extend_rows: int,
        decode_rows: Iterable[int],
        pages_per_row: Iterable[int],
    ) -> None:
        self.extend_tokens = _ladder("extend_tokens", extend_tokens)
        self.decode_rows = _ladder("decode_rows", decode_rows)
        self.pages_per_row = _ladder("pages_per_row", pages_per_row)
        (self.extend_rows,) = _ladder("extend_rows", [extend_rows])
        if len(self) > MAX_BUCKETS:
            raise ValueError(
                f"{len(self)} buckets: ({len(self.extend_tokens)} extend sizes + "
                f"{len(self.decode_rows)} decode sizes) x {len(self.pages_per_row)} table widths; "
                f"at most {MAX_BUCKETS} are compiled, so shorten a ladder"
            )

    def __len__(self) -> int:
        return (len(self.extend_tokens) + len(self.decode_rows)) * len(self.pages_per_row)

    @property
    def max_extend_tokens(self) -> int:
        """The most tokens of one EXTEND step."""
        return self.extend_tokens[-1]

    @property
    def max_decode_rows(self) -> int:
        """The most rows of one DECODE step."""
        return self.decode_rows[-1]

    @property
    def max_pages_per_row(self) -> int:
        """The most pages that one sequence can have."""
        return self.pages_per_row[-1]

    def require(self, *, extend_tokens: int, extend_rows: int, decode_rows: int) -> None:
        """Refuse limits that some step could exceed.

        Raises:
            ValueError: names the limit and the largest bucket.
        """
        for what, largest, needed in (
            ("extend tokens", self.max_extend_tokens, extend_tokens),
            ("extend rows", self.extend_rows, extend_rows),
            ("decode rows", self.max_decode_rows, decode_rows),
        ):
            if largest < needed:
                raise ValueError(
                    f"steps may have {needed} {what}, the largest bucket has {largest}; "
                    "extend its ladder"
                )

    def choose(self, mode: Mode, *, num_tokens: int, num_rows: int, num_pages: int) -> Bucket:
        """Return the smallest bucket that holds a step; in DECODE ``num_tokens`` is the rows.

        Raises:
            ValueError: the step is larger than the largest bucket.
        """
        width = _at_least(self.pages_per_row, num_pages, "pages per row")
        if mode is Mode.DECODE:
            rows = _at_least(self.decode_rows, num_rows, "decode rows")
            return Bucket(mode, rows, rows, width)
        _at_least((self.extend_rows,), num_rows, "extend rows")
        tokens = _at_least(self.extend_tokens, num_tokens, "extend tokens")
        return Bucket(mode, tokens, self.extend_rows, width)

    def all(self) -> tuple[Bucket, ...]:
        """Every bucket, the largest first: it fails early when memory is short."""
        extend = [
            Bucket(Mode.EXTEND, tokens, self.extend_rows, width)
            for tokens in self.extend_tokens
            for width in self.pages_per_row
        ]
        decode = [
            Bucket(Mode.DECODE, rows, rows, width)
            for rows in self.decode_rows
            for width in self.pages_per_row
        ]
        return tuple(
            sorted(extend + decode, key=lambda b: (b.num_tokens, b.pages_per_row), reverse=True)
        )


def make_buckets(
    *,
    chunked_prefill_size: int,
    max_running_requests: int,
    prefill_max_requests: int,
    max_pages_per_row: int,
    pages_per_row: Iterable[int] = (),
    extend_tokens: Iterable[int] | None = None,
    decode_rows: Iterable[int] | None = None,
) -> Buckets:
    """Build the default ladders, thinned until at most ``MAX_BUCKETS`` shapes remain.

    Args:
        pages_per_row: table widths smaller than the maximum that are worth a shape of their own;
            none where the cost of attention does not depend on the width.
        extend_tokens: replaces the default EXTEND ladder; the chunk size is always added.
        decode_rows: replaces the default DECODE ladder; the maximum is always added.
    """
    widths = _clip(pages_per_row, max_pages_per_row)
    allowed = MAX_BUCKETS // len(widths)
    for extend_default, decode_default in _default_ladders(
        chunked_prefill_size, max_running_requests
    ):
        extend = _clip(
            extend_default if extend_tokens is None else extend_tokens, chunked_prefill_size
        )
        decode = _clip(decode_default if decode_rows is None else decode_rows, max_running_requests)
        if len(extend) + len(decode) <= allowed:
            break
    return Buckets(
        extend_tokens=extend,
        extend_rows=prefill_max_requests,
        decode_rows=decode,
        pages_per_row=widths,
    )


def _default_ladders(max_tokens: int, max_rows: int) -> Iterable[tuple[list[int], list[int]]]:
    """Pairs of an EXTEND and a DECODE ladder, from the densest to the sparsest."""
    doubling = _geometric(1, max_rows, 2)
    halfway = [rows + rows // 2 for rows in doubling if rows >= _DENSE_FROM_ROWS]
    yield _geometric(_FIRST_EXTEND_TOKENS, max_tokens, 2), doubling + halfway
    for factor in _GROWTH_FACTORS:
        yield _geometric(_FIRST_EXTEND_TOKENS, max_tokens, factor), _geometric(1, max_rows, factor)


def _geometric(first: int, last: int, factor: int) -> list[int]:
    ladder = [first]
    while ladder[-1] * factor < last:
        ladder.append(ladder[-1] * factor)
    return ladder


def _clip(values: Iterable[int], maximum: int) -> tuple[int, ...]:
    return tuple(sorted({value for value in values if value < maximum} | {maximum}))


def _ladder(name: str, values: Iterable[int]) -> tuple[int, ...]:
    ladder = tuple(sorted(set(values)))
    if not ladder or ladder[0] < 1:
        raise ValueError(f"{name} must be one or more numbers of at least 1, got {ladder}")
    return ladder


def _at_least(ladder: tuple[int, ...], value: int, what: str) -> int:
    index = bisect_left(ladder, value)
    if index == len(ladder):
        raise ValueError(f"a step of {value} {what} exceeds the largest bucket, {ladder[-1]}")
    return ladder[index]
