"""Which sequences run in the next step, and in which KV pages.  numpy only, never jax.

Invariants:

1. A sequence is in exactly one of waiting, running, finished.
2. A page id in [1, P) has exactly one owner: the free list, the radix tree, or one sequence's
   private tail; ``free + tree + private == P - 1``.  Page 0 is the null page: padding reads and
   writes it, nobody owns it.
3. Dispatch order is execution order: the device state threads through every step, so a page freed
   on the host may be reused at once, and a later step cannot overtake an earlier one.
4. The host never waits for a token to launch the next step: the newest token of each sequence
   stays on the device, in its slot, and results are fetched one step late.
5. Every array that enters a step has a shape named by a ``Bucket``; after warm-up nothing
   compiles again.
6. Output does not depend on company: batching, bucket, chunking, caching and retraction change
   speed, never tokens.
7. At most one sequence is half-prefilled, and it is first in line whatever the policy says; a
   retracted sequence goes in behind it.  A half-prefilled one holds pages while it waits: two of
   them, or one behind a retracted one, deadlock a small pool.
8. A sequence may be continued from outside with tokens that nobody sampled, if its step in flight,
   of which there is one at most, samples nothing for it.  Until a step has computed them it is
   *behind*: the device has its last sampled token, not its newest one, so its next steps are
   EXTEND.  That step stands for a DECODE step: the other running rows take part with their newest
   token, which may be in flight.
9. Nothing is stuck: when no step is in flight and anything is alive, ``schedule`` has a plan.
10. A prefix is shared inside its namespace only; eviction is common to all.
"""

from jaxserve.scheduler.buckets import Buckets, make_buckets
from jaxserve.scheduler.plan import BatchPlan
from jaxserve.scheduler.scheduler import Scheduler
from jaxserve.scheduler.settings import SchedulerConfig
from jaxserve.scheduler.stats import SchedulerStats

__all__ = [
    "BatchPlan",
    "Buckets",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStats",
    "make_buckets",
]
