"""In which order waiting sequences are tried.  Pure functions.

The waiting line itself is kept as: the half-prefilled sequence, then retracted ones, then those
that never ran, by arrival.  A policy reorders only the last group: whoever has run goes first,
because the half-prefilled one holds pages while it waits.
"""

from collections.abc import Callable
from itertools import takewhile

from jaxserve.config import SCHEDULE_POLICIES
from jaxserve.scheduler.sequence import Sequence

LPM_MAX_WAITING = 128

Policy = Callable[[list[Sequence], Callable[[Sequence], int]], list[Sequence]]


def fcfs(waiting: list[Sequence], num_cached: Callable[[Sequence], int]) -> list[Sequence]:
    """First come, first served: the line as it stands."""
    return waiting


def lpm(waiting: list[Sequence], num_cached: Callable[[Sequence], int]) -> list[Sequence]:
    """Longest cached prefix first, then arrival.

    Beyond ``LPM_MAX_WAITING`` it is fcfs: matching every waiting prompt in every step would
    cost more than the better order saves.
    """
    if len(waiting) > LPM_MAX_WAITING:
        return waiting
    return _reorder(waiting, lambda seq: (-num_cached(seq), seq.arrival))


def priority(waiting: list[Sequence], num_cached: Callable[[Sequence], int]) -> list[Sequence]:
    """Higher ``Request.priority`` first, then arrival."""
    return _reorder(waiting, lambda seq: (-seq.request.priority, seq.arrival))


def get_policy(name: str) -> Policy:
    """Look a policy up by its name in the configuration.

    Raises:
        ValueError: no policy of this name.
    """
    policies = {"fcfs": fcfs, "lpm": lpm, "priority": priority}
    if name not in policies:
        raise ValueError(
            f"unknown schedule policy {name!r}; choose one of {', '.join(SCHEDULE_POLICIES)}"
        )
    return policies[name]


def _reorder(waiting: list[Sequence], key: Callable[[Sequence], tuple[int, int]]) -> list[Sequence]:
    first = list(takewhile(lambda seq: seq.has_run, waiting))
    return first + sorted(waiting[len(first) :], key=key)
