"""Rows sampled late: what a masked row may sample, against numpy; and how it joins its step."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from sampler_harness import garbage_tables, jitted_sample, log_softmax, make_arrays
from step_harness import DECODE, EXTEND, make_runner, neutral_sampling

from jaxserve.batch import (
    Bucket,
    Mode,
    SamplingArrays,
    SlotInit,
    StepInputs,
    StepResult,
    TokenMasks,
)
from jaxserve.executor import ModelRunner, sampler, slots
from jaxserve.executor.late_sampler import late_row_counts, num_mask_words
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
    bits = np.zeros((len(is_allowed), num_mask_words(is_allowed.shape[1])), np.uint32)
    for row, token in np.argwhere(is_allowed):
        bits[row, token // 32] |= np.uint32(1 << (token % 32))
    return bits


def sample(
    logits: np.ndarray,
    arrays: SamplingArrays,
    is_allowed: np.ndarray | None,
    stop_ids: tuple[int, ...] = (),
) -> sampler.Sampled:
    """Row b has slot b + 1; the masks are of MASKED_ROWS, the others may sample anything."""
    num_rows, vocab_size = logits.shape
    tables = garbage_tables(num_rows + 1, vocab_size)
    for slot in range(1, num_rows + 1):
        row = slots.init_slot(SlotInit(slot, (1, 2), (3, 3), stop_ids, ((4, 1.0),)), vocab_size)
        tables = slots.set_slot(tables, jnp.asarray(slot), row)
    row_slots = np.arange(1, num_rows + 1, dtype=np.int32)
    masks = None
    if is_allowed is not None:
        masks = np.full((num_rows, num_mask_words(vocab_size)), 0xFFFFFFFF, np.uint32)
        masks[MASKED_ROWS] = bits_of(is_allowed)
    kv_lens = np.full(num_rows, 5, np.int32)
    sampling = pack_sampling(arrays)
    return jitted_sample(logits.astype(np.float32), sampling, tables, row_slots, kv_lens, masks)


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
    logits = np.full((NUM_ROWS, 33), -1.0)
    masks = np.zeros((NUM_ROWS, 2), np.uint32)
    masks[:, 1] = 0xFFFFFFFF  # of them only token 32 exists
    row_slots = np.arange(1, NUM_ROWS + 1, dtype=np.int32)
    sampling = pack_sampling(make_arrays(NUM_ROWS))
    tables = garbage_tables(NUM_ROWS + 1, 33)
    sampled = jitted_sample(
        logits.astype(np.float32), sampling, tables, row_slots, row_slots, masks
    )
    assert sampled.token_ids.tolist() == [32] * NUM_ROWS


@pytest.mark.parametrize(("num_rows", "counts"), [(1, (1,)), (8, (8,)), (9, (8, 9)), (64, (8, 64))])
def test_numbers_of_rows_sampled_late(num_rows: int, counts: tuple[int, ...]) -> None:
    assert late_row_counts(num_rows) == counts


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


def launch(runner: ModelRunner, inputs: StepInputs, allowed: dict[int, int]) -> StepResult:
    """A step whose rows in ``allowed`` are sampled late."""
    step = runner.launch(inputs, sorted(allowed))
    return runner.sample(step, inputs, masks_of(runner, allowed)).fetch()


@pytest.mark.parametrize("bucket", [DECODE, EXTEND], ids=["decode", "extend"])
def test_a_step_samples_what_its_masks_allow_and_forgets_them(
    runner: ModelRunner, bucket: Bucket
) -> None:
    before = runner.compile_counter.since_freeze
    free = runner.launch(inputs_of(bucket)).fetch().token_ids
    last = bucket.num_rows - 1
    inputs = inputs_of(bucket)
    step = runner.launch(inputs, [0, last])
    masks = masks_of(runner, {last: 258, 0: 31})
    step = runner.sample(step, inputs, masks)
    masks.bits[:], masks.rows[:] = 0, 0  # the caller's again
    ids = step.fetch().token_ids.tolist()
    assert (ids[last], ids[0]) == (258, 31)
    if bucket.mode is Mode.EXTEND:
        assert ids[1:last] == free.tolist()[1:last]
    wants = {"wants_logprobs": np.ones(bucket.num_rows, np.bool_)}
    again = launch(runner, inputs_of(bucket, **wants), {0: 7})
    assert again.token_ids[0] == 7 and again.logprobs is not None and again.logprobs[0] == 0.0
    assert (again.logprobs[1:] < 0).all()
    if bucket.mode is Mode.EXTEND:  # a decode step goes on from the last tokens, others now
        assert runner.launch(inputs_of(bucket)).fetch().token_ids.tolist() == free.tolist()
    assert runner.compile_counter.since_freeze == before


def test_the_next_step_goes_on_from_what_was_sampled_late(runner: ModelRunner) -> None:
    """A decode step and an extend step whose token is in flight read the same last token."""
    starts = inputs_of(DECODE)
    launch(runner, starts, {0: 31, 2: 77})
    tokens, slots_of_rows = [], starts.row_slots
    for known in (None, 31, 99):
        token_ids = np.zeros(EXTEND.num_tokens, np.int32)
        token_ids[: EXTEND.num_rows] = ~inputs_of(EXTEND).row_slots
        token_ids[0] = ~slots_of_rows[0] if known is None else known
        launch(runner, starts, {0: 31, 2: 77})
        step = runner.launch(replace(inputs_of(EXTEND), token_ids=token_ids))
        tokens.append(int(step.fetch().token_ids[0]))
    launch(runner, starts, {0: 31, 2: 77})
    decoded = int(runner.launch(starts).fetch().token_ids[0])
    assert tokens[0] == tokens[1] == decoded != tokens[2]


def test_a_row_that_nobody_samples_leaves_its_slot_alone(runner: ModelRunner) -> None:
    inputs = inputs_of(DECODE)
    launch(runner, inputs, {row: 40 + row for row in range(DECODE.num_rows)})
    info = np.asarray(runner._state.slots.token_info)
    runner.launch(inputs, [1]).fetch()
    assert np.asarray(runner._state.last_tokens)[inputs.row_slots[1]] == 41
    counted = np.asarray(runner._state.slots.token_info) - info
    assert counted.sum(axis=1)[inputs.row_slots].tolist() == [1, 0, 1, 1]


def test_every_number_of_rows(runner: ModelRunner) -> None:
    before = runner.compile_counter.since_freeze
    for count in range(1, DECODE.num_rows + 1):
        allowed = {row: 40 + row for row in range(count)}
        ids = launch(runner, inputs_of(DECODE), allowed).token_ids
        assert ids[:count].tolist() == list(allowed.values())
    assert runner.compile_counter.since_freeze == before


def test_tokens_sampled_late_are_counted_once(runner: ModelRunner) -> None:
    """A slot's counts after a step: one of the token that it got."""
    init = SlotInit(1, (), (), (), ())
    inputs = replace(inputs_of(DECODE), slot_inits=(init,))
    launch(runner, inputs, {0: 77})
    counts = np.asarray(runner._state.slots.token_info[1])
    assert np.flatnonzero(counts).tolist() == [77] and counts[77] == 1


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
    inputs = inputs_of(DECODE)
    step = runner.launch(inputs, [0, 1])
    with pytest.raises(ValueError, match=message):
        runner.sample(step, inputs, TokenMasks(np.array(rows, np.int32), bits))


def test_without_grammars_nothing_is_compiled_for_them(tiny_checkpoint: Path) -> None:
    runner = make_runner(tiny_checkpoint, num_pages=64, grammar_backend="none")
    assert not runner._late._programs
    assert runner.launch(inputs_of(DECODE)).fetch().token_ids.shape == (DECODE.num_rows,)
    runner.close()
