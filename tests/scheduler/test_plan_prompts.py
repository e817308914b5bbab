"""Which tokens of a step say what about the prompt tokens after them, each exactly once."""

import numpy as np
import pytest

from jaxserve.batch import MAX_PROMPT_BLOCK, PROMPT_BLOCK_SIZES, PromptLogprobs, StepResult
from jaxserve.request import Request, SamplingParams, TokenLogprob
from jaxserve.scheduler.buckets import Buckets
from jaxserve.scheduler.outputs import row_prompt_logprobs
from jaxserve.scheduler.plan import BatchPlan, Chunk, PlanBuilder
from jaxserve.scheduler.sequence import Sequence, make_sequence

PAGES = 16


def make_seq(slot: int, length: int, start: int | None, **sampling: object) -> Sequence:
    """Token p of the sequence in slot s is 1000 * s + p."""
    params = SamplingParams(seed=0, prompt_logprobs_start=start, **sampling)
    tokens = tuple(range(1000 * slot, 1000 * slot + length))
    request = Request(rid=str(slot), prompt_ids=tokens, sampling=params, arrival_s=0.0)
    seq = make_sequence(request, slot, (2,))
    seq.slot, seq.pages = slot, list(range(1, PAGES + 1))
    return seq


def make_builder() -> PlanBuilder:
    buckets = Buckets(
        extend_tokens=(1024,), extend_rows=4, decode_rows=(4,), pages_per_row=(PAGES,)
    )
    return PlanBuilder(buckets=buckets, page_table=np.zeros((5, PAGES), np.int32), page_size=64)


def plan_of(*chunks: tuple[Sequence, int]) -> BatchPlan:
    plan = make_builder().extend([Chunk(seq, size, False) for seq, size in chunks])
    for seq, size in chunks:
        seq.num_computed += size
    return plan


def answer(plan: BatchPlan) -> StepResult:
    """A device that gives each target, read through the step's tokens, the logprob -target."""
    inputs = plan.inputs
    logprobs: list[float] = []
    for block in inputs.prompt_blocks:
        after = inputs.token_ids[block.tokens[: block.size]] + 1
        is_real = block.targets[: block.size] != 0
        assert np.array_equal(after[is_real], block.targets[: block.size][is_real])
        assert np.array_equal(block.slots[: block.size], block.targets[: block.size] // 1000)
        logprobs += (-block.targets[: block.size]).astype(float).tolist()
    count = len(logprobs)
    ids = np.tile(np.arange(20, dtype=np.int32), (count, 1))
    values = np.asarray(logprobs, np.float32)
    top = np.tile(values[:, None], (1, 20))
    prompt = PromptLogprobs(values, top, ids, np.tile(values[:, None], (1, 64)))
    return StepResult(np.zeros(4, np.int32), prompt=prompt if count else None)


def entries_of(plan: BatchPlan) -> list[tuple[TokenLogprob, ...]]:
    result = answer(plan)
    return [row_prompt_logprobs(plan, result, row) for row in range(len(plan.rows))]


def assert_covers(entries: tuple[TokenLogprob, ...], slot: int, start: int, stop: int) -> None:
    assert [entry.token_id for entry in entries] == [1000 * slot + p for p in range(start, stop)]
    for position, entry in enumerate(entries, start):
        expected = None if position == 0 else -float(1000 * slot + position)
        assert entry.logprob == expected


@pytest.mark.parametrize("start", [0, 1, 2, 5, 9, 10])
@pytest.mark.parametrize("cuts", [(10,), (4, 6), (1, 1, 8), (9, 1)])
def test_every_position_once_however_the_prompt_is_cut(cuts: tuple[int, ...], start: int) -> None:
    seq = make_seq(3, 10, start)
    entries = [entry for size in cuts for entry in entries_of(plan_of((seq, size)))[0]]
    assert_covers(tuple(entries), 3, start, 10)


@pytest.mark.parametrize(
    ("start", "num_matchable"), [(None, 10), (0, 0), (1, 0), (2, 1), (7, 6), (10, 10)]
)
def test_the_cache_may_supply_what_comes_before_the_token_before(
    start: int | None, num_matchable: int
) -> None:
    seq = make_seq(1, 10, start)
    assert seq.num_matchable == num_matchable
    if start is not None:  # exactly that much may be missing from the step
        seq.num_computed = min(num_matchable, 9)
        (entries,) = entries_of(plan_of((seq, 10 - seq.num_computed)))
        assert_covers(entries, 1, start, 10)
    assert seq.num_matchable == 10, "once they are computed, a resumed sequence takes all it can"


def test_a_sequence_computed_again_reports_nothing_again() -> None:
    seq = make_seq(1, 10, 0)
    (first,) = entries_of(plan_of((seq, 6)))
    seq.num_computed = 0  # retracted
    assert seq.num_matchable == 6
    (again,) = entries_of(plan_of((seq, 10)))
    assert_covers(first + again, 1, 0, 10)
    assert plan_of((make_seq(2, 5, None), 5)).prompt_spans == {}


def test_output_tokens_are_no_prompt() -> None:
    seq = make_seq(1, 4, 0)
    seq.tokens.extend([71, 72])
    (entries,) = entries_of(plan_of((seq, 6)))
    assert_covers(entries, 1, 0, 4)


def test_rows_share_blocks() -> None:
    seqs = [make_seq(1, 100, 0), make_seq(2, 30, None), make_seq(3, 100, 40), make_seq(4, 1, 0)]
    plan = plan_of(*((seq, seq.num_prompt) for seq in seqs))
    wanted = 99 + 60
    assert [block.size for block in plan.inputs.prompt_blocks] == [MAX_PROMPT_BLOCK, 128]
    assert sum(np.count_nonzero(block.targets) for block in plan.inputs.prompt_blocks) == wanted
    entries = entries_of(plan)
    for row, start in ((0, 0), (2, 40), (3, 0)):
        assert_covers(entries[row], row + 1, start, seqs[row].num_prompt)
    assert entries[1] == ()


def test_a_prompt_of_one_token_needs_no_block() -> None:
    plan = plan_of((make_seq(1, 1, 0), 1))
    assert plan.inputs.prompt_blocks == ()
    assert entries_of(plan) == [(TokenLogprob(1000, None),)]


@pytest.mark.parametrize(
    ("length", "sizes"), [(2, [16]), (17, [16]), (18, [128]), (130, [128, 16])]
)
def test_short_prompts_take_the_small_block(length: int, sizes: list[int]) -> None:
    blocks = plan_of((make_seq(1, length, 0), length)).inputs.prompt_blocks
    assert [block.size for block in blocks] == sizes
    assert set(sizes) <= set(PROMPT_BLOCK_SIZES)
    for block in blocks:
        for array in (block.tokens, block.targets, block.slots):
            assert (array.shape, array.dtype) == ((MAX_PROMPT_BLOCK,), np.int32)
    padding = blocks[-1].targets[(length - 1) % MAX_PROMPT_BLOCK :]
    assert not padding.any()


def test_an_entry_has_what_its_request_asked_for() -> None:
    seq = make_seq(1, 3, 2, num_logprobs=2, logprob_token_ids=(8, 9))
    ((entry,),) = entries_of(plan_of((seq, 3)))
    assert entry.top == ((0, -1002.0), (1, -1002.0))
    assert entry.of_ids == ((8, -1002.0), (9, -1002.0))
    assert (entry.token_id, entry.logprob) == (1002, -1002.0)
