"""What is counted and timed: one ``Metrics`` object, made once and passed down.

Names follow SGLang's (``sglang:`` prefix), so that its dashboards work unchanged; what SGLang
has no name for carries ``jaxserve:``.  Every method may be called from any thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from jaxserve.engine_stats import EngineStats
from jaxserve.histogram import Histogram
from jaxserve.stats_metrics import StatsCollector

__all__ = ["EngineStats", "MetricBuckets", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# There is one engine of one rank in a process: labels for SGLang's dashboards.
RANK_LABELS = {"engine_type": "unified", "tp_rank": "0", "pp_rank": "0", "moe_ep_rank": "0"}
STREAMING = ("false", "true")
STAGES = ("request_process", "prefill_forward", "chunked_prefill")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricBuckets:
    """Upper bounds of the histograms: SGLang's, in seconds and tokens."""

    ttft_s: tuple[float, ...] = (
        0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400,
    )  # fmt: skip
    inter_token_s: tuple[float, ...] = (
        0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08,
        0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8,
    )  # fmt: skip
    e2e_s: tuple[float, ...] = (
        0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400, 600, 1200,
        1800, 2400,
    )  # fmt: skip
    queue_s: tuple[float, ...] = (
        0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 10, 15, 20, 30, 40, 50, 60, 70,
        80, 90, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1200, 1400, 1600, 1800, 2000,
        2500, 3000,
    )  # fmt: skip
    grammar_s: tuple[float, ...] = (
        0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 90, 120, 240,
    )  # fmt: skip
    eviction_s: tuple[float, ...] = (
        0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.009, 0.01, 0.02, 0.03, 0.04,
        0.05, 0.1, 0.2, 0.5, 1,
    )  # fmt: skip
    stage_s: tuple[float, ...] = tuple(0.001 * 1.62**i for i in range(30))
    function_s: tuple[float, ...] = tuple(0.05 * 1.5**i for i in range(18))
    prompt_tokens: tuple[float, ...] = (
        100, 300, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10000,
        12500, 15000, 17500, 20000, 22500, 25000, 27500, 30000, 35000, 40000, 60000, 80000,
        100000, 200000, 300000, 400000, 600000, 800000, 1000000, 1100000,
    )  # fmt: skip
    generation_tokens: tuple[float, ...] = prompt_tokens


class Metrics:
    """Counters, histograms and the last ``EngineStats``, rendered as Prometheus text."""

    content_type = CONTENT_TYPE

    def __init__(
        self,
        model_name: str,
        *,
        extra_labels: Mapping[str, str] | None = None,
        buckets: MetricBuckets | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self._extra = dict(extra_labels or {})
        self._model = {"model_name": model_name} | self._extra
        self._labels = self._model | RANK_LABELS
        self._stats = StatsCollector(self._labels)
        self.registry.register(self._stats)
        self._add_request_counters()
        self._add_histograms(buckets or MetricBuckets())
        self._compiled = self._counter("jaxserve:compiled_buckets", "Buckets compiled")
        self._compile_seconds = self._counter("jaxserve:compile_seconds", "Time spent compiling")
        self._startup = self._gauge("sglang:startup_time_seconds", "Launch to ready", "phase")
        self._context_len = Gauge(
            "sglang:context_len", "Longest prompt plus output, in tokens", tuple(self._labels),
            registry=self.registry,
        ).labels(**self._labels)  # fmt: skip
        self._graphs = self._gauge(
            "sglang:startup_cuda_graph_time_seconds", "Compilation at start", "phase"
        )
        self._http_active = Gauge(
            "sglang:http_requests_active", "HTTP requests being served", tuple(self._model),
            registry=self.registry,
        ).labels(**self._model)  # fmt: skip
        self._http_requests = self._http("requests", "HTTP requests received", "endpoint", "method")
        self._http_responses = self._http(
            "responses", "HTTP responses sent", "endpoint", "method", "status_code"
        )
        self._http_series: dict[tuple[str, ...], Counter] = {}

    def _add_request_counters(self) -> None:
        self._requests = self._by_streaming("sglang:num_requests", "Requests finished")
        self._constrained = self._counter("sglang:num_so_requests", "Requests with a grammar")
        self._aborted = self._counter("sglang:num_aborted_requests", "Requests aborted")
        self._prompt_tokens = self._by_streaming(
            "sglang:prompt_tokens", "Prompt tokens of requests that have ended"
        )
        self._output_tokens = self._by_streaming(
            "sglang:generation_tokens", "Tokens of requests that have ended"
        )
        self._cached_tokens = Counter(
            "sglang:cached_tokens", "Prompt tokens found in the prefix cache",
            (*self._labels, "cache_source"), registry=self.registry,
        ).labels(**self._labels, cache_source="device")  # fmt: skip

    def _add_histograms(self, bounds: MetricBuckets) -> None:
        by_streaming = ("is_streaming", STREAMING)
        ttft = self._histogram(
            "time_to_first_token_seconds", "Arrival to first token", bounds.ttft_s, by_streaming
        )
        e2e = self._histogram(
            "e2e_request_latency_seconds", "Arrival to last token", bounds.e2e_s, by_streaming
        )
        self._ttft = tuple(ttft.series[value] for value in STREAMING)
        self._e2e = tuple(e2e.series[value] for value in STREAMING)
        self._itl = self._histogram(
            "inter_token_latency_seconds", "Gap between tokens", bounds.inter_token_s
        ).series[""]
        tpot = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean gap between the tokens of a request",
            bounds.inter_token_s,
            by_streaming,
        )
        self._tpot = tuple(tpot.series[value] for value in STREAMING)
        self._queue = self._histogram(
            "queue_time_seconds", "Arrival to first step", bounds.queue_s
        ).series[""]
        self._prompt_lens = self._histogram(
            "prompt_tokens_histogram", "Prompt length", bounds.prompt_tokens
        ).series[""]
        self._uncached_lens = self._histogram(
            "uncached_prompt_tokens_histogram", "Prompt tokens computed", bounds.prompt_tokens
        ).series[""]
        self._output_lens = self._histogram(
            "generation_tokens_histogram", "Output length", bounds.generation_tokens
        ).series[""]
        self._grammar_s = self._histogram(
            "grammar_compilation_time_seconds", "Compiling a grammar", bounds.grammar_s
        ).series[""]
        self._eviction = self._histogram(
            "eviction_duration_seconds", "Evicting cached prefixes, once", bounds.eviction_s
        ).series[""]
        self._stages = self._histogram(
            "per_stage_req_latency_seconds",
            "Stages: request_process, arrival to the engine's queue (text to tokens, grammar); "
            "prefill_forward, first step to first token; chunked_prefill, a step that computed a "
            "piece of a prompt and not its end",
            bounds.stage_s,
            ("stage", STAGES),
        )
        # SGLang gives it no rank and no model.
        self._functions = Histogram(
            "sglang:func_latency_seconds",
            "Answering an HTTP request, to its last byte, by the handler's name",
            bounds.function_s,
            self._extra,
            "name",
            (),
        )
        self.registry.register(self._functions)

    # --- requests (LLM) ---

    def request_started(self, seconds: float, *, has_grammar: bool = False) -> None:
        """A sequence was queued so long after its arrival."""
        self.stage("request_process", seconds)
        if has_grammar:
            self._constrained.inc()

    def queued(self, seconds: float) -> None:
        """Time from arrival to the first step of a sequence."""
        self._queue.observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """A sequence was in one of ``STAGES`` for so long."""
        self._stages.series[name].observe(seconds)

    def first_token(self, seconds: float, *, is_streaming: bool = False) -> None:
        """Time from arrival to the first token."""
        self._ttft[is_streaming].observe(seconds)

    def inter_token(self, seconds: float) -> None:
        """Time between two tokens of one sequence."""
        self._itl.observe(seconds)

    def request_finished(
        self,
        *,
        e2e_s: float,
        completion_tokens: int,
        prompt_tokens: int = 0,
        cached_tokens: int = 0,
        decode_s: float | None = None,
        is_streaming: bool = False,
    ) -> None:
        """A sequence ended by itself (stop or length).

        Args:
            decode_s: from its first token to its last.
        """
        self._requests[is_streaming].inc()
        self._e2e[is_streaming].observe(e2e_s)
        self._prompt_tokens[is_streaming].inc(prompt_tokens)
        self._output_tokens[is_streaming].inc(completion_tokens)
        self._cached_tokens.inc(cached_tokens)
        self._prompt_lens.observe(prompt_tokens)
        self._uncached_lens.observe(prompt_tokens - cached_tokens)
        self._output_lens.observe(completion_tokens)
        if decode_s is not None and completion_tokens > 1:
            self._tpot[is_streaming].observe(decode_s / (completion_tokens - 1))

    def request_aborted(
        self, *, completion_tokens: int = 0, prompt_tokens: int = 0, is_streaming: bool = False
    ) -> None:
        """A sequence was ended from outside: abort, disconnect or an engine error."""
        self._aborted.inc()
        self._prompt_tokens[is_streaming].inc(prompt_tokens)
        self._output_tokens[is_streaming].inc(completion_tokens)

    def grammar_compiled(self, seconds: float) -> None:
        """A grammar that was not cached was compiled."""
        self._grammar_s.observe(seconds)

    # --- engine ---

    def step(self, stats: EngineStats) -> None:
        """Keep the latest snapshot; the gauges are computed from it when they are read."""
        self._stats.stats = stats

    def evicted(self, seconds: float) -> None:
        """Cached prefixes were forgotten to make room."""
        self._eviction.observe(seconds)

    def compiled(self, count: int, seconds: float) -> None:
        """``count`` buckets were compiled in ``seconds`` of wall time."""
        self._compiled.inc(count)
        self._compile_seconds.inc(seconds)
        self._graphs.labels(**self._labels, phase="total").inc(seconds)

    def started(self, seconds: float, *, warm_up_s: float = 0.0, context_len: int = 0) -> None:
        """The server became ready ``seconds`` after its launch, ``warm_up_s`` of it generating."""
        self._context_len.set(context_len)
        self._startup.labels(**self._labels, phase="total").set(seconds)
        self._startup.labels(**self._labels, phase="warmup").set(warm_up_s)

    # --- HTTP ---

    def http_started(self, endpoint: str, method: str) -> None:
        """A request arrived at ``endpoint``, a route and never a raw path."""
        self._http_active.inc()
        self._series(self._http_requests, endpoint, method).inc()

    def http_finished(self, endpoint: str, method: str, status: int) -> None:
        """Its response was sent, or its client went away (status 499)."""
        self._http_active.dec()
        self._series(self._http_responses, endpoint, method, str(status)).inc()

    def http_handled(self, function: str, seconds: float) -> None:
        """The handler of this name has come to its end."""
        self._functions.of(function).observe(seconds)

    def render(self) -> bytes:
        """The Prometheus text format of everything above."""
        return generate_latest(self.registry)

    def _series(self, counter: Counter, *values: str) -> Counter:
        """The child of ``counter``: prometheus-client's own look-up costs ten times as much."""
        child = self._http_series.get(values)
        if child is None:
            child = self._http_series[values] = counter.labels(*self._model.values(), *values)
        return child

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, tuple(self._labels), registry=self.registry).labels(
            **self._labels
        )

    def _by_streaming(self, name: str, text: str) -> tuple[Counter, ...]:
        """The child of whole answers and that of streams."""
        counter = Counter(name, text, (*self._labels, "is_streaming"), registry=self.registry)
        return tuple(counter.labels(**self._labels, is_streaming=value) for value in STREAMING)

    def _http(self, name: str, text: str, *labels: str) -> Counter:
        names = (*self._model, *labels)
        return Counter(f"sglang:http_{name}", text, names, registry=self.registry)

    def _gauge(self, name: str, text: str, label: str) -> Gauge:
        return Gauge(name, text, (*self._labels, label), registry=self.registry)

    def _histogram(
        self,
        name: str,
        text: str,
        bounds: tuple[float, ...],
        label: tuple[str, tuple[str, ...]] = ("", ("",)),
    ) -> Histogram:
        histogram = Histogram(f"sglang:{name}", text, bounds, self._labels, *label)
        self.registry.register(histogram)
        return histogram
