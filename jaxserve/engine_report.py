"""What the engine tells of itself: log lines, and the snapshot behind ``Engine.stats``."""

import logging
import time
from dataclasses import dataclass

from jaxserve.batch import Mode
from jaxserve.config import EngineConfig
from jaxserve.engine_stats import EngineStats
from jaxserve.metrics import Metrics
from jaxserve.request import TokenOutput
from jaxserve.scheduler import BatchPlan, Scheduler

logger = logging.getLogger("jaxserve.engine")

SNAPSHOT_S = 0.02  # a step may be shorter, and nobody reads more often


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """What is settled at the start, of one device."""

    num_tokens: int  # capacity of the KV pool
    weight_bytes: int
    kv_cache_bytes: int
    free_bytes: int  # before anything was loaded
    device_name: str  # as it calls itself


class EngineReport:
    """Counts steps, tokens and seconds; every method is called on the engine thread.

    ``stats`` is a new snapshot after a step that ended a sequence, and otherwise at most
    ``SNAPSHOT_S`` old while steps are made.
    """

    def __init__(
        self, scheduler: Scheduler, metrics: Metrics, config: EngineConfig, memory: DeviceMemory
    ) -> None:
        self.is_paused = False
        self._num_recompiles = 0
        self._scheduler = scheduler
        self._metrics = metrics
        self._log_interval = config.decode_log_interval
        self._max_running = config.max_running_requests or 0
        self._memory = memory
        self._num_steps = {mode: 0 for mode in Mode}
        self._num_slots = {mode: 0 for mode in Mode}
        self._step_s = {mode: 0.0 for mode in Mode}
        self._num_prefill_tokens = 0
        self._num_decode_rows = 0
        self._num_output_tokens = 0
        self._schedule_s = 0.0
        self._process_s = 0.0
        self._idle_s = 0.0
        self._throughput = 0.0
        self._interval_start_s = self._idle_since_s = self._fetched_s = time.perf_counter()
        self._interval_tokens = 0
        self._refreshed_s = 0.0
        self.stats = EngineStats()
        self.refresh()

    def launched(self, plan: BatchPlan, planning_s: float, num_recompiles: int) -> None:
        """A plan went to the device; ``num_recompiles`` is the total so far."""
        self._schedule_s += planning_s
        self._num_recompiles = num_recompiles
        mode = plan.mode
        self._num_steps[mode] += 1
        self._num_slots[mode] += plan.inputs.bucket.num_tokens
        if mode is Mode.DECODE:
            self._num_decode_rows += plan.num_new_tokens
            return
        self._num_prefill_tokens += plan.num_new_tokens
        logger.info(
            "Prefill batch. #new-seq: %d, #new-token: %d, #cached-token: %d, token usage: %.2f, "
            "#running-req: %d, #queue-req: %d",
            plan.num_new_sequences,
            plan.num_new_tokens,
            plan.num_cached_tokens,
            self.stats.token_usage,
            self._scheduler.num_running,
            self._scheduler.num_waiting,
        )

    def finished(
        self, plan: BatchPlan, outputs: list[TokenOutput], launched_s: float, fetched_s: float
    ) -> None:
        """A step's tokens are known and taken in.

        Args:
            launched_s, fetched_s: when it was launched, and when its tokens arrived
                (``perf_counter``).
        """
        mode = plan.mode
        step_s = fetched_s - max(launched_s, self._fetched_s)
        self._step_s[mode] += step_s
        self._fetched_s = fetched_s
        if mode is Mode.EXTEND and _has_piece_of_prompt(plan):
            self._metrics.stage("chunked_prefill", step_s)
        self.count(outputs)
        if mode is Mode.DECODE and self._num_steps[mode] % self._log_interval == 0:
            self._close_interval()
            logger.info(
                "Decode batch. #running-req: %d, #token: %d, token usage: %.2f, "
                "gen throughput (token/s): %.2f, #queue-req: %d",
                self._scheduler.num_running,
                self.stats.num_used_tokens,
                self.stats.token_usage,
                self._throughput,
                self._scheduler.num_waiting,
            )
        self._process_s += time.perf_counter() - fetched_s

    def delivering(self, outputs: list[TokenOutput]) -> None:
        """A turn is over; who sees that a sequence has ended is to see stats that know of it."""
        is_stale = time.perf_counter() - self._refreshed_s > SNAPSHOT_S
        if is_stale or any(output.finish is not None for output in outputs):
            self.refresh()

    def count(self, outputs: list[TokenOutput]) -> None:
        """Tokens were given out."""
        num_tokens = sum(len(output.token_ids) for output in outputs)
        self._num_output_tokens += num_tokens
        self._interval_tokens += num_tokens

    def idle(self) -> None:
        """Nothing is left to do: idle time is not part of any throughput."""
        self.refresh()
        self._idle_since_s = time.perf_counter()

    def woken(self) -> None:
        """There is something to do again."""
        self._interval_start_s = time.perf_counter()
        self._interval_tokens = 0
        self._idle_s += self._interval_start_s - self._idle_since_s

    def refresh(self) -> None:
        """Take a new snapshot."""
        now = self._scheduler.stats()
        used = now.num_pages - 1 - now.num_free_pages - now.num_evictable_pages
        self._refreshed_s = time.perf_counter()
        self.stats = EngineStats(
            num_running=now.num_running,
            num_waiting=now.num_waiting,
            num_prefilling=now.num_prefilling,
            num_retracted=now.num_retracted,
            num_paused=now.num_running + now.num_waiting if self.is_paused else 0,
            is_paused=self.is_paused,
            max_running=self._max_running,
            num_used_tokens=used * now.page_size,
            num_evictable_tokens=now.num_evictable_pages * now.page_size,
            max_total_num_tokens=self._memory.num_tokens,
            page_size=now.page_size,
            num_waiting_tokens=now.num_waiting_tokens,
            sum_seq_lens=now.num_running_tokens,
            gen_throughput=self._throughput,
            cache_hit_rate=now.num_cached_tokens / max(1, now.num_prompt_tokens),
            num_retractions=now.num_retractions,
            num_retracted_input_tokens_total=now.num_retracted_prompt_tokens,
            num_retracted_output_tokens_total=now.num_retracted_output_tokens,
            num_evicted_tokens_total=now.num_evicted_pages * now.page_size,
            num_steps_total=sum(self._num_steps.values()),
            num_extend_steps_total=self._num_steps[Mode.EXTEND],
            num_prefill_tokens_total=self._num_prefill_tokens,
            num_cached_tokens_total=now.num_cached_tokens,
            num_decode_tokens_total=self._num_output_tokens,
            num_extend_slots_total=self._num_slots[Mode.EXTEND],
            num_decode_slots_total=self._num_slots[Mode.DECODE],
            num_decode_rows_total=self._num_decode_rows,
            num_recompiles_total=self._num_recompiles,
            extend_s_total=self._step_s[Mode.EXTEND],
            decode_s_total=self._step_s[Mode.DECODE],
            idle_s_total=self._idle_s,
            schedule_s_total=self._schedule_s,
            process_s_total=self._process_s,
            cpu_s_total=time.thread_time(),
            weight_bytes=self._memory.weight_bytes,
            kv_cache_bytes=self._memory.kv_cache_bytes,
            free_bytes_at_start=self._memory.free_bytes,
            device_name=self._memory.device_name,
        )
        self._metrics.step(self.stats)

    def _close_interval(self) -> None:
        now_s = time.perf_counter()
        self._throughput = self._interval_tokens / max(1e-9, now_s - self._interval_start_s)
        self._interval_start_s = now_s
        self._interval_tokens = 0


def _has_piece_of_prompt(plan: BatchPlan) -> bool:
    """Whether the step ended inside a prompt; at most one row of a step does."""
    ends = plan.inputs.kv_lens.tolist()
    return any(ends[row] < seq.num_prompt for row, seq in enumerate(plan.rows))
