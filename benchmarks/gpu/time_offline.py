"""Throughput of ``LLM.generate`` on Llama-3.1-8B with made-up weights and ShareGPT-like lengths."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import bench_offline
import numpy as np
from workloads import Conversation, Turn

from gpu import models
from gpu.device import is_healthy
from gpu.settings import Settings
from gpu.worker import Case, CheckError, SkipError, Values
from jaxserve import LLM
from jaxserve.executor.warmup import CompileCounter

__all__ = ["cases", "is_healthy"]
# Log-normal lengths with ShareGPT's means, about 220 tokens in and 195 out, and its long tails.
PROMPT_MEAN, PROMPT_SIGMA, PROMPT_MAX = 220, 1.2, 1024
ANSWER_MEAN, ANSWER_SIGMA, ANSWER_MAX = 195, 0.9, 1024
NUM_PROMPTS = 1000
FIRST_WAVE = 64
SHARE_OF_TIME = 0.75  # of what is left that the second wave is sized for
SEED = 20240501  # of the workload: the same prompts in every run


def lognormal_lengths(
    rng: np.random.Generator, mean: float, sigma: float, largest: int, count: int
) -> np.ndarray:
    """``i64[count]`` in [4, largest], with about this mean before the cut."""
    drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(drawn.astype(np.int64), 4, largest)


def sharegpt_like(
    num_prompts: int, vocab_size: int, *, seed: int = SEED, shrink: int = 1
) -> list[Conversation]:
    """Unrelated prompts of random ids; ``shrink`` divides all lengths."""
    rng = np.random.default_rng(seed)
    prompts = lognormal_lengths(rng, PROMPT_MEAN, PROMPT_SIGMA, PROMPT_MAX, num_prompts) // shrink
    answers = lognormal_lengths(rng, ANSWER_MEAN, ANSWER_SIGMA, ANSWER_MAX, num_prompts) // shrink
    return [
        Conversation((Turn(tuple(rng.integers(0, vocab_size - 2, max(1, p)).tolist()),
                           max(1, int(p)), max(1, int(a))),))
        for p, a in zip(prompts, answers, strict=True)
    ]  # fmt: skip


@dataclass
class Served:
    """The engine of all cases; built once."""

    settings: Settings
    llms: list[LLM] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # tokens per second, wave by wave

    def get(self) -> LLM:
        if not self.llms:
            scratch = Path(self.settings.scratch)
            setup = models.llama_8b(scratch, self.settings.is_dry_run)
            # "auto", as a server starts: kernels that fail its check give way to xla.
            self.llms.append(LLM(config=setup.config("auto")))
        return self.llms[0]

    def wave(self, workload: list[Conversation]) -> Values:
        llm = self.get()
        counter = CompileCounter()
        counter.freeze()
        result = bench_offline.generate(llm, workload)
        counter.close()
        asked = sum(talk.turns[0].output_len for talk in workload)
        values = {
            **result, "prompts": len(workload), "compiled_later": counter.since_freeze,
            "backend": llm.config.attention_backend,
        }  # fmt: skip
        self.rates.append(result["total_throughput"])
        if result["total_output_tokens"] != asked:
            raise CheckError(f"{result['total_output_tokens']} of {asked} tokens came", values)
        return values


@dataclass(frozen=True, slots=True)
class Wave:
    """Some of the prompts at once; nothing is found in the prefix cache."""

    served: Served
    workload: list[Conversation]
    others: list[Conversation]  # for warming up: a prompt seen before would be found in the cache

    def start(self) -> Values:
        """Build the engine and warm it up."""
        started = time.monotonic()
        self.served.get()
        built_s = time.monotonic() - started
        self.served.wave(self.others[:2])
        return {"start_s": built_s}

    def first(self) -> Values:
        """A small wave: its rate says how many prompts fit into the time left."""
        return self.served.wave(self.others[2:])

    def all_that_fit(self) -> Values:
        """All prompts, or as many as there is time for; said in ``prompts``."""
        if not self.served.rates:
            raise SkipError("nothing is known of the rate: the first wave failed")
        turns = [talk.turns[0] for talk in self.workload]
        tokens = np.cumsum([turn.prompt_len + turn.output_len for turn in turns])
        can = self.served.rates[-1] * self.served.settings.time_left_s * SHARE_OF_TIME
        count = int(np.searchsorted(tokens, can))
        if count < min(FIRST_WAVE, len(turns)):
            raise SkipError("out of time for a second wave")
        return self.served.wave(self.workload[:count])


def cases(settings: Settings) -> Iterator[Case]:
    """Start, a small wave, all."""
    vocab_size = models.TINY_8B["vocab_size"] if settings.is_dry_run else 128_256
    count, shrink = (12, 16) if settings.is_dry_run else (NUM_PROMPTS, 1)
    wave = Wave(
        Served(settings),
        sharegpt_like(count, vocab_size, shrink=shrink),
        sharegpt_like(min(count, FIRST_WAVE) + 2, vocab_size, seed=SEED + 1, shrink=shrink),
    )
    yield Case("start", wave.start)
    yield Case("first prompts", wave.first)
    yield Case("all prompts", wave.all_that_fit)
