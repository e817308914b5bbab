"""Output does not depend on company: five ways to compute the same thing on the real model.

Greedy and seeded requests, with and without what a slot remembers (penalties), in f32.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_harness import EngineHarness, Output, running_engine

from jaxserve.request import SamplingParams

GREEDY = {"temperature": 0.0}
SEEDED = {"temperature": 0.9, "top_p": 0.95, "top_k": 40}
PENALISED = {
    "temperature": 0.7,
    "frequency_penalty": 0.6,
    "presence_penalty": 0.3,
    "repetition_penalty": 1.2,
}
BIASED = {"temperature": 0.0, "min_new_tokens": 12, "logit_bias": ((7, 2.0), (9, -1.5))}


def workload() -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts of many lengths, some with a common prefix; every kind of sampling."""
    rng = np.random.default_rng(3)
    shared = rng.integers(3, 250, 40).tolist()
    lengths = (1, 15, 16, 17, 33, 70, 5, 48)
    prompts = [rng.integers(3, 250, length).tolist() for length in lengths]
    prompts[4] = shared + prompts[4]
    prompts[6] = shared + prompts[6]
    kinds = (GREEDY, SEEDED, PENALISED, BIASED)
    sampling = [
        SamplingParams(
            max_new_tokens=24, ignore_eos=True, seed=1000 + index, **kinds[index % len(kinds)]
        )
        for index in range(len(prompts))
    ]
    return prompts, sampling


PROMPTS, SAMPLING = workload()


@pytest.fixture(scope="module")
def base(
    tiny_checkpoint: Path, compilation_cache_dir: str
) -> Iterator[tuple[EngineHarness, list[list[int]]]]:
    """The plainest engine: no cache, no chunks, one request at a time."""
    with running_engine(
        tiny_checkpoint, compilation_cache_dir, disable_radix_cache=True, chunked_prefill_size=128
    ) as harness:
        outputs = harness.run_one_by_one(PROMPTS, SAMPLING)
        yield harness, tokens_of(outputs)


def tokens_of(outputs: list[Output]) -> list[list[int]]:
    for output in outputs:
        assert output.finish is not None and output.finish.type == "length"
    return [output.tokens for output in outputs]


def test_the_workload_is_worth_comparing(base: tuple[EngineHarness, list[list[int]]]) -> None:
    """Sequences differ from one another and do not repeat one token."""
    _, expected = base
    assert len({tuple(tokens) for tokens in expected}) == len(expected)
    assert all(len(set(tokens)) > 3 for tokens in expected)


def test_batch_equals_alone(base: tuple[EngineHarness, list[list[int]]]) -> None:
    harness, expected = base
    assert tokens_of(harness.run(PROMPTS, SAMPLING)) == expected


def test_cached_prefix_equals_uncached(
    base: tuple[EngineHarness, list[list[int]]], tiny_checkpoint: Path, compilation_cache_dir: str
) -> None:
    _, expected = base
    with running_engine(tiny_checkpoint, compilation_cache_dir) as harness:
        first = harness.run(PROMPTS, SAMPLING)
        second = harness.run(PROMPTS, SAMPLING)
        continued = [prompt + tokens for prompt, tokens in zip(PROMPTS, expected, strict=True)]
        third = harness.run(continued, SAMPLING)
        harness.flush()
        flushed = harness.run(continued, SAMPLING)
    assert tokens_of(first) == expected
    assert tokens_of(second) == expected
    assert [output.num_cached for output in second] == [
        (len(prompt) - 1) // 16 * 16 for prompt in PROMPTS
    ]
    assert tokens_of(third) == tokens_of(flushed)
    assert all(output.num_cached > len(prompt) // 16 * 16 for output, prompt in
               zip(third, PROMPTS, strict=True))  # fmt: skip


@pytest.mark.parametrize("chunk", [16, 32])
def test_chunked_prefill_equals_whole(
    base: tuple[EngineHarness, list[list[int]]],
    tiny_checkpoint: Path,
    compilation_cache_dir: str,
    chunk: int,
) -> None:
    _, expected = base
    with running_engine(
        tiny_checkpoint, compilation_cache_dir, chunked_prefill_size=chunk
    ) as harness:
        assert tokens_of(harness.run(PROMPTS, SAMPLING)) == expected


def test_retracted_equals_undisturbed(
    base: tuple[EngineHarness, list[list[int]]], tiny_checkpoint: Path, compilation_cache_dir: str
) -> None:
    _, expected = base
    with running_engine(
        tiny_checkpoint, compilation_cache_dir, max_total_tokens=176, context_length=128
    ) as harness:
        outputs = harness.run(PROMPTS, SAMPLING)
        stats = harness.engine.stats()
    assert tokens_of(outputs) == expected
    assert stats.num_retractions > 0
    assert sum(output.num_retractions for output in outputs) == stats.num_retractions
    assert stats.num_used_tokens == 0


@pytest.mark.parametrize("rows", [(1,), (3,), (1, 2, 4)])
def test_every_bucket_equals_unpadded(
    base: tuple[EngineHarness, list[list[int]]],
    tiny_checkpoint: Path,
    compilation_cache_dir: str,
    rows: tuple[int, ...],
) -> None:
    _, expected = base
    with running_engine(
        tiny_checkpoint,
        compilation_cache_dir,
        max_running_requests=rows[-1],
        prefill_max_requests=rows[0],
        precompile_bs_paddings=rows,
        precompile_token_paddings=(8, 24),
    ) as harness:
        assert tokens_of(harness.run(PROMPTS, SAMPLING)) == expected


def test_without_overlap_equals_with(
    base: tuple[EngineHarness, list[list[int]]], tiny_checkpoint: Path, compilation_cache_dir: str
) -> None:
    _, expected = base
    with running_engine(
        tiny_checkpoint, compilation_cache_dir, disable_overlap_schedule=True
    ) as harness:
        assert tokens_of(harness.run(PROMPTS, SAMPLING)) == expected
