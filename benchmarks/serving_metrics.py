"""From request results to the numbers and the table of a serving benchmark, under SGLang's keys."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from serving_client import RequestResult

WIDTH = 50
LATENCIES = {
    "e2e_latency": "End-to-End Latency",
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-Token Latency",
}
STATISTICS = ("mean", "median", "std", "p90", "p95", "p99", "max")
SHOWN = ("mean", "median", "p99")
COUNTS = (
    ("Successful requests", "completed"),
    ("Failed requests", "failed"),
    ("Benchmark duration (s)", "duration"),
    ("Total input tokens", "total_input_tokens"),
    ("Total cached input tokens", "total_cached_tokens"),
    ("Total generated tokens", "total_output_tokens"),
    ("Request throughput (req/s)", "request_throughput"),
    ("Input token throughput (tok/s)", "input_throughput"),
    ("Output token throughput (tok/s)", "output_throughput"),
    ("Total token throughput (tok/s)", "total_throughput"),
    ("Concurrency", "concurrency"),
)


def summarise(results: Sequence[RequestResult], duration: float) -> dict[str, Any]:
    """Return every metric of a run.  Throughputs per second of ``duration``, latencies in ms.

    Failed requests count in ``failed`` only.  ``total_cached_tokens`` is None unless every answer
    says how many of its prompt tokens were cached.
    """
    good = [result for result in results if not result.error]
    cached = [result.num_cached for result in good]
    input_len = sum(result.prompt_len for result in good)
    output_len = sum(result.output_len for result in good)
    summary: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(results) - len(good),
        "total_input_tokens": input_len,
        "total_output_tokens": output_len,
        "total_cached_tokens": None if None in cached or not cached else sum(filter(None, cached)),
        "request_throughput": len(good) / duration,
        "input_throughput": input_len / duration,
        "output_throughput": output_len / duration,
        "total_throughput": (input_len + output_len) / duration,
        # Little's law: the mean number of requests open at once
        "concurrency": sum(result.latency_s for result in good) / duration,
    }
    samples = {
        "e2e_latency": [result.latency_s for result in good],
        "ttft": [result.ttft_s for result in good],
        "tpot": [result.tpot_s for result in good if result.tpot_s is not None],
        "itl": [gap for result in good for gap in result.itl_s],
    }
    for name, seconds in samples.items():
        for statistic, value in statistics_ms(seconds).items():
            summary[f"{statistic}_{name}_ms"] = value
    return summary


def statistics_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Return the statistics of ``seconds`` in milliseconds; zeros where there is no sample."""
    if not seconds:
        return dict.fromkeys(STATISTICS, 0.0)
    values = np.asarray(seconds) * 1e3
    p90, p95, p99 = np.percentile(values, [90, 95, 99])
    numbers = (values.mean(), np.median(values), values.std(), p90, p95, p99, values.max())
    return {name: float(value) for name, value in zip(STATISTICS, numbers, strict=True)}


def details(results: Sequence[RequestResult]) -> dict[str, list[Any]]:
    """Return the per-request lists that ``--output-details`` adds."""
    return {
        "input_lens": [result.prompt_len for result in results],
        "output_lens": [result.output_len for result in results],
        "ttfts": [result.ttft_s for result in results],
        "itls": [list(result.itl_s) for result in results],
        "generated_texts": [result.text for result in results],
        "errors": [result.error for result in results],
    }


def table(summary: Mapping[str, Any], heading: Mapping[str, Any]) -> str:
    """Return the printed result: ``heading`` first, then counts, then one block per latency."""
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]
    lines += [_line(label, value) for label, value in heading.items()]
    lines += [_line(label, summary[key]) for label, key in COUNTS if summary[key] is not None]
    for name, title in LATENCIES.items():
        lines.append(f"{title:-^{WIDTH}}")
        short = {"e2e_latency": "E2E Latency"}.get(name, name.upper())
        for statistic in SHOWN:
            label = f"{statistic.capitalize()} {short} (ms)"
            lines.append(_line(label, summary[f"{statistic}_{name}_ms"]))
    lines.append("=" * WIDTH)
    return "\n".join(lines)


def _line(label: str, value: Any) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label + ':':<40} {shown:<10}".rstrip()
