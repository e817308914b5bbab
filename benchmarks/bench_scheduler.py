"""Host time of one scheduler turn, in µs, with a runner that answers at once.

    python benchmarks/bench_scheduler.py

``schedule`` and ``process`` are what the engine thread pays per step beside the device; a DECODE
step of a small model takes a millisecond or more, so their sum must stay well below that.
"""

import argparse
import gc
import platform
import statistics
import time
from dataclasses import dataclass, field

import numpy as np

from jaxserve.batch import Mode, StepResult
from jaxserve.request import Request, SamplingParams
from jaxserve.scheduler import BatchPlan, Scheduler, SchedulerConfig, make_buckets

PAGE_SIZE = 16
CHUNK = 8192


@dataclass
class Times:
    """Seconds of each call, by mode."""

    schedule: dict[Mode, list[float]] = field(default_factory=lambda: {mode: [] for mode in Mode})
    process: dict[Mode, list[float]] = field(default_factory=lambda: {mode: [] for mode in Mode})


def make_scheduler(num_rows: int, prompt_len: int, num_steps: int) -> Scheduler:
    """A scheduler whose pool holds every row to the end."""
    pages_per_row = -(-(prompt_len + num_steps) // PAGE_SIZE) + 1
    config = SchedulerConfig(
        max_running_requests=num_rows,
        chunked_prefill_size=CHUNK,
        prefill_max_requests=min(num_rows, 64),
        page_size=PAGE_SIZE,
    )
    buckets = make_buckets(
        chunked_prefill_size=CHUNK,
        max_running_requests=num_rows,
        prefill_max_requests=config.prefill_max_requests,
        max_pages_per_row=pages_per_row,
    )
    return Scheduler(
        config, num_pages=1 + num_rows * pages_per_row, buckets=buckets, eos_token_ids=(0,)
    )


def add_requests(scheduler: Scheduler, num_rows: int, prompt_len: int, num_steps: int) -> None:
    """As many requests as rows; every second one shares half of its prompt."""
    rng = np.random.default_rng(0)
    shared = rng.integers(1, 30_000, prompt_len).tolist()
    for index in range(num_rows):
        prompt = rng.integers(1, 30_000, prompt_len).tolist()
        if index % 2:
            prompt[: prompt_len // 2] = shared[: prompt_len // 2]
        sampling = SamplingParams(max_new_tokens=num_steps, temperature=0.8, seed=index)
        scheduler.add(
            Request(rid=str(index), prompt_ids=tuple(prompt), sampling=sampling, arrival_s=0.0)
        )


def run(scheduler: Scheduler) -> Times:
    """Turn the engine's loop until nothing is left."""
    times = Times()
    pending: BatchPlan | None = None
    while scheduler.has_work or pending is not None:
        start_s = time.perf_counter()
        plan = scheduler.schedule()
        if plan is not None:
            times.schedule[plan.mode].append(time.perf_counter() - start_s)
        if pending is not None:
            tokens = np.full(pending.inputs.bucket.num_rows, 7, np.int32)
            start_s = time.perf_counter()
            scheduler.process(pending, StepResult(token_ids=tokens))
            times.process[pending.mode].append(time.perf_counter() - start_s)
        pending = plan
    return times


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--prompt-len", type=int, default=512, help="tokens")
    parser.add_argument("--steps", type=int, default=300, help="tokens generated per row")
    args = parser.parse_args()
    print(f"python {platform.python_version()}, {platform.machine()}; µs per step, p50 (p99)")
    print(f"prompt {args.prompt_len}, page {PAGE_SIZE}, extend steps of up to {CHUNK} tokens")
    print("| rows | mode | steps | schedule | process |\n|---|---|---|---|---|")
    for num_rows in args.rows:
        scheduler = make_scheduler(num_rows, args.prompt_len, args.steps)
        add_requests(scheduler, num_rows, args.prompt_len, args.steps)
        gc.collect()
        times = run(scheduler)
        for mode in Mode:
            cells = [_cell(times.schedule[mode]), _cell(times.process[mode])]
            count = len(times.schedule[mode])
            print(f"| {num_rows} | {mode.value} | {count} | {' | '.join(cells)} |")


def _cell(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"{statistics.median(ordered) * 1e6:.0f} ({p99 * 1e6:.0f})"


if __name__ == "__main__":
    main()
