"""How long each sequence has waited and run, and which of them too long."""

import time
from collections.abc import Callable, Iterable

from jaxserve.request import FinishReason, TokenOutput

TIMEOUT_STATUS = 503


class RequestClock:
    """When sequences came and when they started.  Used by the engine thread alone.

    Time stands still between ``stop`` and ``go_on``: a pause makes nobody late.

    Args:
        waiting_timeout_s: longest time from ``added`` to ``started``; None = no limit.
        running_timeout_s: longest time from ``started`` to the end; None = no limit.
        now: seconds, as those of ``Request.arrival_s``.
    """

    def __init__(
        self,
        waiting_timeout_s: float | None,
        running_timeout_s: float | None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._now = now
        self._stopped_at_s: float | None = None
        self._lost_s = 0.0
        self._limits = (
            (waiting_timeout_s, "Request waiting timeout reached."),
            (running_timeout_s, "Request running timeout reached."),
        )
        self._waiting: dict[str, float] = {}  # both in order of time
        self._running: dict[str, float] = {}
        self._arrivals: dict[str, float] = {}  # of the waiting ones
        self._queue_s: dict[str, float] = {}  # of those that have started and given nothing yet

    @property
    def has_started(self) -> bool:
        """Some output is to be ``stamped``."""
        return bool(self._queue_s)

    def added(self, rid: str, arrival_s: float) -> None:
        """A sequence came; ``arrival_s`` is when its request did."""
        self._waiting[rid] = self._time_s()
        self._arrivals[rid] = arrival_s

    def started(self, rids: Iterable[str]) -> None:
        """A step of these is launched; for those that have run before it means nothing."""
        now_s, time_s = self._now(), self._time_s()
        for rid in rids:
            if self._waiting.pop(rid, None) is not None:
                self._running[rid] = time_s
                self._queue_s[rid] = now_s - self._arrivals.pop(rid)

    def stamped(self, output: TokenOutput) -> TokenOutput:
        """The output, with the time in the queue if it is the sequence's first since its start."""
        queue_s = self._queue_s.pop(output.rid, None)
        return output if queue_s is None else output._replace(queue_s=queue_s)

    def ended(self, rid: str) -> None:
        """A sequence is over, whatever it did last."""
        for times in (self._waiting, self._running, self._arrivals, self._queue_s):
            times.pop(rid, None)

    def stop(self) -> None:
        """Time stands still.  Idempotent."""
        if self._stopped_at_s is None:
            self._stopped_at_s = self._now()

    def go_on(self) -> None:
        """Time goes on.  Idempotent."""
        if self._stopped_at_s is not None:
            self._lost_s += self._now() - self._stopped_at_s
            self._stopped_at_s = None

    def late(self) -> list[tuple[str, FinishReason]]:
        """The sequences whose time is up, and what to tell them."""
        found = []
        for (limit_s, message), since in zip(
            self._limits, (self._waiting, self._running), strict=True
        ):
            if limit_s is None:
                continue
            deadline_s = self._time_s() - limit_s
            for rid, time_s in since.items():
                if time_s > deadline_s:
                    break  # those after it came later
                reason = FinishReason("abort", message=message, status_code=TIMEOUT_STATUS)
                found.append((rid, reason))
        return found

    def _time_s(self) -> float:
        now_s = self._now() if self._stopped_at_s is None else self._stopped_at_s
        return now_s - self._lost_s
