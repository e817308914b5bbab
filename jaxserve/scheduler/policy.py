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
Rank = Callable[[Sequence], int]
"""The smaller, the more urgent."""


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


def get_policy(name: str, rank: Rank | None = None) -> Policy:
    """Look a policy up by its name in the configuration.

    Args:
        rank: goes before the policy, which then orders equals.

    Raises:
        ValueError: no policy of this name.
    """
    policies = {"fcfs": fcfs, "lpm": lpm, "priority": fcfs}
    if name not in policies:
        raise ValueError(
            f"unknown schedule policy {name!r}; choose one of {', '.join(SCHEDULE_POLICIES)}"
        )
    policy = policies[name]
    if rank is None:
        return policy
    # Sorting keeps the policy's order among equals.
    return lambda waiting, num_cached: _reorder(policy(waiting, num_cached), rank)


def get_rank(name: str, *, is_by_priority: bool, is_low_first: bool) -> Rank | None:
    """How urgent ``Request.priority`` makes a sequence; ``None`` where it counts for nothing.

    Args:
        name: of the policy; ``priority`` is ``fcfs`` among equal priorities.
        is_by_priority: priorities go before any policy.
        is_low_first: the lowest number is the most urgent, not the highest.
    """
    if not is_by_priority and name != "priority":
        return None
    sign = 1 if is_low_first else -1
    return lambda seq: sign * seq.request.priority


def _reorder(waiting: list[Sequence], key: Callable[[Sequence], object]) -> list[Sequence]:
    first = list(takewhile(lambda seq: seq.has_run, waiting))
    return first + sorted(waiting[len(first) :], key=key)  # type: ignore[arg-type]
