"""Hidden states against transformers: in chunks, behind cached prefixes, in company, computed
again, on two devices; and what of them is brought to the host."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from engine_harness import EngineHarness, Output, running_engine
from fake_matcher import ANY, FakeMatcher, fill_fake_masks
from make_tiny_checkpoint import make_tiny
from transformers import AutoModelForCausalLM

from jaxserve import constraints
from jaxserve.batch import MAX_PROMPT_BLOCK
from jaxserve.executor.hidden_states import select
from jaxserve.request import SamplingParams

Oracle = Callable[[Sequence[int]], np.ndarray]
ON = {"enable_return_hidden_states": True}
RNG = np.random.default_rng(12)
# one token; a page and a bit; more than a chunk; more than half of a chunk beside it
PROMPTS = [RNG.integers(3, 250, length).tolist() for length in (1, 2, 17, 90, 200)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("hidden"), "llama", vocab_size=264)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    """f32[T, D] after the final norm."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def states(tokens: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            return model.model(torch.tensor([list(tokens)])).last_hidden_state[0].numpy()

    return states


@pytest.fixture(scope="module")
def engine(checkpoint: Path, compilation_cache_dir: str) -> Iterator[EngineHarness]:
    """Chunks of 64 tokens."""
    with running_engine(checkpoint, compilation_cache_dir, **ON) as harness:
        yield harness


def wanting(mode: str | None = "all", **fields: object) -> SamplingParams:
    defaults = {"max_new_tokens": 4, "ignore_eos": True, "seed": 0, "temperature": 0.0}
    return SamplingParams(**{**defaults, "hidden_states": mode, **fields})


def check_all(outputs: Sequence[Output], prompts: Sequence[Sequence[int]], oracle: Oracle) -> None:
    """Each position's state came once, in order; of the last token there is none."""
    for output, prompt in zip(outputs, prompts, strict=True):
        expected = oracle([*prompt, *output.tokens])[: len(prompt) + max(0, len(output.tokens) - 1)]
        found = np.concatenate(output.hidden_states)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_alone(engine: EngineHarness, oracle: Oracle) -> None:
    for prompt in PROMPTS:
        engine.flush()
        check_all(engine.run([prompt], wanting()), [prompt], oracle)


def test_in_company(engine: EngineHarness, oracle: Oracle) -> None:
    """Rows that ask for all, for the last one and for nothing, in the same steps."""
    engine.flush()
    prompts = [prompt for prompt in PROMPTS for _ in range(3)][::-1]
    modes = [wanting(), wanting(None), wanting("last")] * len(PROMPTS)
    outputs = engine.run(prompts, modes)
    check_all(outputs[::3], prompts[::3], oracle)
    assert not any(output.hidden_states for output in outputs[1::3])
    for output, prompt in zip(outputs[2::3], prompts[2::3], strict=True):
        assert [states.shape[0] for states in output.hidden_states] == [1] * 4
        expected = oracle([*prompt, *output.tokens])[len(prompt) - 1 : -1]
        np.testing.assert_allclose(np.concatenate(output.hidden_states), expected, atol=2e-4)
    assert [o.tokens for o in outputs[::3]] == [o.tokens for o in outputs[1::3]]
    assert engine.engine.num_recompiles == 0


def test_a_cached_prompt_is_computed_again_unless_the_last_is_enough(
    engine: EngineHarness, oracle: Oracle
) -> None:
    prompt = PROMPTS[3]
    engine.run([prompt], wanting(None))
    (whole,) = engine.run([prompt], wanting())
    check_all([whole], [prompt], oracle)
    assert whole.num_cached == 0
    (last,) = engine.run([prompt], wanting("last"))
    assert last.num_cached == 80


def test_without_new_tokens(engine: EngineHarness, oracle: Oracle) -> None:
    for prompt in (PROMPTS[0], PROMPTS[4]):
        (output,) = engine.run([prompt], wanting(max_new_tokens=0))
        check_all([output], [prompt], oracle)
        (last,) = engine.run([prompt], wanting("last", max_new_tokens=0))
        np.testing.assert_allclose(last.hidden_states[-1], oracle(prompt)[-1:], atol=2e-4)


def test_a_stop_token_leaves_no_surplus_state(engine: EngineHarness, oracle: Oracle) -> None:
    """The step after it was launched before it was known; its state is nobody's."""
    (free,) = engine.run([PROMPTS[2]], wanting(max_new_tokens=8))
    stop = free.tokens[5]
    (output,) = engine.run([PROMPTS[2]], wanting(max_new_tokens=8, stop_token_ids=(stop,)))
    assert output.tokens[-1] == stop
    check_all([output], [PROMPTS[2]], oracle)


def test_after_a_retraction_nothing_is_lost_and_nothing_comes_twice(
    checkpoint: Path, compilation_cache_dir: str, oracle: Oracle
) -> None:
    fields = {"max_total_tokens": 192, "context_length": 160} | ON
    prompts = [RNG.integers(3, 250, 40).tolist() for _ in range(3)]
    with running_engine(checkpoint, compilation_cache_dir, **fields) as engine:
        outputs = engine.run(prompts, wanting(max_new_tokens=60))
        assert sum(output.num_retractions for output in outputs) > 0
        check_all(outputs, prompts, oracle)


def test_forced_tokens_are_computed_together_and_have_theirs(
    engine: EngineHarness, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraints, "fill_masks", fill_fake_masks)
    forced = [frozenset({token}) for token in (20, 21, 22)]
    patterns = [[ANY, *forced, ANY, ANY], [*forced, ANY, ANY]]  # after a token, and at the start
    matchers = [FakeMatcher(pattern) for pattern in patterns]
    prompts = [PROMPTS[2], PROMPTS[3]]
    sampling = wanting(max_new_tokens=5)
    outputs = engine.run(prompts, sampling, constraints=matchers)
    assert [20, 21, 22] in (outputs[0].tokens[1:4], outputs[1].tokens[:3])
    check_all(outputs, prompts, oracle)


def test_on_two_devices(checkpoint: Path, compilation_cache_dir: str, oracle: Oracle) -> None:
    with running_engine(checkpoint, compilation_cache_dir, tp_size=2, **ON) as engine:
        check_all(engine.run(PROMPTS, wanting()), PROMPTS, oracle)
        assert engine.engine.num_recompiles == 0


@pytest.mark.parametrize(
    ("num_tokens", "wanted", "num_fetched"),
    [
        (1024, range(1024), 1024),
        (1024, range(3, 600), 1024),  # few are left out
        (1024, range(5, 205), 2 * MAX_PROMPT_BLOCK),
        (1024, [7, 1023], MAX_PROMPT_BLOCK),
        (32, [4], MAX_PROMPT_BLOCK),
    ],
)
def test_blocks_of_what_is_wanted_or_the_whole(
    num_tokens: int, wanted: Sequence[int], num_fetched: int
) -> None:
    hidden = jnp.arange(num_tokens * 3, dtype=jnp.bfloat16).reshape(num_tokens, 3)
    tokens = np.array(wanted, np.int32)
    rows = select(hidden, tokens, lambda array, block: array[block])
    assert sum(array.shape[0] for array in rows.arrays) == num_fetched
    found = rows.fetch()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(hidden, np.float32)[tokens])
