"""What the scheduler tells of itself."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxserve.scheduler.kv_manager import KVManager
from jaxserve.scheduler.sequence import Sequence
from jaxserve.scheduler.waiting_line import WaitingLine


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """Counts at one moment, and totals since the start."""

    num_running: int
    num_waiting: int
    num_pages: int  # the null page included
    page_size: int
    num_free_pages: int
    num_cached_pages: int  # in the radix tree, in use or not
    num_evictable_pages: int  # in the radix tree, not in use
    num_private_pages: int
    num_prefilling: int  # half-prefilled, which are waiting ones
    num_retracted: int  # waiting ones that have run before
    num_waiting_tokens: int  # their prompts
    num_running_tokens: int  # prompts and outputs
    # since the start
    num_prompt_tokens: int
    num_cached_tokens: int
    num_retractions: int
    num_retracted_prompt_tokens: int
    num_retracted_output_tokens: int
    num_evicted_pages: int


@dataclass(slots=True)
class Totals:
    """What is counted since the start."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_retractions: int = 0
    num_retracted_prompt_tokens: int = 0
    num_retracted_output_tokens: int = 0

    def admitted(self, seq: Sequence) -> None:
        """A sequence has taken a slot for the first time."""
        self.num_cached_tokens += seq.num_cached
        self.num_prompt_tokens += seq.num_prompt

    def retracted(self, seq: Sequence) -> None:
        """A sequence has lost its pages and goes on later."""
        self.num_retractions += 1
        self.num_retracted_prompt_tokens += seq.num_prompt
        self.num_retracted_output_tokens += seq.num_output


def collect(
    running: Iterable[Sequence], waiting: WaitingLine, kv: KVManager, totals: Totals
) -> SchedulerStats:
    """The counts of this moment."""
    num_tokens = [seq.num_tokens for seq in running]
    return SchedulerStats(
        num_running=len(num_tokens),
        num_waiting=len(waiting),
        num_pages=kv.num_pages,
        page_size=kv.page_size,
        num_free_pages=kv.num_free_pages,
        num_cached_pages=kv.num_cached_pages,
        num_evictable_pages=kv.num_evictable_pages,
        num_private_pages=kv.num_private_pages,
        num_prefilling=int(waiting.half_prefilled is not None),
        num_retracted=waiting.num_retracted,
        num_waiting_tokens=waiting.num_prompt_tokens,
        num_running_tokens=sum(num_tokens),
        num_prompt_tokens=totals.num_prompt_tokens,
        num_cached_tokens=totals.num_cached_tokens,
        num_retractions=totals.num_retractions,
        num_retracted_prompt_tokens=totals.num_retracted_prompt_tokens,
        num_retracted_output_tokens=totals.num_retracted_output_tokens,
        num_evicted_pages=kv.num_evicted_pages,
    )
