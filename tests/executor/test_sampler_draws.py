"""What the sampler draws: the right distribution, from the right tokens, by seed alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import stats

from jaxserve.batch import SamplingArrays
from jaxserve.executor import blocks, sampler, truncation
from jaxserve.executor.sampling import pack_sampling
from jaxserve.executor.slots import MAX_LOGPROB_TOKEN_IDS, SlotTables

jitted_sample = jax.jit(sampler.sample)


def make_arrays(seeds: np.ndarray, **values: object) -> SamplingArrays:
    """Rows of the given seeds u32[B]; all random with temperature 1 unless told otherwise."""

    def column(name: str, default: object, dtype: type) -> np.ndarray:
        return np.broadcast_to(np.asarray(values.get(name, default), dtype), len(seeds)).copy()

    return SamplingArrays(
        samples=column("samples", True, np.bool_),
        temperature=column("temperature", 1.0, np.float32),
        top_k=column("top_k", 0, np.int32),
        top_p=column("top_p", 1.0, np.float32),
        min_p=column("min_p", 0.0, np.float32),
        frequency_penalty=column("frequency_penalty", 0.0, np.float32),
        presence_penalty=column("presence_penalty", 0.0, np.float32),
        repetition_penalty=column("repetition_penalty", 1.0, np.float32),
        seeds=np.stack([seeds, seeds ^ 12345], axis=1).astype(np.uint32),
        min_lens=column("min_lens", 0, np.int32),
        has_logit_bias=column("has_logit_bias", False, np.bool_),
        wants_logprobs=column("wants_logprobs", False, np.bool_),
    )


def draw(logits: np.ndarray, arrays: SamplingArrays, kv_lens: np.ndarray) -> np.ndarray:
    num_rows, vocab_size = logits.shape
    info = jnp.zeros((2, vocab_size), jnp.int32)
    tables = SlotTables(
        token_info=info,
        logit_bias=info.astype(jnp.float32),
        logprob_ids=jnp.zeros((2, MAX_LOGPROB_TOKEN_IDS), jnp.int32),
    )
    slots = np.zeros(num_rows, np.int32)
    sampling = pack_sampling(arrays)
    logits = logits.astype(np.float32)
    sampled = jitted_sample(logits, sampling, tables, slots, kv_lens.astype(np.int32))
    return np.asarray(sampled.token_ids)


def kept(probs: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """bool[V]: the definition, by sorting; tokens tied with a kept one are kept."""
    order = np.argsort(-probs, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(probs[order])[:-1]])
    rank = np.arange(len(probs))
    stays = (before < top_p) | (top_p >= 1.0)
    stays &= (rank < top_k) | (top_k <= 0)
    least = probs[order][stays].min()
    return (probs >= least) & (probs >= min_p * probs.max())


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.4},
        {"temperature": 3.0},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.7, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=str,
)
def test_frequencies_follow_the_truncated_distribution(values: dict[str, float]) -> None:
    num_draws, vocab_size = 20_000, 300
    logits = 2 * np.random.default_rng(3).standard_normal(vocab_size).astype(np.float32)
    probs = softmax(logits / values.get("temperature", 1.0))
    stays = kept(probs, values.get("top_k", 0), values.get("top_p", 1.0), values.get("min_p", 0.0))
    expected = np.where(stays, probs, 0.0) / probs[stays].sum() * num_draws
    arrays = make_arrays(np.arange(2000, dtype=np.uint32), **values)
    batch = np.tile(logits, (2000, 1))
    ids = np.concatenate([draw(batch, arrays, np.full(2000, kv_len)) for kv_len in range(1, 11)])
    counts = np.bincount(ids, minlength=vocab_size)
    assert not np.any(counts[~stays])
    rare = expected < 5  # chi-square wants at least five expected in a cell
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


RANK_THRESHOLDS = [
    truncation.rank_thresholds,
    truncation.rank_thresholds_by_bisection,
    truncation.rank_thresholds_by_sorting_few,
]


@pytest.mark.parametrize("function", RANK_THRESHOLDS)
@pytest.mark.parametrize(("vocab_size", "has_ties"), [(300, True), (5000, False)])
def test_thresholds_equal_those_of_a_sort(function, vocab_size: int, has_ties: bool) -> None:
    rng = np.random.default_rng(vocab_size)
    num_rows, slack = 64, 1e-5
    logits = rng.uniform(0.5, 4, (num_rows, 1)) * rng.standard_normal((num_rows, vocab_size))
    logits = (np.round(4 * logits) / 4 if has_ties else logits).astype(np.float32)
    temperature = rng.uniform(0.3, 3.0, num_rows).astype(np.float32)
    off = rng.random((2, num_rows)) < 0.3
    top_k = np.where(off[0], vocab_size, rng.integers(1, vocab_size, num_rows)).astype(np.int32)
    top_p = np.where(off[1], np.inf, rng.uniform(1e-3, 1.0, num_rows)).astype(np.float32)
    top_k[:10] = 40
    limits = truncation.Truncation(
        logits.max(axis=1), temperature, top_k, top_p, np.zeros(num_rows, np.float32)
    )
    found = np.asarray(jax.jit(function)(logits, limits))
    for row in range(num_rows):
        probs = softmax(logits[row] / temperature[row])
        low = kept(probs, int(top_k[row]), float(top_p[row]) - slack, 0.0)
        high = kept(probs, int(top_k[row]), float(top_p[row]) + slack, 0.0)
        stays = logits[row] >= found[row]
        assert np.all(stays[low]) and not np.any(stays[~high])


def test_thresholds_found_part_by_part_are_those_found_at_once(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((7, 500)).astype(np.float32)
    limits = truncation.Truncation(
        largest=logits.max(axis=1),
        temperature=np.ones(7, np.float32),
        top_k=rng.integers(1, 500, 7).astype(np.int32),
        top_p=rng.uniform(0.1, 1.0, 7).astype(np.float32),
        min_p=np.zeros(7, np.float32),
    )
    at_once = jax.jit(truncation.rank_thresholds)(logits, limits)
    monkeypatch.setattr(truncation, "MAX_WEIGHT_BYTES", 3 * 500 * 4)  # 3, 3 and 1 rows
    in_parts = jax.jit(lambda *args: truncation.rank_thresholds(*args))(logits, limits)
    np.testing.assert_array_equal(in_parts, at_once)


def test_company_order_padding_and_other_rows_parameters_change_nothing() -> None:
    rng = np.random.default_rng(1)
    logits = 2 * rng.standard_normal((16, 500)).astype(np.float32)
    seeds, kv_lens = np.arange(16, dtype=np.uint32), rng.integers(1, 99, 16)
    values = {
        "temperature": rng.uniform(0.5, 1.5, 16),
        "top_p": np.where(np.arange(16) % 2, rng.uniform(0.3, 1.0, 16), 1.0),
        "top_k": np.where(np.arange(16) % 3, 0, 50),
    }
    crowd = draw(logits, make_arrays(seeds, **values), kv_lens)

    def alone(rows: np.ndarray) -> np.ndarray:
        some = {name: value[rows] for name, value in values.items()}
        return draw(logits[rows], make_arrays(seeds[rows], **some), kv_lens[rows])

    order = rng.permutation(16)
    np.testing.assert_array_equal(alone(order), crowd[order])
    for row in (0, 1, 6, 9):
        assert alone(np.array([row]))[0] == crowd[row]
    values["temperature"][8:] = 0.0
    padded = make_arrays(seeds, **values, samples=np.arange(16) < 8)
    np.testing.assert_array_equal(draw(logits, padded, kv_lens)[:8], crowd[:8])


def test_seed_and_position_each_change_the_draw() -> None:
    logits = np.zeros((400, 500), np.float32)
    seeds, same = np.arange(400, dtype=np.uint32), np.zeros(400, np.uint32)
    here, there = np.full(400, 7), np.arange(400)
    assert len(set(draw(logits, make_arrays(same), here).tolist())) == 1
    assert len(set(draw(logits, make_arrays(seeds), here).tolist())) > 200
    assert len(set(draw(logits, make_arrays(same), there).tolist())) > 200


def test_masked_tokens_are_never_drawn() -> None:
    rng = np.random.default_rng(5)
    is_masked = rng.random(300) < 0.9
    is_masked[[0, 299]] = True
    logits = np.tile(np.where(is_masked, -np.inf, 0.01 * rng.standard_normal(300)), (2000, 1))
    seen = np.zeros(300, bool)
    temperature = np.where(np.arange(2000) % 2, 1.0, 3e38)
    for kv_len in range(50):
        arrays = make_arrays(np.arange(2000, dtype=np.uint32), temperature=temperature)
        seen[draw(logits, arrays, np.full(2000, kv_len))] = True
    np.testing.assert_array_equal(seen, ~is_masked)


@pytest.mark.parametrize(
    "values",
    [{"temperature": 1e-6}, {"temperature": 1e-3}, {"top_p": 1e-7}, {"top_k": 1}, {"min_p": 1.0}],
    ids=str,
)
def test_extreme_values_give_the_most_likely_token(values: dict[str, float]) -> None:
    logits = 4 * np.random.default_rng(2).standard_normal((64, 500)).astype(np.float32)
    arrays = make_arrays(np.arange(64, dtype=np.uint32), **values)
    np.testing.assert_array_equal(draw(logits, arrays, np.arange(64)), logits.argmax(axis=1))


def test_neutral_limits_are_the_same_as_none_and_a_huge_temperature_is_uniform() -> None:
    logits = np.random.default_rng(2).standard_normal((64, 500)).astype(np.float32)
    seeds, kv_lens = np.arange(64, dtype=np.uint32), np.arange(64)
    free = draw(logits, make_arrays(seeds), kv_lens)
    wide = {"top_k": 500, "top_p": 1.0, "min_p": 1e-30}
    np.testing.assert_array_equal(draw(logits, make_arrays(seeds, **wide), kv_lens), free)
    wider = {"top_k": 2**30}
    np.testing.assert_array_equal(draw(logits, make_arrays(seeds, **wider), kv_lens), free)
    hot = draw(1e3 * logits, make_arrays(seeds, temperature=1e38), kv_lens)
    np.testing.assert_array_equal(hot, draw(0 * logits, make_arrays(seeds), kv_lens))


def test_the_only_possible_token_is_drawn() -> None:
    logits = np.full((300, 300), -np.inf, np.float32)
    np.fill_diagonal(logits, -1e30)
    for values in ({}, {"top_p": 0.5, "top_k": 3, "min_p": 0.5}):
        arrays = make_arrays(np.arange(300, dtype=np.uint32), **values)
        np.testing.assert_array_equal(draw(logits, arrays, np.arange(300)), np.arange(300))


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2.0**-24])
def test_rounding_never_picks_an_index_without_weight(uniform: float) -> None:
    rng = np.random.default_rng(0)
    weights = rng.random((200, 256)).astype(np.float32) * (rng.random((200, 256)) < 0.1)
    weights[:, [0, 1, 254, 255]] = 0.0
    weights[0], weights[0, 77] = 0.0, 1e-30
    uniforms = np.full(200, uniform, np.float32)
    index = np.asarray(jax.jit(sampler._inverse_cdf)(weights, uniforms))
    assert np.all(weights[np.arange(200), index] > 0)


def test_a_flat_vocabulary_of_256k_is_drawn_evenly_to_its_end() -> None:
    logits = np.zeros((64, 262_144), np.float32)
    arrays = make_arrays(np.arange(64, dtype=np.uint32))
    ids = np.concatenate([draw(logits, arrays, np.full(64, kv_len)) for kv_len in range(8)])
    assert stats.kstest(ids / 262_144, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("vocab_size", "k"), [(5000, 20), (5000, 128), (300, 20), (40, 40)])
def test_top_and_argmax_by_blocks_equal_those_of_jax(vocab_size: int, k: int) -> None:
    rng = np.random.default_rng(k)
    x = np.round(8 * rng.standard_normal((40, vocab_size))).astype(np.float32)
    x[0] = -np.inf
    x[1, 3:] = -np.inf
    values, ids = jax.jit(blocks.top, static_argnums=1)(x, k)
    expected_values, expected_ids = lax.top_k(x, k)
    np.testing.assert_array_equal(values, expected_values)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(jax.jit(blocks.argmax)(x), x.argmax(axis=1))
