"""Embeddings in place of token ids: those of the ids give what the ids give; others what
transformers gives; in chunks, in company, computed again, on two devices."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from engine_harness import EngineHarness, Output, running_engine
from make_tiny_checkpoint import make_tiny
from transformers import AutoModelForCausalLM

from jaxserve.batch import EMBED_TOKEN, EmbedRows
from jaxserve.executor.embeds import BLOCK_ROWS, EmbedWriter, buffer_shape, given_embeds
from jaxserve.executor.sharding import Placement
from jaxserve.model_config import ModelConfig
from jaxserve.request import SamplingParams
from jaxserve.shard_plan import plan_shards
from jaxserve.weights import resolve_source

ON = {"disable_radix_cache": True}
RNG = np.random.default_rng(13)
# one token; a page and a bit; more than a chunk; more than a block of the writer
PROMPTS = [RNG.integers(3, 250, length).tolist() for length in (1, 2, 17, 90, 200)]
GREEDY = SamplingParams(max_new_tokens=6, temperature=0.0, ignore_eos=True, seed=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("embeds"), "llama", vocab_size=264)


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def table(theirs: Any) -> np.ndarray:
    """f32[V, D]."""
    return theirs.get_input_embeddings().weight.detach().numpy()


@pytest.fixture(scope="module")
def engine(checkpoint: Path, compilation_cache_dir: str) -> Iterator[EngineHarness]:
    """Chunks of 64 tokens."""
    with running_engine(checkpoint, compilation_cache_dir, **ON) as harness:
        yield harness


def nothing(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Placeholders in place of prompts: what they are must not matter."""
    return [[7] * len(prompt) for prompt in prompts]


def tokens_of(outputs: Sequence[Output]) -> list[list[int]]:
    return [output.tokens for output in outputs]


def test_those_of_the_ids_are_the_ids(engine: EngineHarness, table: np.ndarray) -> None:
    expected = tokens_of(engine.run(PROMPTS, GREEDY))
    embeds = [table[prompt] for prompt in PROMPTS]
    assert tokens_of(engine.run(nothing(PROMPTS), GREEDY, embeds=embeds)) == expected
    for prompt, rows, tokens in zip(PROMPTS, embeds, expected, strict=True):
        (alone,) = engine.run(nothing([prompt]), GREEDY, embeds=[rows])
        assert alone.tokens == tokens
    assert engine.engine.num_recompiles == 0


def test_rows_of_ids_and_of_embeddings_in_the_same_steps(
    engine: EngineHarness, table: np.ndarray
) -> None:
    expected = tokens_of(engine.run(PROMPTS, GREEDY))
    prompts = [each for prompt in PROMPTS for each in (prompt, [7] * len(prompt))][::-1]
    embeds = [each for prompt in PROMPTS for each in (None, table[prompt])][::-1]
    found = tokens_of(engine.run(prompts, GREEDY, embeds=embeds))
    assert found == [tokens for tokens in expected for _ in range(2)][::-1]


def test_several_blocks_in_one_step(
    checkpoint: Path, compilation_cache_dir: str, table: np.ndarray
) -> None:
    fields = {"chunked_prefill_size": 512, "context_length": 512} | ON
    with running_engine(checkpoint, compilation_cache_dir, **fields) as engine:
        expected = tokens_of(engine.run(PROMPTS, GREEDY))
        for order in (slice(None), slice(None, None, -1)):
            embeds = [table[prompt] for prompt in PROMPTS[order]]
            found = tokens_of(engine.run(nothing(PROMPTS[order]), GREEDY, embeds=embeds))
            assert found == expected[order]


def test_embeddings_that_no_token_has(engine: EngineHarness, theirs: Any) -> None:
    """Against transformers, which takes embeddings too."""
    rows = RNG.normal(0.0, 0.3, (30, theirs.config.hidden_size)).astype(np.float32)
    (output,) = engine.run(nothing([range(30)]), GREEDY, embeds=[rows])
    embeds = torch.tensor(rows)[None]
    for token in output.tokens:
        with torch.no_grad():
            assert int(theirs(inputs_embeds=embeds).logits[0, -1].argmax()) == token
            own = theirs.get_input_embeddings()(torch.tensor([[token]]))
        embeds = torch.cat([embeds, own], dim=1)


def test_they_are_computed_again_after_a_retraction(
    checkpoint: Path, compilation_cache_dir: str, table: np.ndarray
) -> None:
    fields = {"max_total_tokens": 192, "context_length": 160} | ON
    prompts = [RNG.integers(3, 250, 40).tolist() for _ in range(3)]
    sampling = SamplingParams(max_new_tokens=60, temperature=0.0, ignore_eos=True, seed=0)
    with running_engine(checkpoint, compilation_cache_dir, **fields) as engine:
        expected = engine.run_one_by_one(prompts, [sampling] * 3)
        embeds = [table[prompt] for prompt in prompts]
        outputs = engine.run(nothing(prompts), sampling, embeds=embeds)
        assert sum(output.num_retractions for output in outputs) > 0
        assert tokens_of(outputs) == tokens_of(expected)


def test_penalties_count_no_placeholders(engine: EngineHarness, table: np.ndarray) -> None:
    """Only the output is penalised: as if the prompt held tokens that are never sampled."""
    (free,) = engine.run([PROMPTS[3]], GREEDY)
    placeholders = [[free.tokens[0]] * 90]  # penalised, they would not be sampled again
    sampling = SamplingParams(
        max_new_tokens=1, temperature=0.0, seed=0, repetition_penalty=2.0, ignore_eos=True
    )
    (output,) = engine.run(placeholders, sampling, embeds=[table[PROMPTS[3]]])
    assert output.tokens == free.tokens[:1]


def test_on_two_devices(checkpoint: Path, compilation_cache_dir: str, table: np.ndarray) -> None:
    with running_engine(checkpoint, compilation_cache_dir, tp_size=2, **ON) as engine:
        expected = tokens_of(engine.run(PROMPTS, GREEDY))
        embeds = [table[prompt] for prompt in PROMPTS]
        assert tokens_of(engine.run(nothing(PROMPTS), GREEDY, embeds=embeds)) == expected
        assert engine.engine.num_recompiles == 0


def test_the_buffer_holds_each_row_at_its_place(checkpoint: Path) -> None:
    """Up to the last token of the longest step, whatever the padding of blocks writes over."""
    config = ModelConfig.from_hf(resolve_source(str(checkpoint)).hf_config)
    buffer = jnp.zeros(buffer_shape(300, 4), jnp.float32)
    writer = EmbedWriter(buffer, Placement.of_this_host(plan_shards(config, 1)))
    sizes = {2: 3, 5: BLOCK_ROWS + 1, 140: 10, 299: 1}  # start -> rows
    embeds = [EmbedRows(s, RNG.normal(size=(n, 4)).astype(np.float32)) for s, n in sizes.items()]
    token_ids = np.arange(300, dtype=np.int32)
    for rows in embeds:
        token_ids[rows.start : rows.start + len(rows.rows)] = EMBED_TOKEN
    ids, given = given_embeds(jnp.asarray(token_ids), writer.write(buffer, tuple(embeds)))
    found = np.asarray(given.over(jnp.full((300, 4), -1.0)))
    expected = np.full((300, 4), -1.0, np.float32)
    for rows in embeds:
        expected[rows.start : rows.start + len(rows.rows)] = rows.rows
    np.testing.assert_array_equal(found, expected)
    assert (np.asarray(ids) == np.where(token_ids == EMBED_TOKEN, 0, token_ids)).all()
