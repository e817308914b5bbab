"""The gauges and counters of ``EngineStats``: a step costs one assignment, a scrape the rest."""

import time
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jaxserve.engine_stats import EngineStats

GIB = 2**30
# What SGLang counts and this server does not have, by the reason.  Its dashboards and tests read
# the first, which are always 0; the others it makes only where the feature is on, or there is no
# honest value of them.
ALWAYS_ZERO: Mapping[str, tuple[str, ...]] = {
    "there is no speculative decoding": ("spec_accept_length", "spec_accept_rate"),
    "XLA does not tell what its CUDA graphs take": ("graph_memory_usage_gb",),
    "requests have no routing keys": (
        "routing_keys_active", "num_unique_running_routing_keys",
        "routing_key_running_req_count", "routing_key_all_req_count",
    ),
    "prompts and outputs are computed by one engine": (
        "prefill_queue_depth", "decode_queue_depth",
    ),
    "there are no sliding-window layers": ("swa_token_usage",),
    "there is no LoRA": (
        "lora_pool_slots_used", "lora_pool_slots_total", "lora_pool_utilization",
    ),
    "the prefixes of sessions are in the prefix cache, as all others": (
        "streaming_session_held_tokens",
    ),
}  # fmt: skip
NOT_EMITTED: Mapping[str, tuple[str, ...]] = {
    "there is no speculative decoding": ("spec_verify_calls_total",),
    "XLA decides which steps are CUDA graphs, and does not tell": (
        "is_cuda_graph", "cuda_graph_passes_total",
    ),
    "a sequence is admitted with its pages, not with a share of its longest output": (
        "new_token_ratio",
    ),
    "weights are loaded once, at the start": ("weight_load_duration_seconds",),
    "the prefix cache is on the device only": (
        "hicache_host_used_tokens", "hicache_host_total_tokens", "hicache_backup_tokens_total",
        "load_back_tokens_total", "prefetched_tokens_total", "backuped_tokens_total",
    ),
    "KV stays in the engine that computed it": (
        "kv_transfer_speed_gb_s", "kv_transfer_latency_ms", "kv_transfer_bootstrap_ms",
        "kv_transfer_alloc_ms", "kv_transfer_total_mb",
    ),
}  # fmt: skip


class StatsCollector(Collector):
    """Renders the last ``EngineStats``; ``stats`` is assigned by whoever has a newer one."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.stats = EngineStats()
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """All families, computed now."""
        stats = self.stats
        for name, (value, text) in _gauges(stats).items():
            family = GaugeMetricFamily(f"sglang:{name}", text, labels=tuple(self._labels))
            family.add_metric(tuple(self._labels.values()), float(value))
            yield family
        for reason, names in ALWAYS_ZERO.items():
            for name in names:
                family = GaugeMetricFamily(
                    f"sglang:{name}", f"Always 0: {reason}", labels=tuple(self._labels)
                )
                family.add_metric(tuple(self._labels.values()), 0.0)
                yield family
        for name, (value, text) in _counters(stats).items():
            yield self._counter(name, text, "", {"": value})
        for name, (label, values, text) in _labelled_counters(stats).items():
            yield self._counter(name, text, label, values)

    def _counter(
        self, name: str, text: str, label: str, values: Mapping[str, float]
    ) -> CounterMetricFamily:
        names = (*self._labels, label) if label else tuple(self._labels)
        family = CounterMetricFamily(name, text, labels=names)
        for key, value in values.items():
            own = tuple(self._labels.values())
            family.add_metric((*own, key) if label else own, float(value))
        return family


def _gauges(stats: EngineStats) -> dict[str, tuple[float, str]]:
    return {
        "num_running_reqs": (stats.num_running, "Running sequences"),
        "num_queue_reqs": (stats.num_waiting, "Waiting sequences"),
        "num_grammar_queue_reqs": (stats.num_grammar_queue, "Requests waiting for a grammar"),
        "num_paused_reqs": (stats.num_paused, "Sequences held by a pause"),
        "num_retracted_reqs": (stats.num_retracted, "Waiting sequences that have run before"),
        "num_prefill_inflight_reqs": (stats.num_prefilling, "Sequences inside their prompt"),
        "num_used_tokens": (stats.num_used_tokens, "KV tokens held by running sequences"),
        "token_usage": (stats.token_usage, "Share of the KV pool in use"),
        "full_token_usage": (stats.token_usage, "Share of the KV pool in use"),
        "kv_used_tokens": (stats.num_used_tokens, "KV tokens held by running sequences"),
        "kv_evictable_tokens": (stats.num_evictable_tokens, "KV tokens only cached"),
        "kv_available_tokens": (stats.num_available_tokens, "KV tokens free"),
        "max_total_num_tokens": (stats.max_total_num_tokens, "KV pool size in tokens"),
        "max_running_requests": (stats.max_running, "Sequences that can run together"),
        "page_size": (stats.page_size, "Tokens per page"),
        "num_pages": (stats.max_total_num_tokens // stats.page_size, "Pages in the KV pool"),
        "decode_sum_seq_lens": (stats.sum_seq_lens, "Tokens of the running sequences"),
        "gen_throughput": (stats.gen_throughput, "Output tokens per second"),
        "cache_hit_rate": (stats.cache_hit_rate, "Prefix cache hit rate"),
        "num_streaming_sessions": (stats.num_streaming_sessions, "Open streaming sessions"),
        "utilization": (stats.utilization, "Larger share of slots or KV pool in use"),
        "weight_memory_usage_gb": (stats.weight_bytes / GIB, "Weights on one device, GiB"),
        "kv_cache_memory_usage_gb": (stats.kv_cache_bytes / GIB, "KV pool on one device, GiB"),
        "startup_available_gpu_memory_gb": (
            stats.free_bytes_at_start / GIB, "Free device memory at start, GiB",
        ),
    }  # fmt: skip


def _counters(stats: EngineStats) -> dict[str, tuple[float, str]]:
    return {
        "sglang:num_retracted_requests": (stats.num_retractions, "Retractions"),
        "sglang:num_retracted_input_tokens": (
            stats.num_retracted_input_tokens_total, "Prompt tokens of retracted sequences",
        ),
        "sglang:num_retracted_output_tokens": (
            stats.num_retracted_output_tokens_total, "Output tokens of retracted sequences",
        ),
        "sglang:evicted_tokens": (stats.num_evicted_tokens_total, "KV tokens evicted"),
        "sglang:num_grammar": (stats.num_grammars_total, "Grammars asked for"),
        "sglang:num_grammar_cache_hit": (
            stats.num_grammar_cache_hits_total, "Grammars found compiled",
        ),
        "sglang:num_grammar_aborted": (stats.num_grammar_aborts_total, "Grammars refused"),
        "sglang:num_grammar_timeout": (stats.num_grammar_timeouts_total, "Grammars out of time"),
        "sglang:scheduler_idle_seconds": (stats.idle_s_total, "Engine thread without work"),
        "sglang:scheduler_process_cpu_seconds": (stats.cpu_s_total, "CPU time of the engine"),
        "jaxserve:grammar_compile_seconds": (stats.grammar_s_total, "Time compiling grammars"),
        "jaxserve:steps": (stats.num_steps_total, "Device steps"),
        "jaxserve:recompiles": (
            stats.num_recompiles_total, "Programs compiled after warm-up, each a defect",
        ),
    }  # fmt: skip


def _labelled_counters(stats: EngineStats) -> dict[str, tuple[str, dict[str, float], str]]:
    extend_used = min(stats.num_prefill_tokens_total, stats.num_extend_slots_total)
    return {
        "sglang:realtime_tokens": (
            "mode",
            {
                "prefill_compute": stats.num_prefill_tokens_total,
                "prefill_cache": stats.num_cached_tokens_total,
                "decode": stats.num_decode_tokens_total,
            },
            "Tokens computed or found cached",
        ),
        "sglang:forward_execution_seconds": (
            "category",
            {"extend": stats.extend_s_total, "decode": stats.decode_s_total},
            "Time in device steps",
        ),
        "sglang:scheduler_stage_seconds": (
            "category",
            {
                "get_next_batch_to_run": stats.schedule_s_total,
                "process_batch_result": stats.process_s_total,
                "idle": stats.idle_s_total,
            },
            "Time of the engine thread: planning, taking in results, without work",
        ),
        "sglang:process_cpu_seconds": (
            "component",
            {"tokenizer": time.process_time() - stats.cpu_s_total, "scheduler": stats.cpu_s_total},
            "CPU time: of the engine thread, and of all others",
        ),
        "jaxserve:bucket_slots": (
            "mode",
            {"extend": stats.num_extend_slots_total, "decode": stats.num_decode_slots_total},
            "Tokens (extend) and rows (decode) that the steps had room for",
        ),
        "jaxserve:bucket_padding_slots": (
            "mode",
            {
                "extend": stats.num_extend_slots_total - extend_used,
                "decode": stats.num_decode_slots_total - stats.num_decode_rows_total,
            },
            "Of jaxserve:bucket_slots, how many were padding",
        ),
    }
