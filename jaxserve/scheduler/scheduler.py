"""Who runs next: admit, chunk, decode, retract, finish, abort.

The engine's turn is ``plan = schedule()``; launch it; ``process`` the step launched the turn
before.  ``schedule`` therefore plans on top of tokens that nobody has seen yet: lengths are known
in advance, stop tokens are not, and the surplus token after one is dropped in ``process``.
"""

from dataclasses import dataclass

from jaxserve.batch import PADDING_SLOT, StepResult
from jaxserve.config import EngineConfig
from jaxserve.errors import ContextLengthError, KVCacheFullError, OverloadedError
from jaxserve.request import FinishReason, Request, TokenLogprob, TokenOutput
from jaxserve.scheduler.buckets import Buckets
from jaxserve.scheduler.kv_manager import KVManager
from jaxserve.scheduler.plan import BatchPlan, Chunk, PlanBuilder, row_logprobs
from jaxserve.scheduler.policy import get_policy
from jaxserve.scheduler.sequence import Sequence, Status, make_sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The part of ``EngineConfig`` that the scheduler reads, without a ``None`` that steers."""

    max_running_requests: int
    chunked_prefill_size: int
    prefill_max_requests: int
    page_size: int
    max_extends_per_decode: int = 8
    max_queued_requests: int | None = None  # None = unlimited
    schedule_policy: str = "fcfs"
    disable_radix_cache: bool = False

    @classmethod
    def from_engine(cls, config: EngineConfig) -> "SchedulerConfig":
        """Take the fields from a resolved ``EngineConfig``.

        Raises:
            ValueError: the config is not resolved; the message names the field.
        """
        return cls(
            max_running_requests=_resolved(config.max_running_requests, "max_running_requests"),
            chunked_prefill_size=_resolved(config.chunked_prefill_size, "chunked_prefill_size"),
            prefill_max_requests=_resolved(config.prefill_max_requests, "prefill_max_requests"),
            page_size=config.page_size,
            max_extends_per_decode=_resolved(
                config.max_extends_per_decode, "max_extends_per_decode"
            ),
            max_queued_requests=config.max_queued_requests,
            schedule_policy=config.schedule_policy,
            disable_radix_cache=config.disable_radix_cache,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """Counts at one moment; the last three are totals since the start."""

    num_running: int
    num_waiting: int
    num_pages: int  # the null page included
    page_size: int
    num_free_pages: int
    num_cached_pages: int  # in the radix tree, in use or not
    num_evictable_pages: int  # in the radix tree, not in use
    num_private_pages: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_retractions: int


class Scheduler:
    """Two containers, ``waiting`` and ``running``, and the plans made from them.

    Args:
        num_pages: pages of the device's KV pool, the null page included.
        buckets: the step shapes; they must hold ``max_running_requests`` rows and
            ``chunked_prefill_size`` tokens.
        eos_token_ids: end a sequence unless it ignores them.

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
    ) -> None:
        buckets.require(
            extend_tokens=config.chunked_prefill_size,
            extend_rows=config.prefill_max_requests,
            decode_rows=config.max_running_requests,
        )
        self._config = config
        self._eos_token_ids = eos_token_ids
        self._policy = get_policy(config.schedule_policy)
        self._kv = KVManager(
            num_pages=num_pages,
            page_size=config.page_size,
            num_slots=config.max_running_requests + 1,
            pages_per_row=buckets.max_pages_per_row,
            is_caching=not config.disable_radix_cache,
        )
        self._builder = PlanBuilder(
            buckets=buckets, page_table=self._kv.page_table, page_size=config.page_size
        )
        self._waiting: list[Sequence] = []  # half-prefilled, retracted, then by arrival
        self._running: dict[str, Sequence] = {}
        self._alive: dict[str, Sequence] = {}  # index by rid of both
        self._num_added = 0
        self._num_launched = 0  # plans handed out and not processed yet
        self._num_extends_in_a_row = 0  # while rows wait to decode
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._num_retractions = 0

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

    @property
    def num_slots(self) -> int:
        """Rows of the device's token table, the padding slot included."""
        return self._config.max_running_requests + 1

    def add(self, request: Request) -> None:
        """Put a request at the end of the waiting line.

        Raises:
            OverloadedError: the line is full.
            KVCacheFullError: the request alone is larger than the KV pool.
            ContextLengthError: it is longer than a row of the page table.
            ValueError: the rid is in use, the prompt is empty, or a parameter is still ``None``.
        """
        maximum = self._config.max_queued_requests
        if maximum is not None and len(self._waiting) >= maximum:
            raise OverloadedError("The request queue is full.")
        if request.rid in self._alive:
            raise ValueError(f"rid {request.rid!r} is in use; a rid must be unique while it lives")
        seq = make_sequence(request, self._num_added, self._eos_token_ids)
        self._check_size(seq)
        self._num_added += 1
        self._alive[request.rid] = seq
        self._waiting.append(seq)

    def abort(self, rid: str) -> TokenOutput | None:
        """Drop a sequence and free what it holds, whatever its state.

        Returns:
            Its last output; ``None`` when the rid is unknown or has finished.
        """
        seq = self._alive.get(rid)
        if seq is None:
            return None
        message = "Aborted" if seq.has_run else "Abort in waiting queue"
        if seq.status is Status.WAITING:
            self._waiting.remove(seq)
        self._finish(seq)
        return _output(seq, finish=FinishReason("abort", message=message))

    def schedule(self) -> BatchPlan | None:
        """Plan the next step; the caller launches it before it calls anything else.

        Returns:
            ``None`` when there is nothing to launch now: no work, or only work that depends on
            a step in flight, which must be processed first.
        """
        plan = self._next_plan()
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
        outputs: list[TokenOutput] = []
        for row, seq in enumerate(plan.rows):
            if seq.status is Status.FINISHED:
                continue
            if samples[row]:
                outputs.append(self._accept(seq, token_ids[row], row_logprobs(result, row, seq)))
            elif not seq.wants_sample and plan.inputs.kv_lens[row] == seq.num_tokens:
                self._finish(seq)
                outputs.append(_output(seq, finish=FinishReason("length")))
        return outputs

    def flush_cache(self) -> bool:
        """Forget every cached prefix; ``False``, and nothing done, while anything is alive."""
        if self._alive:
            return False
        self._kv.flush()
        return True

    def check(self) -> None:
        """Assert the invariants of the package.  For tests: it walks everything."""
        alive = {**self._running, **{seq.rid: seq for seq in self._waiting}}
        assert alive == self._alive, "a sequence is in no container or in an unindexed one"
        assert len(alive) == len(self._running) + len(self._waiting), "a sequence is in both"
        assert all(seq.status is Status.RUNNING for seq in self._running.values())
        assert all(seq.status is Status.WAITING for seq in self._waiting)
        half = [index for index, seq in enumerate(self._waiting) if seq.is_half_prefilled]
        assert half in ([], [0]), "a half-prefilled sequence is not first in line"
        for seq in self._running.values():
            expected = seq.num_tokens + (seq.num_inflight - 1 if seq.wants_sample else 0)
            assert seq.num_computed == expected, "a decoding row's counters differ"
        self._kv.check()

    def stats(self) -> SchedulerStats:
        """Counts at this moment."""
        kv = self._kv
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_pages=kv.num_pages,
            page_size=kv.page_size,
            num_free_pages=kv.num_free_pages,
            num_cached_pages=kv.num_cached_pages,
            num_evictable_pages=kv.num_evictable_pages,
            num_private_pages=kv.num_private_pages,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_retractions=self._num_retractions,
        )

    def _next_plan(self) -> BatchPlan | None:
        rows = [seq for seq in self._running.values() if seq.can_decode]
        is_decode_due = self._num_extends_in_a_row >= self._config.max_extends_per_decode
        if not (rows and is_decode_due):
            plan = self._plan_extend(len(rows))
            if plan is not None:
                self._num_extends_in_a_row = self._num_extends_in_a_row + 1 if rows else 0
                return plan
        plan = self._plan_decode(rows)
        if plan is not None:
            self._num_extends_in_a_row = 0
        return plan

    def _plan_extend(self, num_decoding: int) -> BatchPlan | None:
        chunks = self._admit(num_decoding)
        if not chunks:
            return None
        plan = self._builder.extend(chunks)
        for chunk in chunks:
            self._advance(chunk)
        return plan

    def _admit(self, num_decoding: int) -> list[Chunk]:
        """Grant chunks to waiting sequences in order, until a limit or the first that must wait.

        Nobody overtakes a sequence that waits for pages: it would never get them.
        """
        chunks: list[Chunk] = []
        if not self._waiting or not (self._kv.num_free_slots or self._waiting[0].has_run):
            return chunks
        budget = self._config.chunked_prefill_size
        computing: set[tuple[object, bytes]] = set()
        for seq in self._policy(self._waiting, self._kv.num_cached_tokens):
            if not budget or len(chunks) == self._config.prefill_max_requests:
                break
            prefix = self._kv.match(seq)
            page = self._kv.page_key(seq, prefix)
            if (prefix, page) in computing and self._kv.can_match_more(seq, prefix):
                continue  # another row computes this very page: next turn it is a cache hit
            is_first = seq.slot == PADDING_SLOT
            granted = self._kv.admit(seq, prefix, budget, num_decoding + len(chunks))
            if not granted:
                break
            computing.add((prefix, page))
            budget -= granted
            chunks.append(Chunk(seq, granted, is_first))
        return chunks

    def _advance(self, chunk: Chunk) -> None:
        """Move a sequence on past a chunk that is about to be launched."""
        seq = chunk.seq
        if chunk.is_first and not seq.num_retractions:
            seq.num_cached = seq.num_computed
            self._num_cached_tokens += seq.num_cached
            self._num_prompt_tokens += seq.num_prompt
        seq.num_computed += chunk.num_tokens
        self._kv.commit(seq, seq.num_computed)
        self._waiting.remove(seq)
        if seq.num_uncomputed:
            self._waiting.insert(0, seq)
            return
        seq.status = Status.RUNNING
        seq.num_inflight = int(seq.wants_sample)
        self._running[seq.rid] = seq

    def _plan_decode(self, rows: list[Sequence]) -> BatchPlan | None:
        needing = self._kv.needing_page(rows)
        while len(needing) > self._kv.num_available_pages:
            if self._num_launched:
                return None  # its tokens must be known before a sequence can be computed again
            rows.remove(self._retract_youngest())
            needing = self._kv.needing_page(rows)
        if not rows:
            return None
        self._kv.grow(needing)
        plan = self._builder.decode(rows)
        for seq in rows:
            seq.num_computed += 1
            seq.num_inflight += 1
        return plan

    def _retract_youngest(self) -> Sequence:
        """Send the last-added running sequence back to the waiting line, for its pages."""
        seq = max(self._running.values(), key=lambda seq: seq.arrival)
        del self._running[seq.rid]
        self._kv.release(seq)
        seq.status = Status.WAITING
        seq.num_retractions += 1
        self._num_retractions += 1
        # Behind a half-prefilled one, which holds pages that this one may be waiting for.
        is_behind = bool(self._waiting) and self._waiting[0].is_half_prefilled
        self._waiting.insert(int(is_behind), seq)
        return seq

    def _accept(
        self, seq: Sequence, token_id: int, logprobs: tuple[TokenLogprob, ...]
    ) -> TokenOutput:
        seq.num_inflight -= 1
        seq.tokens.append(token_id)
        finish = None
        num_output = seq.num_output
        if token_id in seq.stop_ids and num_output > seq.request.sampling.min_new_tokens:
            finish = FinishReason("stop", matched=token_id)
        elif num_output >= seq.max_new_tokens:
            finish = FinishReason("length")
        if finish is not None:
            self._finish(seq)
        return _output(seq, (token_id,), logprobs, finish)

    def _finish(self, seq: Sequence) -> None:
        seq.status = Status.FINISHED
        self._running.pop(seq.rid, None)
        del self._alive[seq.rid]
        self._kv.release(seq)

    def _check_size(self, seq: Sequence) -> None:
        size = self._config.page_size
        total = seq.num_prompt + seq.max_new_tokens
        given = f"{seq.num_prompt} prompt tokens + max_new_tokens {seq.max_new_tokens} = {total}"
        allowed = (self._kv.num_pages - 1) * size
        if total > allowed:
            raise KVCacheFullError(
                f"{given} tokens, the whole KV cache holds {allowed}; shorten the request, or "
                "restart with a larger --max-total-tokens or --mem-fraction-static"
            )
        allowed = self._kv.page_table.shape[1] * size
        if total > allowed:
            raise ContextLengthError(
                f"{given} tokens, a row of the page table holds {allowed}; shorten the request, or "
                "restart with a larger --context-length"
            )


def _output(
    seq: Sequence,
    token_ids: tuple[int, ...] = (),
    logprobs: tuple[TokenLogprob, ...] = (),
    finish: FinishReason | None = None,
) -> TokenOutput:
    return TokenOutput(
        rid=seq.request.rid,
        token_ids=token_ids,
        logprobs=logprobs,
        finish=finish,
        num_cached=seq.num_cached,
        num_retractions=seq.num_retractions,
    )


def _resolved(value: int | None, name: str) -> int:
    if value is None:
        raise ValueError(f"{name} is None; pass the config through resolve() first")
    return value
