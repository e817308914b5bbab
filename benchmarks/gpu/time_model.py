"""Steps of Llama-3.1-8B with made-up weights through ModelRunner: decode, prefill, host time."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import bench_scheduler
import numpy as np

from gpu import models
from gpu.device import is_healthy
from gpu.settings import Settings
from gpu.timing import measure
from gpu.worker import Case, SkipError, Values
from jaxserve.batch import Mode
from jaxserve.executor import ModelRunner
from jaxserve.model_config import ModelConfig

__all__ = ["cases", "is_healthy"]
SAMPLE_S = 0.15
HOST_LAUNCHES = 8  # queued before waiting: fewer than jax lets be in flight
HOST_ROUNDS = 5
ITEMSIZE = 2  # of bf16


@dataclass(frozen=True, slots=True)
class Work:
    """What a step must at least do."""

    config: ModelConfig

    @property
    def weights(self) -> int:
        """Parameters that every step reads; the embedding table is not, only rows of it."""
        c = self.config
        qkv = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim * c.hidden_size
        out = c.num_heads * c.head_dim * c.hidden_size
        return c.num_layers * (qkv + out + 3 * c.hidden_size * c.intermediate_size)

    @property
    def head(self) -> int:
        return self.config.vocab_size * self.config.hidden_size

    def decode_bytes(self, rows: int, context: int) -> int:
        c = self.config
        kv = 2 * rows * context * c.num_layers * c.num_kv_heads * c.head_dim
        return ITEMSIZE * (self.weights + self.head + kv)

    def prefill_flops(self, tokens: int) -> int:
        """Of one prompt: the products with weights, causal attention, one row of logits."""
        c = self.config
        attention = 2 * tokens * (tokens + 1) * c.num_heads * c.head_dim * c.num_layers
        return 2 * tokens * self.weights + attention + 2 * self.head


@dataclass
class Runners:
    """One runner at a time; the next backend's replaces it, for two do not fit."""

    settings: Settings
    setup: models.Setup
    built: dict[str, ModelRunner] = field(default_factory=dict)
    build_s: float = 0.0

    def get(self, backend: str) -> ModelRunner:
        if backend not in self.built:
            if self.build_s > self.settings.time_left_s:
                raise SkipError("out of time: the last runner took longer to build than is left")
            for runner in self.built.values():
                runner.close()
            self.built.clear()
            started = time.monotonic()
            self.built[backend] = models.build(self.setup, backend, self.setup.buckets.all())
            self.build_s = time.monotonic() - started
        return self.built[backend]


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step's time on the device, many of them queued, and the host's time to queue it."""

    runners: Runners
    backend: str
    mode: Mode
    rows: int
    tokens: int  # context of a decode row, or of the prompt

    @property
    def name(self) -> str:
        if self.mode is Mode.DECODE:
            return f"decode, {self.rows} rows at {self.tokens} tokens, {self.backend}"
        return f"prefill, {self.tokens} tokens, {self.backend}"

    def run(self) -> Values:
        runner, setup = self.runners.get(self.backend), self.runners.setup
        is_decode = self.mode is Mode.DECODE
        rows = [(self.tokens - 1, 1)] * self.rows if is_decode else [(0, self.tokens)]
        bucket = setup.buckets.choose(
            self.mode, num_tokens=sum(new for _, new in rows), num_rows=len(rows), num_pages=1
        )
        inputs = models.step_inputs(
            bucket, rows, setup, pages_apart=-(-self.tokens // setup.page_size),
            rng=np.random.default_rng(self.runners.settings.seed),
        )  # fmt: skip
        timing = measure(
            lambda: runner.launch(inputs),
            lambda step: step.fetch(),
            sample_s=SAMPLE_S,
            budget_s=2 * self.runners.settings.sample_budget_s,
        )
        host = []
        for _ in range(HOST_ROUNDS):
            for _ in range(HOST_LAUNCHES):
                started = time.perf_counter()
                step = runner.launch(inputs)
                host.append(time.perf_counter() - started)
            step.fetch()
        work = Work(setup.model_config)
        return {
            "mode": self.mode.value, "rows": self.rows, "tokens": self.tokens,
            "backend": self.backend, "bucket_rows": bucket.num_rows,
            "bytes": work.decode_bytes(self.rows, self.tokens) if is_decode else None,
            "flops": None if is_decode else work.prefill_flops(self.tokens),
            "host_launch_s": statistics.median(host), "build_s": self.runners.build_s,
            **timing.values(),
        }  # fmt: skip


def host_turn(rows: int, steps: int) -> Values:
    """Host time of the scheduler for one decode step of ``rows``, without a device."""
    scheduler = bench_scheduler.make_scheduler(rows, 64, steps)
    bench_scheduler.add_requests(scheduler, rows, 64, steps)
    times = bench_scheduler.run(scheduler)
    schedule = statistics.median(times.schedule[Mode.DECODE])
    process = statistics.median(times.process[Mode.DECODE])
    return {"rows": rows, "schedule_s": schedule, "process_s": process}


def cases(settings: Settings) -> Iterator[Case]:
    """The goals' steps with the kernels, then the portable path for comparison."""
    setup = models.llama_8b(Path(settings.scratch), settings.is_dry_run)
    runners = Runners(settings, setup)
    prompt, context, many = (128, 64, 2) if settings.is_dry_run else (8192, 1024, 64)
    most = setup.max_rows

    def step(backend: str, mode: Mode, rows: int, tokens: int) -> Case:
        timed = StepTime(runners, backend, mode, rows, tokens)
        return Case(timed.name, timed.run)

    ours = settings.implementation
    yield step(ours, Mode.DECODE, 1, context)
    yield step(ours, Mode.DECODE, many, context)
    yield step(ours, Mode.EXTEND, 1, prompt)
    yield step(ours, Mode.DECODE, most, min(512, context))
    yield Case(f"scheduler, {most} rows", lambda: host_turn(most, 40))
    if not settings.is_dry_run:
        yield step("xla", Mode.DECODE, many, context)
        yield step("xla", Mode.DECODE, 1, context)
        yield step("xla", Mode.EXTEND, 1, prompt)
