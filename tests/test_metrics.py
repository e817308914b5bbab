"""Counters, histograms and gauges, read back from the text that Prometheus gets."""

import re
import threading
from itertools import chain

import pytest
from sglang_metrics import KINDS, emitted

from jaxserve.histogram import Series
from jaxserve.metrics import RANK_LABELS, STAGES, STREAMING, EngineStats, MetricBuckets, Metrics
from jaxserve.stats_metrics import ALWAYS_ZERO, NOT_EMITTED

# SGLang 0.5 has them under other names or not at all; its older dashboards read the first.
ALSO_EMITTED = {"max_running_requests"}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("pet")


def value(metrics: Metrics, name: str, ranks: bool = True, **labels: str) -> float:
    """The sample of ``name`` that carries ``labels``, and those of the rank where ``ranks``."""
    wanted = {"model_name": "pet"} | labels | (RANK_LABELS if ranks else {})
    for line in metrics.render().decode().splitlines():
        found = re.fullmatch(r"([\w:]+)\{(.*)\} (\S+)", line)
        if found and found[1] == name and dict(re.findall(r'(\w+)="([^"]*)"', found[2])) == wanted:
            return float(found[3])
    raise LookupError(name)


def test_a_request_is_counted(metrics: Metrics) -> None:
    metrics.request_started(0.0015, has_grammar=True)
    metrics.queued(0.02)
    metrics.first_token(0.3)
    metrics.first_token(0.3, is_streaming=True)
    metrics.inter_token(0.003)
    metrics.request_finished(
        e2e_s=1.5, prompt_tokens=7, completion_tokens=2, cached_tokens=4, decode_s=0.07
    )
    metrics.request_started(0.02)
    metrics.request_aborted(completion_tokens=1, prompt_tokens=3, is_streaming=True)
    metrics.grammar_compiled(0.4)
    expected = {
        "num_so_requests_total": 1, "num_aborted_requests_total": 1,
        "queue_time_seconds_sum": 0.02,
        "prompt_tokens_histogram_sum": 7, "uncached_prompt_tokens_histogram_sum": 3,
        "generation_tokens_histogram_sum": 2, "grammar_compilation_time_seconds_count": 1,
    }  # fmt: skip
    for name, number in expected.items():
        assert value(metrics, f"sglang:{name}") == number
    assert value(metrics, "sglang:cached_tokens_total", cache_source="device") == 4
    ttft = "sglang:time_to_first_token_seconds_bucket"
    for streaming in STREAMING:
        assert value(metrics, ttft, le="0.2", is_streaming=streaming) == 0
        assert value(metrics, ttft, le="0.4", is_streaming=streaming) == 1
        assert value(metrics, ttft, le="+Inf", is_streaming=streaming) == 1
    assert value(metrics, "sglang:inter_token_latency_seconds_bucket", le="0.004") == 1
    by_streaming = {  # of whole answers, of streams
        "prompt_tokens_total": (7, 3), "generation_tokens_total": (2, 1),
        "num_requests_total": (1, 0), "e2e_request_latency_seconds_sum": (1.5, 0),
        "request_time_per_output_token_seconds_sum": (0.07, 0),
    }  # fmt: skip
    for name, numbers in by_streaming.items():
        found = [value(metrics, f"sglang:{name}", is_streaming=each) for each in STREAMING]
        assert tuple(found) == numbers
    stage = "sglang:per_stage_req_latency_seconds_count"
    assert value(metrics, stage, stage="request_process") == 2


def test_gauges_show_the_last_step(metrics: Metrics) -> None:
    metrics.step(EngineStats(num_running=9))
    metrics.step(
        EngineStats(
            num_running=2, num_waiting=3, num_used_tokens=320, num_evictable_tokens=160,
            max_total_num_tokens=1600, page_size=16, gen_throughput=55.5, cache_hit_rate=0.25,
            num_retractions=4, num_prefill_tokens_total=100, num_decode_tokens_total=50,
            max_running=4, weight_bytes=2**30, num_extend_slots_total=128,
            num_decode_slots_total=64, num_decode_rows_total=50, extend_s_total=2.5,
            num_recompiles_total=1, idle_s_total=9.5,
        )
    )  # fmt: skip
    expected = {
        "num_running_reqs": 2, "num_queue_reqs": 3, "num_used_tokens": 320, "token_usage": 0.2,
        "kv_available_tokens": 1120, "kv_evictable_tokens": 160, "max_total_num_tokens": 1600,
        "page_size": 16, "num_pages": 100, "gen_throughput": 55.5, "cache_hit_rate": 0.25,
        "num_retracted_requests_total": 4, "utilization": 0.5, "weight_memory_usage_gb": 1,
        "scheduler_idle_seconds_total": 9.5,
    }  # fmt: skip
    for name, number in expected.items():
        assert value(metrics, f"sglang:{name}") == number
    assert value(metrics, "sglang:realtime_tokens_total", mode="prefill_compute") == 100
    assert value(metrics, "sglang:realtime_tokens_total", mode="decode") == 50
    seconds = "sglang:forward_execution_seconds_total"
    assert value(metrics, seconds, category="extend") == 2.5
    assert value(metrics, "sglang:scheduler_stage_seconds_total", category="idle") == 9.5
    padding = "jaxserve:bucket_padding_slots_total"
    assert value(metrics, padding, mode="extend") == 28
    assert value(metrics, padding, mode="decode") == 14
    assert value(metrics, "jaxserve:recompiles_total") == 1


def test_nothing_in_the_pool_is_no_division_by_zero() -> None:
    assert (EngineStats().token_usage, EngineStats().utilization) == (0.0, 0.0)


def test_start_up_and_http(metrics: Metrics) -> None:
    metrics.compiled(3, 1.25)
    metrics.started(9.0, warm_up_s=0.5, context_len=512)
    metrics.http_started("/generate", "POST")
    assert value(metrics, "sglang:http_requests_active", ranks=False) == 1
    metrics.http_finished("/generate", "POST", 200)
    metrics.http_started("/generate", "POST")
    metrics.http_finished("/generate", "POST", 400)
    assert value(metrics, "sglang:http_requests_active", ranks=False) == 0
    labels = {"endpoint": "/generate", "method": "POST"}
    assert value(metrics, "sglang:http_requests_total", False, **labels) == 2
    assert value(metrics, "sglang:http_responses_total", False, **labels, status_code="200") == 1
    assert value(metrics, "jaxserve:compiled_buckets_total") == 3
    assert value(metrics, "jaxserve:compile_seconds_total") == 1.25
    assert value(metrics, "sglang:startup_cuda_graph_time_seconds", phase="total") == 1.25
    assert value(metrics, "sglang:context_len") == 512
    assert value(metrics, "sglang:startup_time_seconds", phase="total") == 9
    assert value(metrics, "sglang:startup_time_seconds", phase="warmup") == 0.5


def test_every_metric_of_sglang_is_there_or_has_a_reason_not_to_be(metrics: Metrics) -> None:
    metrics.compiled(1, 1.0)
    metrics.started(1.0)
    metrics.http_started("/generate", "POST")
    metrics.http_finished("/generate", "POST", 200)
    metrics.http_handled("generate", 1.0)
    found = emitted(metrics.render().decode())
    missing = set(chain(*NOT_EMITTED.values()))
    for kind, names in KINDS.items():
        assert found[kind] - ALSO_EMITTED == set(names) - missing, kind
    assert missing <= set(chain(*KINDS.values())), "a reason for what SGLang does not have"


def test_what_is_always_zero_says_why(metrics: Metrics) -> None:
    text = metrics.render().decode()
    for reason, names in ALWAYS_ZERO.items():
        for name in names:
            assert f"# HELP sglang:{name} Always 0: {reason}\n" in text
            assert value(metrics, f"sglang:{name}") == 0


def test_stages_evictions_and_handlers_are_timed(metrics: Metrics) -> None:
    metrics.stage("request_process", 0.0015)
    metrics.stage("chunked_prefill", 3.0)
    metrics.evicted(0.0025)
    metrics.http_handled("generate", 0.07)
    metrics.http_handled("generate", 0.01)
    metrics.http_handled("flush_cache", 60.0)
    stage = "sglang:per_stage_req_latency_seconds"
    first = {"le": "0.001", "stage": "request_process"}
    assert value(metrics, f"{stage}_bucket", **first) == 0
    assert value(metrics, f"{stage}_bucket", **first | {"le": "0.0016200000000000001"}) == 1
    counts = [value(metrics, f"{stage}_count", stage=name) for name in STAGES]
    assert dict(zip(STAGES, counts, strict=True)) == {
        "request_process": 1, "prefill_forward": 0, "chunked_prefill": 1,
    }  # fmt: skip
    eviction = "sglang:eviction_duration_seconds_bucket"
    assert [value(metrics, eviction, le=le) for le in ("0.002", "0.003")] == [0, 1]
    text = metrics.render().decode()
    function = "sglang:func_latency_seconds"  # SGLang's has no other label
    assert f'{function}_bucket{{le="0.05",name="generate"}} 1.0' in text
    assert f'{function}_count{{name="generate"}} 2.0' in text
    assert f'{function}_bucket{{le="+Inf",name="flush_cache"}} 1.0' in text


def test_labels_and_buckets_can_be_set() -> None:
    metrics = Metrics(
        "pet", extra_labels={"zone": "a"}, buckets=MetricBuckets(ttft_s=(0.5, 2.0), queue_s=(1.0,))
    )
    metrics.first_token(1.0)
    metrics.http_started("/generate", "POST")
    ttft = "sglang:time_to_first_token_seconds_bucket"
    labels = {"zone": "a", "is_streaming": "false"}
    assert [value(metrics, ttft, le=le, **labels) for le in ("0.5", "2.0", "+Inf")] == [0, 1, 1]
    with pytest.raises(LookupError):
        value(metrics, ttft, le="0.1", **labels)
    assert value(metrics, "sglang:http_requests_active", ranks=False, zone="a") == 1


def test_two_servers_in_one_process_do_not_share_counters(metrics: Metrics) -> None:
    Metrics("pet").request_aborted(prompt_tokens=5)
    assert value(metrics, "sglang:prompt_tokens_total", is_streaming="false") == 0


def test_no_observation_of_a_thread_is_lost() -> None:
    series = Series((1.0, 2.0))
    threads = [
        threading.Thread(target=lambda: [series.observe(1.5) for _ in range(2000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert series.read() == ([("1.0", 0.0), ("2.0", 8000.0), ("+Inf", 8000.0)], 12000.0)
