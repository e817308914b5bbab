"""The sampler against a float64 numpy oracle: adjusted logits, greedy ids, logprobs, counts."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_harness import (
    DEFAULTS,
    garbage_tables,
    jitted_record,
    jitted_sample,
    jitted_set_slot,
    log_softmax,
    make_arrays,
    oracle_logits,
    run,
)

from jaxserve import request
from jaxserve.batch import SamplingArrays, SlotInit
from jaxserve.executor import logprobs, sampler, slots
from jaxserve.executor.sampling import GREEDY_TEMPERATURE, pack_sampling


def random_batch(
    seed: int, num_rows: int, vocab_size: int
) -> tuple[np.ndarray, SamplingArrays, tuple[SlotInit, ...], np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((num_rows, vocab_size)).astype(np.float32)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocab_size, count).tolist())

    def sometimes(values: np.ndarray, off: float) -> np.ndarray:
        return np.where(rng.random(num_rows) < 0.5, values, off)

    inits = tuple(
        SlotInit(
            slot=row + 1,
            prompt_ids=ids(20),
            output_ids=ids(30),
            stop_ids=(int(logits[row].argmax()), *ids(2), vocab_size + 5),
            logit_bias=tuple((token, float(rng.normal())) for token in set(ids(5))),
            logprob_ids=ids(5),
        )
        for row in range(num_rows)
    )
    arrays = make_arrays(
        num_rows,
        temperature=sometimes(rng.uniform(0.2, 2.0, num_rows), 0.0),
        top_k=1,
        frequency_penalty=sometimes(rng.uniform(-2, 2, num_rows), 0.0),
        presence_penalty=sometimes(rng.uniform(-2, 2, num_rows), 0.0),
        repetition_penalty=sometimes(rng.uniform(0.5, 2, num_rows), 1.0),
        has_logit_bias=rng.random(num_rows) < 0.5,
        min_lens=rng.integers(0, 12, num_rows),
        wants_logprobs=True,
    )
    return logits, arrays, inits, rng.integers(1, 12, num_rows).astype(np.int32)


def test_constants_are_those_of_the_request_layer() -> None:
    assert logprobs.MAX_TOP_LOGPROBS == request.MAX_TOP_LOGPROBS
    assert slots.MAX_LOGPROB_TOKEN_IDS == request.MAX_LOGPROB_TOKEN_IDS
    assert GREEDY_TEMPERATURE == request.GREEDY_TEMPERATURE


def test_packed_parameters_are_unpacked_as_they_were() -> None:
    _, arrays, _, _ = random_batch(0, num_rows=9, vocab_size=90)
    arrays = replace(arrays, seeds=arrays.seeds + np.uint32(2**31))
    packed = pack_sampling(arrays)
    unpacked = jax.jit(lambda packed: packed.unpack())(packed)
    for field in fields(arrays):
        got, expected = getattr(unpacked, field.name), getattr(arrays, field.name)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected, err_msg=field.name)


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({}, set()),
        ({"temperature": 1.0, "samples": False}, set()),
        ({"temperature": 1.0, "top_k": 1, "top_p": 0.5}, set()),
        ({"temperature": 1.0}, {"any_random"}),
        ({"temperature": 1.0, "min_p": 0.1}, {"any_random", "any_truncated"}),
        ({"presence_penalty": -1.0}, {"any_adjusted"}),
        ({"min_lens": 3, "wants_logprobs": True}, {"any_adjusted", "any_logprobs"}),
    ],
    ids=str,
)
def test_flags_say_what_some_row_needs(values: dict[str, object], needed: set[str]) -> None:
    packed = pack_sampling(make_arrays(3, **values))
    names = ("any_adjusted", "any_random", "any_truncated", "any_logprobs")
    assert {name for name in names if getattr(packed, name)} == needed
    assert packed.all_greedy == (not needed)


@pytest.mark.parametrize("seed", range(4))
def test_adjusted_logits_and_logprobs_equal_the_oracle(seed: int) -> None:
    logits, arrays, inits, kv_lens = random_batch(seed, num_rows=12, vocab_size=90)
    sampled = run(logits, arrays, inits, kv_lens)
    adjusted = oracle_logits(logits, arrays, inits, kv_lens)
    temperature = np.where(arrays.temperature == 0.0, 1.0, arrays.temperature)
    expected = np.maximum(log_softmax(adjusted / temperature[:, None]), logprobs.MIN_LOGPROB)
    rows = np.arange(12)
    np.testing.assert_array_equal(sampled.token_ids, adjusted.argmax(axis=1))
    found = sampled.logprobs
    np.testing.assert_allclose(found.chosen, expected[rows, sampled.token_ids], atol=2e-5)
    order = np.argsort(-expected, axis=1, kind="stable")[:, : logprobs.MAX_TOP_LOGPROBS]
    np.testing.assert_array_equal(found.top_token_ids, order)
    np.testing.assert_allclose(found.top, np.take_along_axis(expected, order, axis=1), atol=1e-4)
    named = [init.logprob_ids for init in inits]
    assert found.named.shape[1] == slots.MAX_LOGPROB_TOKEN_IDS
    np.testing.assert_allclose(
        found.named[:, :5], np.take_along_axis(expected, np.array(named), axis=1), atol=1e-4
    )


def test_neutral_rows_are_untouched_by_their_neighbours_and_by_a_used_slot() -> None:
    logits, arrays, inits, kv_lens = random_batch(9, num_rows=6, vocab_size=90)
    neutral = make_arrays(6)
    mixed = SamplingArrays(
        **{
            name: np.where(np.arange(6) % 2, getattr(arrays, name), getattr(neutral, name))
            for name in DEFAULTS
        },
        seeds=arrays.seeds,
    )
    sampled = run(logits, mixed, inits[1::2], kv_lens)
    np.testing.assert_array_equal(sampled.token_ids[::2], logits[::2].argmax(axis=1))
    assert not np.any(sampled.logprobs.top[::2]) and not np.any(sampled.logprobs.chosen[::2])
    assert np.all(sampled.logprobs.top[1::2, 0] < 0)


def test_logprobs_of_a_vocabulary_smaller_than_k_are_filled_with_zeros() -> None:
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    sampled = run(logits, make_arrays(1, wants_logprobs=True))
    assert sampled.logprobs.top.shape == (1, logprobs.MAX_TOP_LOGPROBS)
    np.testing.assert_array_equal(sampled.logprobs.top_token_ids[0, :4], [1, 2, 0, 0])
    assert not np.any(sampled.logprobs.top[0, 3:])


def test_masked_tokens_have_a_finite_logprob() -> None:
    logits = np.full((1, 40), -np.inf, np.float32)
    logits[0, 7] = 2.0
    sampled = run(logits, make_arrays(1, wants_logprobs=True))
    assert sampled.token_ids[0] == 7 and sampled.logprobs.chosen[0] == 0.0
    np.testing.assert_array_equal(sampled.logprobs.top[0, 1:], logprobs.MIN_LOGPROB)


@pytest.mark.parametrize("vocab_size", [5, 300, 5000])
def test_greedy_takes_the_lowest_index_among_equals(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = rng.integers(0, 4, (50, vocab_size)).astype(np.float32)
    np.testing.assert_array_equal(run(logits, make_arrays(50)).token_ids, logits.argmax(axis=1))
    top_1 = make_arrays(50, temperature=0.9, top_k=1)
    np.testing.assert_array_equal(run(logits, top_1).token_ids, logits.argmax(axis=1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_and_infinity_give_ids_in_range(temperature: float) -> None:
    logits = np.zeros((5, 300), np.float32)
    logits[0] = np.nan
    logits[1, 3:] = np.nan
    logits[2] = -np.inf
    logits[3, 299] = np.inf
    logits[4] = np.finfo(np.float32).min
    arrays = make_arrays(5, temperature=temperature, wants_logprobs=True, top_p=0.9)
    sampled = run(logits, arrays)
    ids = np.asarray(sampled.token_ids)
    assert np.all((ids >= 0) & (ids < 300)) and ids[1] < 3 and ids[3] == 299
    assert np.all(np.isfinite(sampled.logprobs.chosen)) and np.all(
        np.isfinite(sampled.logprobs.top)
    )


def test_stop_ids_are_masked_up_to_min_len_and_not_after() -> None:
    logits = np.tile(np.array([[0.0, 1.0, 5.0, 4.0]], np.float32), (3, 1))
    inits = tuple(SlotInit(row, (), (), (2, 3), ()) for row in (1, 2, 3))
    arrays = make_arrays(3, min_lens=[10, 10, 0])
    sampled = run(logits, arrays, inits, np.array([9, 10, 9], np.int32))
    np.testing.assert_array_equal(sampled.token_ids, [1, 2, 2])


def test_counts_advance_on_the_device_as_a_recount_on_the_host() -> None:
    rng = np.random.default_rng(0)
    num_rows, vocab_size = 5, 60
    arrays = make_arrays(num_rows, frequency_penalty=1.5, repetition_penalty=1.3)
    arrays = replace(arrays, samples=np.array([True, True, False, True, False]))
    arrays.frequency_penalty[4] = 0.0  # the last row is padding: slot 0
    row_slots = np.array([3, 1, 2, 5, 0], np.int32)
    outputs: dict[int, list[int]] = {3: [4, 4], 1: [], 2: [9], 5: [1]}
    tables = jax.tree.map(jnp.zeros_like, garbage_tables(6, vocab_size))
    for slot, output in outputs.items():
        row = slots.init_slot(SlotInit(slot, (slot, 0), tuple(output), (8,), ()), vocab_size)
        tables = jitted_set_slot(tables, np.int32(slot), row)
    sampling = pack_sampling(arrays)
    for _ in range(12):
        logits = rng.standard_normal((num_rows, vocab_size)).astype(np.float32)
        inits = tuple(
            SlotInit(slot, (slot, 0), tuple(outputs.get(slot, ())), (8,), ())
            for slot in row_slots.tolist()
        )
        kv_lens = np.full(num_rows, 9, np.int32)
        sampled = jitted_sample(logits, sampling, tables, row_slots, kv_lens)
        expected = oracle_logits(logits, arrays, inits, kv_lens).argmax(axis=1)
        np.testing.assert_array_equal(sampled.token_ids[:4], expected[:4])
        tables = jitted_record(tables, row_slots, sampled.token_ids, arrays.samples)
        for row in np.flatnonzero(arrays.samples):
            outputs[int(row_slots[row])].append(int(sampled.token_ids[row]))
    token_info = tables.token_info
    for slot, output in outputs.items():
        counts = np.asarray(token_info[slot]) & slots.COUNT_MASK
        np.testing.assert_array_equal(counts, np.bincount(output, minlength=vocab_size))
        assert token_info[slot, slot] & slots.IN_PROMPT and token_info[slot, 8] & slots.IS_STOP
    assert not np.any(token_info[0])


def test_no_flag_and_no_value_traces_again() -> None:
    fresh = jax.jit(lambda *args: sampler.sample(*args))
    tables = garbage_tables(3, 50)
    logits = np.zeros((2, 50), np.float32)
    for values in (
        {},
        {"temperature": 0.7},
        {"temperature": 1.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1},
        {"presence_penalty": 1.0, "wants_logprobs": True},
        {"min_lens": 9, "has_logit_bias": True, "samples": False},
    ):
        sampling = pack_sampling(make_arrays(2, **values))
        fresh(logits, sampling, tables, np.zeros(2, np.int32), np.zeros(2, np.int32))
    assert fresh._cache_size() == 1


def test_the_slot_buffers_are_never_copied() -> None:
    num_slots, vocab_size = 37, 512

    def step(hidden, head, tables, sampling, row_slots, kv_lens):
        sampled = sampler.sample(hidden @ head, sampling, tables, row_slots, kv_lens)
        return sampled, slots.record(
            tables, row_slots, sampled.token_ids, sampling.unpack().samples
        )

    compiled = (
        jax.jit(step, donate_argnums=2)
        .lower(
            jnp.ones((8, 16)),
            jnp.ones((16, vocab_size)),
            garbage_tables(num_slots, vocab_size),
            pack_sampling(make_arrays(8)),
            np.zeros(8, np.int32),
            np.zeros(8, np.int32),
        )
        .compile()
    )
    for shape in {table.shape for table in jax.tree.leaves(garbage_tables(num_slots, vocab_size))}:
        big = f"[{shape[0]},{shape[1]}]"
        lines = [x for x in compiled.as_text().splitlines() if " copy" in x and big in x]
        assert not lines, lines
    # Nor does the branch that leaves the logits as they are copy them.
    logits = [x for x in compiled.as_text().splitlines() if f" = f32[8,{vocab_size}]" in x]
    assert not [x for x in logits if " copy" in x]
    num_bytes = num_slots * (slots.slot_bytes(vocab_size) - 4)  # the last token is not in a table
    assert compiled.memory_analysis().alias_size_in_bytes == num_bytes


def test_it_lowers_for_cuda() -> None:
    lowered = (
        jax.jit(lambda *args: sampler.sample(*args))
        .trace(
            jnp.zeros((2, 600)),
            pack_sampling(make_arrays(2)),
            garbage_tables(3, 600),
            np.zeros(2, np.int32),
            np.zeros(2, np.int32),
        )
        .lower(lowering_platforms=("cuda",))
    )
    assert "stablehlo.case" in lowered.as_text()
