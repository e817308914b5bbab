"""Counters, histograms and gauges, read back from the text that Prometheus gets."""

import re

import pytest

from jaxserve.metrics import EngineStats, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("pet")


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """The sample of ``name`` that carries ``labels``."""
    wanted = {f'{key}="{text}"' for key, text in ({"model_name": "pet"} | labels).items()}
    for line in metrics.render().decode().splitlines():
        found = re.fullmatch(r"([\w:]+)\{(.*)\} (\S+)", line)
        if found and found[1] == name and wanted == set(found[2].split(",")):
            return float(found[3])
    raise LookupError(name)


def test_a_request_is_counted(metrics: Metrics) -> None:
    metrics.request_started(7)
    metrics.first_token(0.3)
    metrics.inter_token(0.003)
    metrics.request_finished(e2e_s=1.5, completion_tokens=2, cached_tokens=4)
    metrics.request_started(3)
    metrics.request_aborted(completion_tokens=1)
    assert value(metrics, "sglang:prompt_tokens_total") == 10
    assert value(metrics, "sglang:generation_tokens_total") == 3
    assert value(metrics, "sglang:cached_tokens_total", cache_source="device") == 4
    assert value(metrics, "sglang:num_requests_total") == 1
    assert value(metrics, "sglang:num_aborted_requests_total") == 1
    assert value(metrics, "sglang:time_to_first_token_seconds_bucket", le="0.2") == 0
    assert value(metrics, "sglang:time_to_first_token_seconds_bucket", le="0.4") == 1
    assert value(metrics, "sglang:inter_token_latency_seconds_bucket", le="0.004") == 1
    assert value(metrics, "sglang:e2e_request_latency_seconds_sum") == 1.5


def test_gauges_show_the_last_step(metrics: Metrics) -> None:
    metrics.step(EngineStats(num_running=9))
    metrics.step(
        EngineStats(
            num_running=2, num_waiting=3, num_used_tokens=320, num_evictable_tokens=160,
            max_total_num_tokens=1600, page_size=16, gen_throughput=55.5, cache_hit_rate=0.25,
            num_retractions=4, num_prefill_tokens_total=100, num_decode_tokens_total=50,
        )
    )  # fmt: skip
    expected = {
        "num_running_reqs": 2, "num_queue_reqs": 3, "num_used_tokens": 320, "token_usage": 0.2,
        "kv_available_tokens": 1120, "kv_evictable_tokens": 160, "max_total_num_tokens": 1600,
        "page_size": 16, "num_pages": 100, "gen_throughput": 55.5, "cache_hit_rate": 0.25,
        "num_retracted_requests_total": 4,
    }  # fmt: skip
    for name, number in expected.items():
        assert value(metrics, f"sglang:{name}") == number
    assert value(metrics, "sglang:realtime_tokens_total", mode="prefill_compute") == 100
    assert value(metrics, "sglang:realtime_tokens_total", mode="decode") == 50


def test_nothing_in_the_pool_is_no_division_by_zero() -> None:
    assert EngineStats().token_usage == 0.0


def test_start_up_and_http(metrics: Metrics) -> None:
    metrics.compiled(3, 1.25)
    metrics.started(9.0)
    metrics.http_started("/generate", "POST")
    assert value(metrics, "sglang:http_requests_active") == 1
    metrics.http_finished("/generate", "POST", 200)
    assert value(metrics, "sglang:http_requests_active") == 0
    labels = {"endpoint": "/generate", "method": "POST"}
    assert value(metrics, "sglang:http_requests_total", **labels) == 1
    assert value(metrics, "sglang:http_responses_total", **labels, status_code="200") == 1
    assert value(metrics, "jaxserve:compiled_buckets_total") == 3
    assert value(metrics, "jaxserve:compile_seconds_total") == 1.25
    assert value(metrics, "sglang:startup_time_seconds") == 9


def test_two_servers_in_one_process_do_not_share_counters(metrics: Metrics) -> None:
    Metrics("pet").request_started(5)
    assert value(metrics, "sglang:prompt_tokens_total") == 0
