"""The arithmetic of the metrics, on results that can be checked by hand."""

import pytest
from serving_client import RequestResult
from serving_metrics import details, statistics_ms, summarise, table

RESULTS = [
    RequestResult(
        latency_s=1.0, ttft_s=0.2, itl_s=(0.3, 0.5), prompt_len=10, output_len=3, num_cached=4
    ),
    RequestResult(latency_s=3.0, ttft_s=3.0, prompt_len=20, output_len=1, num_cached=0),
    RequestResult(error="HTTP 503", latency_s=9.0),
]


def test_throughputs_count_good_requests_only() -> None:
    summary = summarise(RESULTS, 2.0)
    assert (summary["completed"], summary["failed"]) == (2, 1)
    assert summary["request_throughput"] == 1.0
    assert summary["input_throughput"] == 15.0
    assert summary["output_throughput"] == 2.0
    assert summary["total_throughput"] == 17.0
    assert summary["total_cached_tokens"] == 4
    assert summary["concurrency"] == 2.0


def test_latencies_are_in_ms_and_tpot_leaves_out_the_first_token() -> None:
    summary = summarise(RESULTS, 2.0)
    assert summary["mean_e2e_latency_ms"] == pytest.approx(2000)
    assert summary["median_ttft_ms"] == pytest.approx(1600)
    assert summary["mean_tpot_ms"] == pytest.approx(400)  # the one-token answer has none
    assert summary["mean_itl_ms"] == pytest.approx(400)
    assert summary["max_itl_ms"] == pytest.approx(500)


def test_cached_tokens_are_unknown_when_one_answer_is_silent() -> None:
    silent = RequestResult(latency_s=1.0, ttft_s=1.0, prompt_len=1, output_len=1)
    assert summarise([RESULTS[0], silent], 1.0)["total_cached_tokens"] is None


def test_no_sample_gives_zeros_and_percentiles_interpolate() -> None:
    assert set(statistics_ms([]).values()) == {0.0}
    assert statistics_ms([0.0, 1.0])["p99"] == pytest.approx(990)


def test_the_table_and_the_details_show_every_request() -> None:
    shown = table(summarise(RESULTS, 2.0), {"Backend": "sglang"})
    lines = shown.splitlines()
    assert {len(lines[0]), len(lines[-1])} == {50}
    assert f"{'Output token throughput (tok/s):':<40} 2.00" in lines
    assert f"{'Median TTFT (ms):':<40} 1600.00" in lines
    assert details(RESULTS)["errors"] == ["", "", "HTTP 503"]
