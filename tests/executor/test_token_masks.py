"""Token masks: what a masked row may sample, against numpy; and how they reach the step."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_harness import garbage_tables, jitted_sample, log_softmax, make_arrays
from step_harness import DECODE, EXTEND, make_runner, neutral_sampling

from jaxserve.batch import Bucket, Mode, SamplingArrays, SlotInit, StepInputs, TokenMasks
from jaxserve.executor import ModelRunner, sampler, slots
from jaxserve.executor.sampling import pack_sampling

NUM_ROWS = 6
MASKED_ROWS = np.array([4, 0, 3], np.int32)
KINDS: dict[str, dict[str, object]] = {
    "greedy": {},
    "random": {"temperature": 1.3},
    "truncated": {"temperature": 0.8, "top_p": 0.7, "top_k": 9},
    "adjusted": {"frequency_penalty": 0.5, "repetition_penalty": 1.4, "has_logit_bias": True},
    "mixed": {"temperature": [0, 1, 0, 1, 0, 1], "presence_penalty": [0, 0, 1, 0, 2, 0]},
}


def bits_of(is_allowed: np.ndarray) -> np.ndarray:
    """u32[n, M] of bool[n, V], one bit at a time."""
    bits = np.zeros((len(is_allowed), slots.num_mask_words(is_allowed.shape[1])), np.uint32)
    for row, token in np.argwhere(is_allowed):
        bits[row, token // 32] |= np.uint32(1 << (token % 32))
    return bits


def sample(
    logits: np.ndarray,
    arrays: SamplingArrays,
    is_allowed: np.ndarray | None,
    stop_ids: tuple[int, ...] = (),
) -> sampler.Sampled:
    """Row b has slot b + 1; rows without a mask have a garbage one in their slot."""
    num_rows, vocab_size = logits.shape
    tables = garbage_tables(num_rows + 1, vocab_size)
    for slot in range(1, num_rows + 1):
        row = slots.init_slot(SlotInit(slot, (1, 2), (3, 3), stop_ids, ((4, 1.0),)), vocab_size)
        tables = slots.set_slot(tables, jnp.asarray(slot), row)
    row_slots = np.arange(1, num_rows + 1, dtype=np.int32)
    masked_rows = None
    if is_allowed is not None:
        masked_rows = MASKED_ROWS
        packed = slots.pack_masks(TokenMasks(MASKED_ROWS, bits_of(is_allowed)), row_slots, 5)
        tables = jax.jit(slots.set_masks)(tables, packed)
    packed_sampling = pack_sampling(arrays, masked_rows)
    kv_lens = np.full(num_rows, 5, np.int32)
    return jitted_sample(logits.astype(np.float32), packed_sampling, tables, row_slots, kv_lens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [40, 64, 331])
def test_a_mask_is_minus_infinity_where_it_forbids(vocab_size: int, kind: str) -> None:
    """The same as sampling from logits that are -inf there; rows without one are untouched."""
    rng = np.random.default_rng(vocab_size)
    logits = 3 * rng.standard_normal((NUM_ROWS, vocab_size))
    is_allowed = rng.random((3, vocab_size)) < 0.2
    is_allowed[np.arange(3), rng.integers(0, vocab_size, 3)] = True
    forbidden = np.zeros(logits.shape, bool)
    forbidden[MASKED_ROWS] = ~is_allowed
    arrays = make_arrays(NUM_ROWS, wants_logprobs=True, **KINDS[kind])
    got = sample(logits, arrays, is_allowed)
    expected = sample(np.where(forbidden, -np.inf, logits), arrays, None)
    np.testing.assert_array_equal(got.token_ids, expected.token_ids)
    np.testing.assert_array_equal(got.logprobs.values, expected.logprobs.values)
    assert not forbidden[np.arange(NUM_ROWS), got.token_ids].any()
    if kind == "greedy":
        masked = np.where(forbidden, -np.inf, logits)
        np.testing.assert_array_equal(got.token_ids, masked.argmax(axis=1))
        wanted = log_softmax(masked)[np.arange(NUM_ROWS), got.token_ids]
        np.testing.assert_allclose(got.logprobs.chosen, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_allowed_token_is_certain_whatever_the_logits(kind: str) -> None:
    logits = np.random.default_rng(0).standard_normal((NUM_ROWS, 100))
    logits[MASKED_ROWS[0]], logits[MASKED_ROWS[1]] = np.nan, -np.inf
    logits[MASKED_ROWS[2], 50] = 1e30
    is_allowed = np.zeros((3, 100), bool)
    is_allowed[[0, 1, 2], [99, 0, 31]] = True
    sampled = sample(logits, make_arrays(NUM_ROWS, wants_logprobs=True, **KINDS[kind]), is_allowed)
    ids, found = np.asarray(sampled.token_ids), np.asarray(sampled.logprobs.chosen)
    assert ids[MASKED_ROWS].tolist() == [99, 0, 31]
    assert found[MASKED_ROWS].tolist() == [0.0, 0.0, 0.0]


def test_a_mask_wins_over_min_new_tokens_and_both_hold_where_they_can() -> None:
    logits = np.tile(np.arange(40.0), (NUM_ROWS, 1))
    is_allowed = np.zeros((3, 40), bool)
    is_allowed[0, [38, 39]] = True  # nothing but stop ids
    is_allowed[1, [7, 39]] = True
    is_allowed[2] = True
    arrays = make_arrays(NUM_ROWS, min_lens=9)
    sampled = sample(logits, arrays, is_allowed, stop_ids=(38, 39))
    ids = np.asarray(sampled.token_ids)
    assert ids[MASKED_ROWS].tolist() == [39, 7, 37]
    assert ids[[1, 2, 5]].tolist() == [37, 37, 37]


def test_bits_beyond_the_vocabulary_are_nothing() -> None:
    logits = np.zeros((NUM_ROWS, 33))
    packed = np.full((1, 3), 0xFFFFFFFF, np.uint32)
    packed[:, 0] = 5
    tables = jax.jit(slots.set_masks)(garbage_tables(NUM_ROWS + 1, 33), packed)
    sampling = pack_sampling(make_arrays(NUM_ROWS), np.array([4], np.int32))
    row_slots = np.arange(1, NUM_ROWS + 1, dtype=np.int32)
    ids = jitted_sample(logits.astype(np.float32), sampling, tables, row_slots, row_slots).token_ids
    assert ids[4] == 0


@pytest.mark.parametrize(("max_rows", "counts"), [(1, (1,)), (8, (1, 4, 8)), (64, (1, 4, 16, 64))])
def test_numbers_of_masks_written_at_once(max_rows: int, counts: tuple[int, ...]) -> None:
    assert slots.mask_row_counts(max_rows) == counts


@pytest.fixture(scope="module")
def runner(tiny_checkpoint: Path) -> Iterator[ModelRunner]:
    runner = make_runner(tiny_checkpoint, num_pages=64)
    yield runner
    runner.close()


def inputs_of(bucket: Bucket, **sampling: object) -> StepInputs:
    """Rows of one token each, in pages and slots of their own."""
    rows = np.arange(bucket.num_rows, dtype=np.int32)
    page_table = np.zeros((bucket.num_rows, bucket.pages_per_row), np.int32)
    page_table[:, 0] = 1 + rows
    tokens = np.zeros(bucket.num_tokens, np.int32)
    write_slots = tokens.copy()
    write_slots[: len(rows)] = 16 * (1 + rows)
    return StepInputs(
        bucket=bucket,
        token_ids=tokens,
        positions=tokens,
        write_slots=write_slots,
        page_table=page_table,
        kv_lens=np.ones(bucket.num_rows, np.int32),
        q_starts=np.arange(bucket.num_rows + 1, dtype=np.int32),
        row_slots=1 + rows,
        sampling=replace(neutral_sampling(bucket), **sampling),
    )


def masks_of(runner: ModelRunner, allowed: dict[int, int]) -> TokenMasks:
    """Row → its only token."""
    vocab_size = runner._state.slots.token_info.shape[1]
    is_allowed = np.zeros((len(allowed), vocab_size), bool)
    is_allowed[np.arange(len(allowed)), list(allowed.values())] = True
    return TokenMasks(np.array(list(allowed), np.int32), bits_of(is_allowed))


@pytest.mark.parametrize("bucket", [DECODE, EXTEND], ids=["decode", "extend"])
def test_a_step_samples_what_its_masks_allow_and_forgets_them(
    runner: ModelRunner, bucket: Bucket
) -> None:
    before = runner.compile_counter.since_freeze
    free = runner.launch(inputs_of(bucket)).fetch().token_ids
    last = bucket.num_rows - 1
    masks = masks_of(runner, {last: 258, 0: 31})
    step = runner.launch(inputs_of(bucket), masks)
    masks.bits[:], masks.rows[:] = 0, 0  # the caller's again
    ids = step.fetch().token_ids.tolist()
    assert (ids[last], ids[0]) == (258, 31)
    wants = {"wants_logprobs": np.ones(bucket.num_rows, np.bool_)}
    again = runner.launch(inputs_of(bucket, **wants), masks_of(runner, {0: 7})).fetch()
    assert again.token_ids[0] == 7 and again.logprobs is not None and again.logprobs[0] == 0.0
    if bucket.mode is Mode.EXTEND:  # a decode step goes on from the last tokens, others now
        assert runner.launch(inputs_of(bucket)).fetch().token_ids.tolist() == free.tolist()
    assert runner.compile_counter.since_freeze == before


def test_every_number_of_masks(runner: ModelRunner) -> None:
    before = runner.compile_counter.since_freeze
    for count in range(DECODE.num_rows + 1):
        allowed = {row: 40 + row for row in range(count)}
        ids = runner.launch(inputs_of(DECODE), masks_of(runner, allowed)).fetch().token_ids
        assert ids[:count].tolist() == list(allowed.values())
    assert runner.compile_counter.since_freeze == before


@pytest.mark.parametrize(
    ("rows", "bits", "message"),
    [
        ([0], np.zeros((1, 8), np.uint32), r"are uint32\[1, 8\]; 1 rows over 259 tokens need"),
        ([0], np.zeros((1, 9), np.int32), r"are int32\[1, 9\].*need uint32\[1, 9\]"),
        ([0, 1], np.zeros((1, 9), np.uint32), r"need uint32\[2, 9\]"),
        ([4], np.zeros((1, 9), np.uint32), r"token masks of rows \[4\]; the step has rows 0 to 3"),
        ([-1], np.zeros((1, 9), np.uint32), r"token masks of rows \[-1\]"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    runner: ModelRunner, rows: list[int], bits: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        runner.launch(inputs_of(DECODE), TokenMasks(np.array(rows, np.int32), bits))
