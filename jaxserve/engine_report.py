"""What the engine tells of itself: log lines, and the snapshot behind ``Engine.stats``."""

import logging
import time

from jaxserve.batch import Mode
from jaxserve.config import EngineConfig
from jaxserve.metrics import EngineStats, Metrics
from jaxserve.scheduler import BatchPlan, Scheduler

logger = logging.getLogger("jaxserve.engine")


class EngineReport:
    """Counts steps and tokens; every method is called on the engine thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        metrics: Metrics,
        config: EngineConfig,
        max_total_num_tokens: int,
    ) -> None:
        self._scheduler = scheduler
        self._metrics = metrics
        self._log_interval = config.decode_log_interval
        self._capacity = max_total_num_tokens
        self._num_steps = 0
        self._num_decode_steps = 0
        self._num_prefill_tokens = 0
        self._num_decode_tokens = 0
        self._throughput = 0.0
        self._interval_start_s = time.monotonic()
        self._interval_tokens = 0
        self.stats = EngineStats()
        self.refresh()

    def launched(self, plan: BatchPlan) -> None:
        """A plan went to the device."""
        if plan.mode is Mode.DECODE:
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

    def finished(self, plan: BatchPlan, num_tokens: int) -> None:
        """A step's tokens are known."""
        self._num_steps += 1
        self._num_decode_tokens += num_tokens
        self._interval_tokens += num_tokens
        self.refresh()
        if plan.mode is Mode.EXTEND:
            return
        self._num_decode_steps += 1
        if self._num_decode_steps % self._log_interval == 0:
            self._close_interval()
            logger.info(
                "Decode batch. #running-req: %d, #token: %d, token usage: %.2f, "
                "gen throughput (token/s): %.2f, #queue-req: %d",
                self.stats.num_running,
                self.stats.num_used_tokens,
                self.stats.token_usage,
                self._throughput,
                self.stats.num_waiting,
            )

    def idle(self) -> None:
        """Nothing is left to do: idle time is not part of any throughput."""
        self.refresh()
        self._interval_start_s = time.monotonic()
        self._interval_tokens = 0

    def refresh(self) -> None:
        """Take a new snapshot."""
        pages = self._scheduler.stats()
        used = pages.num_pages - 1 - pages.num_free_pages - pages.num_evictable_pages
        self.stats = EngineStats(
            num_running=pages.num_running,
            num_waiting=pages.num_waiting,
            num_used_tokens=used * pages.page_size,
            num_evictable_tokens=pages.num_evictable_pages * pages.page_size,
            max_total_num_tokens=self._capacity,
            page_size=pages.page_size,
            gen_throughput=self._throughput,
            cache_hit_rate=pages.num_cached_tokens / max(1, pages.num_prompt_tokens),
            num_retractions=pages.num_retractions,
            num_steps_total=self._num_steps,
            num_prefill_tokens_total=self._num_prefill_tokens,
            num_cached_tokens_total=pages.num_cached_tokens,
            num_decode_tokens_total=self._num_decode_tokens,
        )
        self._metrics.step(self.stats)

    def _close_interval(self) -> None:
        now_s = time.monotonic()
        self._throughput = self._interval_tokens / max(1e-9, now_s - self._interval_start_s)
        self._interval_start_s = now_s
        self._interval_tokens = 0
