"""Whole steps and greedy generation: the kernels against the portable path, in whole models.

Two backends never agree to the bit.  What they may differ by is measured in the same run: as
much, times ``SLACK``, as the portable path differs from the specification.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpu import models
from gpu.device import is_healthy
from gpu.settings import Settings
from gpu.worker import Case, CheckError, Values
from jaxserve import LLM
from jaxserve.batch import Mode, StepResult
from jaxserve.executor.warmup import CompileCounter
from jaxserve.request import SamplingParams

__all__ = ["cases", "is_healthy"]
SLACK = 3.0
LEAST_NOISE = 0.02  # of a logprob; two layers in bf16 differ by about so much
NEAR_TIE = 0.15  # of a logprob: bf16 may turn such a choice around
NUM_PROMPTS, NUM_NEW = 8, 32
PAGES_APART = 16
# Prompts of several lengths, then more of each behind what is cached, then decode steps.
STEPS = (
    ((0, 50), (0, 17), (0, 33), (0, 1)),
    ((50, 14), (17, 31), (33, 1), (1, 47)),
    ((64, 1), (48, 1), (34, 1), (48, 1)),
    ((65, 1), (49, 1), (35, 1), (49, 1)),
)


@dataclass(frozen=True, slots=True)
class StepsCheck:
    """The logprobs of a few steps, by two or three backends."""

    settings: Settings
    make: Callable[[], models.Setup]

    def run(self) -> Values:
        found = self.settings.implementation
        if found == "xla":  # a dry run
            difference = _difference(self._logprobs("xla"), self._logprobs("reference"))
            noise = LEAST_NOISE
        else:
            portable = self._logprobs("xla")
            difference = _difference(self._logprobs(found), portable)
            noise = max(LEAST_NOISE, _difference(self._logprobs("reference"), portable))
        values = {"logprob_difference": difference, "noise": noise, "limit": SLACK * noise}
        if not difference <= SLACK * noise:
            raise CheckError("the logprobs are further apart than rounding explains", values)
        return values

    def _logprobs(self, backend: str) -> list[StepResult]:
        setup = self.make()
        buckets = setup.buckets
        chosen = {
            Mode.EXTEND: buckets.choose(Mode.EXTEND, num_tokens=128, num_rows=4, num_pages=1),
            Mode.DECODE: buckets.choose(Mode.DECODE, num_tokens=4, num_rows=4, num_pages=1),
        }
        runner = models.build(setup, backend, tuple(chosen.values()))
        rng = np.random.default_rng(self.settings.seed)
        results = []
        for rows in STEPS:
            mode = Mode.DECODE if rows[0][1] == 1 else Mode.EXTEND
            inputs = models.step_inputs(
                chosen[mode], rows, setup, pages_apart=PAGES_APART, rng=rng, wants_logprobs=True
            )
            results.append(runner.launch(inputs).fetch())
        runner.close()
        return results


def _difference(left: list[StepResult], right: list[StepResult]) -> float:
    """The largest difference of a logprob that both sides give, in steps of equal inputs."""
    same = np.ones(len(STEPS[0]), bool)
    worst = 0.0
    for ours, theirs in zip(left, right, strict=True):
        assert ours.top_logprobs is not None and theirs.top_logprobs is not None
        assert ours.top_token_ids is not None and theirs.top_token_ids is not None
        if not np.isfinite(ours.top_logprobs).all():
            return np.inf
        for row in np.nonzero(same)[0]:
            known = dict(zip(theirs.top_token_ids[row].tolist(), theirs.top_logprobs[row],
                             strict=True))  # fmt: skip
            mine = zip(ours.top_token_ids[row].tolist(), ours.top_logprobs[row], strict=True)
            shared = [abs(float(value - known[token])) for token, value in mine if token in known]
            worst = max([worst, *shared]) if shared else np.inf
        # From here on a row that chose another token reads another input.
        num = len(same)
        same &= np.asarray(ours.token_ids[:num]) == np.asarray(theirs.token_ids[:num])
    return worst


@dataclass(frozen=True, slots=True)
class GreedyCheck:
    """The same prompts through ``LLM.generate``, batched and chunked, with two backends."""

    settings: Settings
    page_size: int

    def run(self) -> Values:
        ours, compiled = self._generate(self.settings.implementation)
        theirs, _ = self._generate(
            "reference" if self.settings.implementation == "xla" else "xla"
        )  # fmt: skip
        gaps = [gap for gap in map(_gap_at_divergence, ours, theirs) if gap is not None]
        values = {
            "prompts": len(ours), "equal": len(ours) - len(gaps), "compiled_later": compiled,
            "gap_at_divergence": max(gaps, default=0.0), "limit": NEAR_TIE,
        }  # fmt: skip
        if compiled:
            raise CheckError(f"{compiled} programs were compiled after warm-up", values)
        if max(gaps, default=0.0) > NEAR_TIE:
            raise CheckError("the texts part at a choice that is no near tie", values)
        return values

    def _generate(self, backend: str) -> tuple[list[dict[str, Any]], int]:
        setup = models.tiny_llama(Path(self.settings.scratch), page_size=self.page_size)
        rng = np.random.default_rng([self.settings.seed, 1])
        prompts = [rng.integers(0, 256, length).tolist()
                   for length in rng.integers(1, 200, NUM_PROMPTS)]  # fmt: skip
        prompts[-1] = prompts[0] + prompts[-1][:20]  # shares a cached prefix
        params = SamplingParams(
            temperature=0.0, max_new_tokens=NUM_NEW, ignore_eos=True, num_logprobs=5
        )
        with LLM(config=setup.config(backend)) as llm:
            counter = CompileCounter()
            counter.freeze()
            answers = llm.generate(prompts, params)
            counter.close()
        return list(answers), counter.since_freeze


def _gap_at_divergence(ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
    """By how much their choice led ours, for them, where the two part; None where they do not."""
    left, right = ours["output_ids"], theirs["output_ids"]
    index = next((i for i, pair in enumerate(zip(left, right, strict=True))
                  if pair[0] != pair[1]), None)  # fmt: skip
    if index is None:
        return None
    known = {
        token: logprob for logprob, token, _ in theirs["meta_info"]["output_top_logprobs"][index]
    }
    return float(known[right[index]] - known[left[index]]) if left[index] in known else np.inf


def cases(settings: Settings) -> Iterator[Case]:
    """Logprobs of a tiny and of a real-sized model, then text."""
    scratch = Path(settings.scratch)
    tiny = StepsCheck(settings, lambda: models.tiny_llama(scratch))
    real = StepsCheck(settings, lambda: models.two_layers(scratch))
    yield Case("logprobs of steps, tiny Llama", tiny.run)
    yield Case("greedy text, tiny Llama, page 16", GreedyCheck(settings, 16).run)
    if not settings.is_dry_run:
        yield Case("logprobs of steps, 2 layers of an 8B", real.run)
        yield Case("greedy text, tiny Llama, page 64", GreedyCheck(settings, 64).run)
