"""What is counted and timed: one ``Metrics`` object, made once and passed down.

Names follow SGLang's (``sglang:`` prefix), so that its dashboards work unchanged; what SGLang
has no name for carries ``jaxserve:``.  Every method may be called from any thread.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TTFT_BUCKETS_S = (
    0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400,
)  # fmt: skip
INTER_TOKEN_BUCKETS_S = (
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08,
    0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8,
)  # fmt: skip
E2E_BUCKETS_S = (
    0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400, 600, 1200,
    1800, 2400,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine after one step.  ``num_*_total`` count since start-up."""

    num_running: int = 0  # sequences
    num_waiting: int = 0  # sequences
    num_used_tokens: int = 0  # KV held by running sequences, in tokens
    num_evictable_tokens: int = 0  # KV held only by the prefix cache, in tokens
    max_total_num_tokens: int = 0  # KV pool size in tokens
    page_size: int = 1
    gen_throughput: float = 0.0  # output tokens per second over the last log interval
    cache_hit_rate: float = 0.0  # cached prompt tokens / prompt tokens, since start-up
    num_retractions: int = 0  # since start-up
    num_steps_total: int = 0
    num_prefill_tokens_total: int = 0  # prompt tokens computed
    num_cached_tokens_total: int = 0  # prompt tokens found in the prefix cache
    num_decode_tokens_total: int = 0

    @property
    def num_available_tokens(self) -> int:
        """KV tokens that nobody holds."""
        return self.max_total_num_tokens - self.num_used_tokens - self.num_evictable_tokens

    @property
    def token_usage(self) -> float:
        """Share of the KV pool held by running sequences, 0 to 1."""
        return self.num_used_tokens / max(1, self.max_total_num_tokens)


class Metrics:
    """Counters, histograms and the last ``EngineStats``, rendered as Prometheus text."""

    content_type = CONTENT_TYPE

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model = {"model_name": model_name}
        self._stats = _StatsCollector(model_name)
        self.registry.register(self._stats)
        self._requests = self._counter("sglang:num_requests", "Requests finished")
        self._aborted = self._counter("sglang:num_aborted_requests", "Requests aborted")
        self._prompt_tokens = self._counter("sglang:prompt_tokens", "Prompt tokens received")
        self._output_tokens = self._counter("sglang:generation_tokens", "Tokens generated")
        self._cached_tokens = self._counter(
            "sglang:cached_tokens", "Prompt tokens found in the prefix cache", ("cache_source",)
        )
        self._ttft = self._histogram(
            "sglang:time_to_first_token_seconds", "Arrival to first token", TTFT_BUCKETS_S
        )
        self._itl = self._histogram(
            "sglang:inter_token_latency_seconds", "Gap between tokens", INTER_TOKEN_BUCKETS_S
        )
        self._e2e = self._histogram(
            "sglang:e2e_request_latency_seconds", "Arrival to last token", E2E_BUCKETS_S
        )
        self._compiled = self._counter("jaxserve:compiled_buckets", "Buckets compiled")
        self._compile_seconds = self._counter("jaxserve:compile_seconds", "Time spent compiling")
        self._startup = self._gauge("sglang:startup_time_seconds", "Launch to ready")
        self._http_active = self._gauge("sglang:http_requests_active", "HTTP requests being served")
        self._http_requests = self._counter(
            "sglang:http_requests", "HTTP requests received", ("endpoint", "method")
        )
        self._http_responses = self._counter(
            "sglang:http_responses", "HTTP responses sent", ("endpoint", "method", "status_code")
        )

    # --- requests (LLM) ---

    def request_started(self, prompt_tokens: int) -> None:
        """A sequence was accepted."""
        self._prompt_tokens.inc(prompt_tokens)

    def first_token(self, seconds: float) -> None:
        """Time from arrival to the first token."""
        self._ttft.observe(seconds)

    def inter_token(self, seconds: float) -> None:
        """Time between two tokens of one sequence."""
        self._itl.observe(seconds)

    def request_finished(
        self, *, e2e_s: float, completion_tokens: int, cached_tokens: int = 0
    ) -> None:
        """A sequence ended by itself (stop or length)."""
        self._requests.inc()
        self._e2e.observe(e2e_s)
        self._output_tokens.inc(completion_tokens)
        self._cached_tokens.labels(**self._model, cache_source="device").inc(cached_tokens)

    def request_aborted(self, *, completion_tokens: int = 0) -> None:
        """A sequence was ended from outside: abort, disconnect or an engine error."""
        self._aborted.inc()
        self._output_tokens.inc(completion_tokens)

    # --- engine ---

    def step(self, stats: EngineStats) -> None:
        """Keep the latest snapshot; the gauges are computed from it when they are read."""
        self._stats.stats = stats

    def compiled(self, count: int, seconds: float) -> None:
        """``count`` buckets were compiled in ``seconds`` of wall time."""
        self._compiled.inc(count)
        self._compile_seconds.inc(seconds)

    def started(self, seconds: float) -> None:
        """The server became ready ``seconds`` after it was launched."""
        self._startup.set(seconds)

    # --- HTTP ---

    def http_started(self, endpoint: str, method: str) -> None:
        """A request arrived at ``endpoint``, a route and never a raw path."""
        self._http_active.inc()
        self._http_requests.labels(**self._model, endpoint=endpoint, method=method).inc()

    def http_finished(self, endpoint: str, method: str, status: int) -> None:
        """Its response was sent, or its client went away (status 499)."""
        self._http_active.dec()
        self._http_responses.labels(
            **self._model, endpoint=endpoint, method=method, status_code=str(status)
        ).inc()

    def render(self) -> bytes:
        """The Prometheus text format of everything above."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        metric = Counter(name, text, ("model_name", *labels), registry=self.registry)
        return metric if labels else metric.labels(**self._model)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ("model_name",), registry=self.registry).labels(**self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            name, text, ("model_name",), registry=self.registry, buckets=buckets
        ).labels(**self._model)


class _StatsCollector(Collector):
    """Gauges of the last ``EngineStats``: a step costs one assignment, a scrape the rest."""

    def __init__(self, model_name: str) -> None:
        self.stats = EngineStats()
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        stats = self.stats
        gauges = {
            "num_running_reqs": (stats.num_running, "Running sequences"),
            "num_queue_reqs": (stats.num_waiting, "Waiting sequences"),
            "num_used_tokens": (stats.num_used_tokens, "KV tokens held by running sequences"),
            "token_usage": (stats.token_usage, "Share of the KV pool in use"),
            "kv_used_tokens": (stats.num_used_tokens, "KV tokens held by running sequences"),
            "kv_evictable_tokens": (stats.num_evictable_tokens, "KV tokens only cached"),
            "kv_available_tokens": (stats.num_available_tokens, "KV tokens free"),
            "max_total_num_tokens": (stats.max_total_num_tokens, "KV pool size in tokens"),
            "page_size": (stats.page_size, "Tokens per page"),
            "num_pages": (stats.max_total_num_tokens // stats.page_size, "Pages in the KV pool"),
            "gen_throughput": (stats.gen_throughput, "Output tokens per second"),
            "cache_hit_rate": (stats.cache_hit_rate, "Prefix cache hit rate"),
        }
        for name, (value, text) in gauges.items():
            family = GaugeMetricFamily(f"sglang:{name}", text, labels=("model_name",))
            family.add_metric((self._model_name,), float(value))
            yield family
        yield self._counter(
            "sglang:num_retracted_requests", "Retractions", "", {"": stats.num_retractions}
        )
        yield self._counter(
            "sglang:realtime_tokens",
            "Tokens computed or found cached",
            "mode",
            {
                "prefill_compute": stats.num_prefill_tokens_total,
                "prefill_cache": stats.num_cached_tokens_total,
                "decode": stats.num_decode_tokens_total,
            },
        )
        yield self._counter("jaxserve:steps", "Device steps", "", {"": stats.num_steps_total})
        yield self._counter(
            "sglang:process_cpu_seconds",
            "CPU time of the process",
            "component",
            {"server": time.process_time()},
        )

    def _counter(
        self, name: str, text: str, label: str, values: dict[str, float]
    ) -> CounterMetricFamily:
        labels = ("model_name", label) if label else ("model_name",)
        family = CounterMetricFamily(name, text, labels=labels)
        for key, value in values.items():
            family.add_metric((self._model_name, key) if label else (self._model_name,), value)
        return family
