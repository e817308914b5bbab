"""Who runs next: admit, chunk, decode, catch up, retract, finish, abort.

The engine's turn is ``plan = schedule()``; launch it; ``process`` the step launched the turn
before.  ``schedule`` therefore plans on top of tokens that nobody has seen yet: lengths are known
in advance, stop tokens are not, and the surplus token after one is dropped in ``process``.
"""

from collections.abc import Callable

from jaxserve.batch import PADDING_SLOT, StepResult
from jaxserve.request import FinishReason, Request, TokenLogprob, TokenOutput
from jaxserve.scheduler.buckets import Buckets
from jaxserve.scheduler.catch_up import catch_up_chunks, num_missing_pages
from jaxserve.scheduler.checks import check_containers
from jaxserve.scheduler.kv_manager import KVManager
from jaxserve.scheduler.outputs import (
    DISPLACED,
    abort_reason,
    continue_with,
    ending,
    make_output,
    row_extras,
    row_logprobs,
)
from jaxserve.scheduler.plan import BatchPlan, Chunk, PlanBuilder
from jaxserve.scheduler.sequence import Sequence, Status, make_sequence
from jaxserve.scheduler.settings import SchedulerConfig
from jaxserve.scheduler.stats import SchedulerStats, Totals, collect
from jaxserve.scheduler.waiting_line import WaitingLine


class Scheduler:
    """Two containers, ``waiting`` and ``running``, and the plans made from them.

    Args:
        num_pages: pages of the device's KV pool, the null page included.
        buckets: the step shapes; they must hold ``max_running_requests`` rows and
            ``chunked_prefill_size`` tokens.
        eos_token_ids: end a sequence unless it ignores them.
        on_evicted: told how many seconds each eviction of cached prefixes took.

    Raises:
        ValueError: the buckets are too small for the config.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        num_pages: int,
        buckets: Buckets,
        eos_token_ids: tuple[int, ...],
        on_evicted: Callable[[float], None] | None = None,
    ) -> None:
        buckets.require(
            extend_tokens=config.chunked_prefill_size,
            extend_rows=config.prefill_max_requests,
            decode_rows=config.max_running_requests,
        )
        self._config = config
        self._eos_token_ids = eos_token_ids
        self._kv = KVManager(
            num_pages=num_pages,
            page_size=config.page_size,
            num_slots=config.max_running_requests + 1,
            pages_per_row=buckets.max_pages_per_row,
            is_caching=not config.disable_radix_cache,
            on_evicted=on_evicted,
        )
        self._builder = PlanBuilder(
            buckets=buckets, page_table=self._kv.page_table, page_size=config.page_size
        )
        self._waiting = WaitingLine(config)
        self._running: dict[str, Sequence] = {}
        self._alive: dict[str, Sequence] = {}  # index by rid of both
        # Those of the running ones whose newest token the device does not have: it was appended.
        self._behind: dict[str, Sequence] = {}
        self._num_added = 0
        self._num_launched = 0  # plans handed out and not processed yet
        self._num_extends_in_a_row = 0  # while rows wait to decode
        self._totals = Totals()

    @property
    def has_work(self) -> bool:
        """Something is waiting or running."""
        return bool(self._alive)

    @property
    def num_running(self) -> int:
        """Sequences whose prompt is computed."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences not yet admitted, half-prefilled, or retracted."""
        return len(self._waiting)

    def add(self, request: Request) -> TokenOutput | None:
        """Put a request at the end of the waiting line.

        Returns:
            The last output of a request that had to leave a full line for this one.

        Raises:
            OverloadedError: the line is full.
            KVCacheFullError: the request alone is larger than the KV pool.
            ContextLengthError: it is longer than a row of the page table.
            ValueError: the rid is in use, the prompt is empty, or a parameter is still ``None``.
        """
        if request.rid in self._alive:
            raise ValueError(f"rid {request.rid!r} is in use; a rid must be unique while it lives")
        seq = make_sequence(request, self._num_added, self._eos_token_ids)
        self._kv.require_room(seq)
        displaced = self._waiting.join(seq)
        self._num_added += 1
        self._alive[request.rid] = seq
        if displaced is None:
            return None
        self._finish(displaced)
        return make_output(displaced, finish=DISPLACED)

    def abort(self, rid: str, reason: FinishReason | None = None) -> TokenOutput | None:
        """Drop a sequence and free what it holds, whatever its state.

        Args:
            reason: why, if not because somebody asked for it.

        Returns:
            Its last output; ``None`` when the rid is unknown or has finished.
        """
        seq = self._alive.get(rid)
        if seq is None:
            return None
        reason = reason or abort_reason(seq)
        self._end_now(seq)
        return make_output(seq, finish=reason)

    def append(
        self,
        rid: str,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
        finish: FinishReason | None = None,
    ) -> TokenOutput:
        """Continue a sequence with tokens that were not sampled; the next steps compute them.

        A stop token or ``max_new_tokens`` ends it, as if they were sampled; the rest is dropped.
        Its step in flight, if there is one, must not sample for it any more: process the plan
        ``without`` its row.

        Args:
            logprobs: one for each token, or none at all.
            finish: how the sequence ends after them; ``None``: it goes on.

        Raises:
            ValueError: the rid is not alive, its prompt is half computed, or more than one step
                of it is in flight: these tokens would have to come after theirs.
        """
        seq = self._alive.get(rid)
        if seq is None or seq.num_inflight > 1 or seq.is_half_prefilled:
            state = "is not alive" if seq is None else "has steps in flight"
            raise ValueError(
                f"rid {rid!r} {state}; append only to a sequence that lives, whose prompt is not "
                "half computed and whose tokens are known up to those of its newest step"
            )
        seq.num_inflight = 0
        count, reason = continue_with(seq, token_ids)
        if finish is not None and count == len(token_ids):
            reason = finish
        if reason is not None:
            self._end_now(seq)
        elif count and seq.status is Status.RUNNING:
            self._behind[rid] = seq
        return make_output(seq, token_ids[:count], logprobs[:count], reason)

    def retract_all(self) -> int:
        """Send all that holds pages back to the waiting line; return how many were running.

        No step may be in flight.
        """
        assert not self._num_launched, "retracted while a step is in flight"
        half = self._waiting.half_prefilled
        if half is not None:
            self._release(half)
        count = len(self._running)
        while self._running:
            self._retract_youngest()
        return count

    def schedule(self) -> BatchPlan | None:
        """Plan the next step; the caller launches it before it calls anything else.

        Returns:
            ``None`` when there is nothing to launch now: no work, or only work that depends on
            a step in flight, which must be processed first.
        """
        plan = self._next_plan()
        if plan is None and self._waiting and not self._num_launched:
            plan = self._next_plan()  # the last running one was retracted, for what waits
        if plan is not None:
            self._num_launched += 1
        return plan

    def process(self, plan: BatchPlan, result: StepResult) -> list[TokenOutput]:
        """Take in the tokens of a launched step, in launch order.

        Rows whose sequence finished or was aborted since the launch are dropped.
        """
        self._num_launched -= 1
        token_ids = result.token_ids.tolist()
        samples = plan.inputs.sampling.samples.tolist()
        has_logprobs, has_extras = result.logprobs is not None, plan.has_extras
        outputs: list[TokenOutput] = []
        for row, seq in enumerate(plan.rows):
            if seq.status is Status.FINISHED:
                continue
            extras = row_extras(plan, result, row) if has_extras else {}
            if samples[row]:
                logprobs = row_logprobs(result, row, seq) if has_logprobs else ()
                output = self._accept(seq, token_ids[row], logprobs)
            elif not seq.wants_sample and plan.inputs.kv_lens[row] == seq.num_tokens:
                self._finish(seq)
                output = make_output(seq, finish=FinishReason("length"))
            elif extras:
                output = make_output(seq)
            else:
                continue
            outputs.append(output._replace(**extras) if extras else output)
        return outputs

    def flush_cache(self) -> bool:
        """Forget every cached prefix; ``False``, and nothing done, while anything is alive."""
        if self._alive:
            return False
        self._kv.flush()
        return True

    def check(self) -> None:
        """Assert the invariants of the package.  For tests: it walks everything."""
        check_containers(self._alive, self._running, self._behind, self._waiting)
        self._kv.check()

    def stats(self) -> SchedulerStats:
        """Counts at this moment."""
        return collect(self._running.values(), self._waiting, self._kv, self._totals)

    def _next_plan(self) -> BatchPlan | None:
        rows = [seq for seq in self._running.values() if seq.can_decode]
        if self._behind:
            rows = [seq for seq in rows if seq.rid not in self._behind]
        is_decode_due = self._num_extends_in_a_row >= self._config.max_extends_per_decode
        if not (rows and is_decode_due):
            if self._behind:
                return self._plan_catch_up(rows)
            plan = self._plan_extend([], self._config.chunked_prefill_size)
            if plan is not None:
                self._num_extends_in_a_row = self._num_extends_in_a_row + 1 if rows else 0
                return plan
        return self._plan_decode(rows)

    def _plan_catch_up(self, rows: list[Sequence]) -> BatchPlan | None:
        """An EXTEND step for the tokens of running sequences that the device does not have.

        It stands for a DECODE step: ``rows``, which are not behind, take part with one token
        each.  Those left out for want of room decode next.
        """
        config = self._config
        max_rows = max(1, config.prefill_max_requests - bool(self._waiting))  # one to admit
        chunks, budget = catch_up_chunks(self._behind, rows, config.chunked_prefill_size, max_rows)
        while num_missing_pages(self._kv, chunks) > self._kv.num_available_pages:
            if self._num_launched:
                return None  # its tokens must be known before a sequence can be computed again
            retracted = self._retract_youngest()
            chunks = [chunk for chunk in chunks if chunk.seq is not retracted]
        for chunk in chunks:
            self._kv.grow_by(chunk.seq, chunk.num_tokens)
        plan = self._plan_extend(chunks, budget)
        is_complete = sum(not chunk.is_behind for chunk in chunks) == len(rows)
        self._num_extends_in_a_row = 0 if is_complete else config.max_extends_per_decode
        return plan

    def _plan_extend(self, running: list[Chunk], budget: int) -> BatchPlan | None:
        """An EXTEND step of these chunks of running sequences, and of admitted ones."""
        admitted = self._admit(budget, self._config.prefill_max_requests - len(running))
        if not (running or admitted):
            return None
        plan = self._builder.extend(running + admitted)
        for chunk in running:
            self._advance_running(chunk)
        for chunk in admitted:
            self._advance(chunk)
        return plan

    def _admit(self, budget: int, max_rows: int) -> list[Chunk]:
        """Grant chunks to waiting sequences in order, until a limit or the first that must wait.

        Nobody overtakes a sequence that waits for pages: it would never get them.
        """
        chunks: list[Chunk] = []
        first = self._waiting.first
        if first is None or not (self._kv.num_free_slots or first.has_run):
            return chunks
        computing: set[tuple[object, str, bytes]] = set()
        for seq in self._waiting.in_order(self._kv.num_cached_tokens):
            if not budget or len(chunks) == max_rows:
                break
            prefix = self._kv.match(seq)
            page = self._kv.next_page(seq, prefix)
            if page in computing and self._kv.can_match_more(seq, prefix):
                continue  # another row computes this very page: next turn it is a cache hit
            is_first = seq.slot == PADDING_SLOT
            reserve = len(self._running) + len(chunks)  # each may need a page for its next token
            granted = self._kv.admit(seq, prefix, budget, reserve)
            if not granted:
                break
            computing.add(page)
            budget -= granted
            chunks.append(Chunk(seq, granted, is_first))
        return chunks

    def _advance_running(self, chunk: Chunk) -> None:
        """Move a running sequence on past tokens that are about to be launched."""
        seq = chunk.seq
        seq.num_computed += chunk.num_tokens
        if seq.num_uncomputed <= 0:
            seq.num_inflight += 1
            self._behind.pop(seq.rid, None)

    def _advance(self, chunk: Chunk) -> None:
        """Move a sequence on past a chunk that is about to be launched."""
        seq = chunk.seq
        if chunk.is_first and not seq.num_retractions:
            seq.num_cached = min(seq.num_computed, seq.num_prompt)
            self._totals.admitted(seq)
        seq.num_computed += chunk.num_tokens
        self._kv.commit(seq, seq.num_computed)
        if seq.num_uncomputed:
            self._waiting.lead(seq)
            return
        self._waiting.leave(seq)
        seq.status = Status.RUNNING
        seq.num_inflight = int(seq.wants_sample)
        self._running[seq.rid] = seq

    def _plan_decode(self, rows: list[Sequence]) -> BatchPlan | None:
        while len(needing := self._kv.needing_page(rows)) > self._kv.num_available_pages:
            if self._num_launched:
                return None  # its tokens must be known before a sequence can be computed again
            retracted = self._retract_youngest()
            rows = [seq for seq in rows if seq is not retracted]
        if not rows:
            return None
        self._kv.grow(needing)
        plan = self._builder.decode(rows)
        for seq in rows:
            seq.num_computed += 1
            seq.num_inflight += 1
        self._num_extends_in_a_row = 0
        return plan

    def _retract_youngest(self) -> Sequence:
        """Send the last-added running sequence back to the waiting line, for its pages."""
        seq = max(self._running.values(), key=lambda seq: seq.arrival)
        del self._running[seq.rid]
        self._behind.pop(seq.rid, None)
        self._release(seq)
        self._waiting.rejoin(seq)
        return seq

    def _release(self, seq: Sequence) -> None:
        """Take its pages from a sequence that goes on later."""
        self._kv.release(seq)
        seq.status = Status.WAITING
        seq.num_retractions += 1
        self._totals.retracted(seq)

    def _accept(
        self, seq: Sequence, token_id: int, logprobs: tuple[TokenLogprob, ...]
    ) -> TokenOutput:
        seq.num_inflight -= 1
        seq.tokens.append(token_id)
        finish = None
        if token_id in seq.stop_ids or seq.num_output >= seq.max_new_tokens:  # seldom: no call
            finish = ending(seq, token_id)
            if finish is not None:
                self._finish(seq)
        return make_output(seq, (token_id,), logprobs, finish)

    def _end_now(self, seq: Sequence) -> None:
        """Finish a sequence between two steps, wherever it stands."""
        if seq.status is Status.WAITING:
            self._waiting.leave(seq)
        self._finish(seq)

    def _finish(self, seq: Sequence) -> None:
        seq.status = Status.FINISHED
        self._running.pop(seq.rid, None)
        self._behind.pop(seq.rid, None)
        del self._alive[seq.rid]
        self._kv.release(seq)
