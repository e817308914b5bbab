"""Who waits, and in which order: the half-prefilled, the retracted, then those that never ran."""

from collections.abc import Callable
from itertools import takewhile

from jaxserve.errors import OverloadedError
from jaxserve.scheduler.policy import get_policy, get_rank
from jaxserve.scheduler.sequence import Sequence
from jaxserve.scheduler.settings import SchedulerConfig


class WaitingLine:
    """The sequences that wait, at most one of them half-prefilled, and that one first."""

    def __init__(self, config: SchedulerConfig) -> None:
        name = config.schedule_policy
        self._rank = get_rank(
            name,
            is_by_priority=config.enable_priority_scheduling,
            is_low_first=config.schedule_low_priority_values_first,
        )
        self._policy = get_policy(name, self._rank)
        self._max_len = config.max_queued_requests
        self._line: list[Sequence] = []
        self.num_prompt_tokens = 0  # of all that wait

    def __len__(self) -> int:
        return len(self._line)

    @property
    def first(self) -> Sequence | None:
        """Who stands first, before any policy."""
        return self._line[0] if self._line else None

    @property
    def half_prefilled(self) -> Sequence | None:
        """The one that holds pages while it waits."""
        first = self.first
        return first if first is not None and first.is_half_prefilled else None

    @property
    def num_retracted(self) -> int:
        """Those that have run and hold nothing."""
        return sum(not seq.is_half_prefilled for seq in self._that_have_run())

    def sequences(self) -> tuple[Sequence, ...]:
        """All that wait, as the line stands."""
        return tuple(self._line)

    def in_order(self, num_cached: Callable[[Sequence], int]) -> list[Sequence]:
        """All that wait, in the order in which they are tried."""
        return self._policy(self._line, num_cached)

    def join(self, seq: Sequence) -> Sequence | None:
        """Put a new sequence at the end.

        Returns:
            The sequence that has had to leave a full line for a more urgent one.

        Raises:
            OverloadedError: the line is full, of sequences that are as urgent.
        """
        displaced = None
        if self._max_len is not None and len(self._line) >= self._max_len:
            displaced = self._less_urgent(seq)
            if displaced is None:
                raise OverloadedError("The request queue is full.")
            self.leave(displaced)
        self._line.append(seq)
        self.num_prompt_tokens += seq.num_prompt
        return displaced

    def rejoin(self, seq: Sequence) -> None:
        """Put a retracted sequence first, but behind a half-prefilled one.

        That one holds pages that this one may be waiting for.
        """
        self._line.insert(int(self.half_prefilled is not None), seq)
        self.num_prompt_tokens += seq.num_prompt

    def lead(self, seq: Sequence) -> None:
        """Put a sequence that waits, and has become half-prefilled, first."""
        self._line.remove(seq)
        self._line.insert(0, seq)

    def leave(self, seq: Sequence) -> None:
        """Take a sequence out."""
        self._line.remove(seq)
        self.num_prompt_tokens -= seq.num_prompt

    def _that_have_run(self) -> list[Sequence]:
        return list(takewhile(lambda seq: seq.has_run, self._line))

    def _less_urgent(self, seq: Sequence) -> Sequence | None:
        rank, candidates = self._rank, self._line[len(self._that_have_run()) :]
        if rank is None or not candidates:
            return None
        last = max(candidates, key=lambda other: (rank(other), other.arrival))
        return last if rank(last) > rank(seq) else None
