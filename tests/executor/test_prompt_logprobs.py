"""Logprobs of prompts against transformers: in chunks, behind cached prefixes, in company, on two
devices; and of named tokens."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from engine_harness import EngineHarness, Output, running_engine
from make_tiny_checkpoint import make_tiny
from parity_harness import Oracle, transformers_logprobs
from step_harness import make_runner

from jaxserve.request import SamplingParams, TokenLogprob

NAMED = (5, 200, 17)
VOCAB_SIZE = 264  # two devices can share it
RNG = np.random.default_rng(11)
# one token; a page and a bit; more than a chunk; more than a block beside what is not wanted
PROMPTS = [RNG.integers(3, 250, length).tolist() for length in (1, 2, 17, 90, 200)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("scored"), "llama", vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    return transformers_logprobs(checkpoint)


@pytest.fixture(scope="module")
def engine(checkpoint: Path, compilation_cache_dir: str) -> Iterator[EngineHarness]:
    """Chunks of 64 tokens."""
    with running_engine(checkpoint, compilation_cache_dir) as harness:
        yield harness


def wanting(start: int | None, **fields: object) -> SamplingParams:
    defaults = {"max_new_tokens": 3, "ignore_eos": True, "seed": 0, "temperature": 0.0}
    scored = {"num_logprobs": 2, "logprob_token_ids": NAMED, "prompt_logprobs_start": start}
    return SamplingParams(**{**defaults, **scored, **fields})


def check(entries: Sequence[TokenLogprob], tokens: Sequence[int], start: int, oracle: Oracle):
    """Entries of ``tokens`` from position ``start`` on are what transformers says."""
    expected = oracle(tokens)
    assert [entry.token_id for entry in entries] == list(tokens[start:])
    for position, entry in enumerate(entries, start):
        if position == 0:
            assert (entry.logprob, entry.top, entry.of_ids) == (None, (), ())
            continue
        row = expected[position - 1]
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-4)
        assert [token for token, _ in entry.top] == np.argsort(-row)[:2].tolist()
        assert [token for token, _ in entry.of_ids] == list(NAMED)
        for token, logprob in entry.top + entry.of_ids:
            assert logprob == pytest.approx(row[token], abs=1e-4)


def check_all(outputs: Sequence[Output], prompts: Sequence[Sequence[int]], oracle: Oracle) -> None:
    for output, prompt in zip(outputs, prompts, strict=True):
        check(output.prompt_logprobs, prompt, 0, oracle)
        # what is sampled goes on where the prompt ends
        check(output.logprobs, [*prompt, *output.tokens], len(prompt), oracle)


def test_alone(engine: EngineHarness, oracle: Oracle) -> None:
    for prompt in PROMPTS:
        engine.flush()
        check_all(engine.run([prompt], wanting(0)), [prompt], oracle)


def test_in_company(engine: EngineHarness, oracle: Oracle) -> None:
    """Rows that ask between rows that do not, in the same chunks."""
    engine.flush()
    prompts = [prompt for prompt in PROMPTS for _ in range(2)][::-1]
    plain = SamplingParams(max_new_tokens=3, ignore_eos=True, seed=0, temperature=0.0)
    outputs = engine.run(prompts, [wanting(0), plain] * len(PROMPTS))
    check_all(outputs[::2], prompts[::2], oracle)
    assert not any(output.prompt_logprobs for output in outputs[1::2])
    assert [o.tokens for o in outputs[1::2]] == [o.tokens for o in outputs[::2]]


def test_a_whole_prompt_in_one_step_is_more_than_one_block(
    checkpoint: Path, compilation_cache_dir: str, oracle: Oracle
) -> None:
    fields = {"chunked_prefill_size": 512, "context_length": 512}
    with running_engine(checkpoint, compilation_cache_dir, **fields) as engine:
        prompts = [*PROMPTS, RNG.integers(3, 250, 250).tolist()]
        check_all(engine.run(prompts, wanting(0)), prompts, oracle)
        assert engine.engine.num_recompiles == 0


@pytest.mark.parametrize("start", [0, 1, 16, 17, 18, 40, 89, 90])
def test_from_a_position_on_behind_a_cached_prefix(
    engine: EngineHarness, oracle: Oracle, start: int
) -> None:
    """The prefix is used up to what the first wanted logprob needs, and no further."""
    prompt = PROMPTS[3]
    engine.flush()
    engine.run([prompt], SamplingParams(max_new_tokens=1, seed=0))
    (output,) = engine.run([prompt], wanting(start))
    check(output.prompt_logprobs, prompt, start, oracle)
    assert output.num_cached == max(0, min(start, len(prompt)) - 1) // 16 * 16


def test_without_new_tokens(engine: EngineHarness, oracle: Oracle) -> None:
    for prompt in (PROMPTS[0], PROMPTS[4]):
        (output,) = engine.run([prompt], wanting(0, max_new_tokens=0))
        check(output.prompt_logprobs, prompt, 0, oracle)
        assert output.tokens == [] and output.finish is not None


def test_penalties_and_temperature_do_not_change_them(
    engine: EngineHarness, oracle: Oracle
) -> None:
    hot = {"temperature": 2.0, "repetition_penalty": 1.5, "logit_bias": ((5, 3.0),)}
    (output,) = engine.run([PROMPTS[2]], wanting(0, **hot))
    check(output.prompt_logprobs, PROMPTS[2], 0, oracle)


def test_after_a_retraction_nothing_comes_twice(
    checkpoint: Path, compilation_cache_dir: str, oracle: Oracle
) -> None:
    with running_engine(
        checkpoint, compilation_cache_dir, max_total_tokens=192, context_length=160
    ) as engine:
        prompts = [RNG.integers(3, 250, 40).tolist() for _ in range(3)]
        outputs = engine.run(prompts, wanting(0, max_new_tokens=60))
        assert sum(output.num_retractions for output in outputs) > 0
        check_all(outputs, prompts, oracle)


def test_on_two_devices(checkpoint: Path, compilation_cache_dir: str, oracle: Oracle) -> None:
    with running_engine(checkpoint, compilation_cache_dir, tp_size=2) as engine:
        check_all(engine.run(PROMPTS, wanting(0)), PROMPTS, oracle)
        assert engine.engine.num_recompiles == 0


def test_logits_of_a_block_are_held_and_never_of_a_step(tiny_checkpoint: Path) -> None:
    """Temporaries are those of a block, however many tokens the step has."""
    runner = make_runner(tiny_checkpoint, num_pages=64)
    vocab_size = runner._state.slots.token_info.shape[1]
    for size, program in runner._scorer._score.items():
        assert program.memory_analysis().temp_size_in_bytes < 3 * 4 * size * (vocab_size + 64)
    for take in runner._scorer._take.values():
        assert take.memory_analysis().temp_size_in_bytes == 0
        assert str(vocab_size) not in take.as_text()
    runner.close()
