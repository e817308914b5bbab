"""Padding: what a bucket's unused rows and tokens say, and what each real row says."""

import numpy as np
import pytest

from jaxserve.batch import Mode, StepInputs, StepResult
from jaxserve.request import Request, SamplingParams
from jaxserve.scheduler.buckets import Buckets
from jaxserve.scheduler.outputs import row_logprobs
from jaxserve.scheduler.plan import BatchPlan, Chunk, PlanBuilder
from jaxserve.scheduler.sequence import Sequence, make_sequence

SIZE = 4


def make_seq(slot: int, num_computed: int, pages: list[int], length=10, **sampling) -> Sequence:
    params = SamplingParams(**{"seed": 0, "max_new_tokens": 5, **sampling})
    tokens = tuple(range(100 * slot, 100 * slot + length))
    request = Request(rid=str(slot), prompt_ids=tokens, sampling=params, arrival_s=0.0)
    seq = make_sequence(request, slot, (2,))
    seq.slot, seq.num_computed, seq.pages = slot, num_computed, pages
    return seq


def make_builder(*seqs: Sequence) -> PlanBuilder:
    table = np.zeros((6, 8), np.int32)
    for seq in seqs:
        table[seq.slot, : len(seq.pages)] = seq.pages
    buckets = Buckets(
        extend_tokens=(8, 16), extend_rows=4, decode_rows=(1, 4), pages_per_row=(3, 8)
    )
    return PlanBuilder(buckets=buckets, page_table=table, page_size=SIZE)


def extend_two() -> BatchPlan:
    first = make_seq(3, 4, [7, 8, 9])
    second = make_seq(1, 0, [2])
    return make_builder(first, second).extend([Chunk(first, 6, False), Chunk(second, 3, True)])


def test_extend_rows():
    plan = extend_two()
    inputs = plan.inputs
    assert (inputs.bucket.mode, inputs.bucket.num_tokens) == (Mode.EXTEND, 16)
    assert (inputs.bucket.num_rows, inputs.bucket.pages_per_row) == (4, 3)
    assert inputs.token_ids.tolist()[:9] == [304, 305, 306, 307, 308, 309, 100, 101, 102]
    assert inputs.positions.tolist()[:9] == [4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert inputs.write_slots.tolist()[:9] == [32, 33, 34, 35, 36, 37, 8, 9, 10]
    assert inputs.kv_lens.tolist()[:2] == [10, 3]
    assert inputs.row_slots.tolist()[:2] == [3, 1]
    assert inputs.page_table.tolist()[:2] == [[7, 8, 9], [2, 0, 0]]
    assert inputs.sampling.samples.tolist() == [True, False, False, False]
    assert (plan.num_new_tokens, plan.num_cached_tokens, plan.num_new_sequences) == (9, 0, 1)


def test_extend_padding_points_at_the_null_page_and_owns_nothing():
    inputs = extend_two().inputs
    for tokens in (inputs.token_ids, inputs.positions, inputs.write_slots):
        assert not tokens[9:].any()
    for rows in (inputs.kv_lens, inputs.row_slots, inputs.page_table):
        assert not rows[2:].any()
    assert inputs.q_starts.tolist() == [0, 6, 9, 9, 9]


def test_decode_rows_and_padding():
    rows = [make_seq(2, 12, [5, 6, 1, 3], length=12), make_seq(4, 10, [9, 8, 7])]
    inputs = make_builder(*rows).decode(rows).inputs
    assert (inputs.bucket.mode, inputs.bucket.num_rows, inputs.bucket.pages_per_row) == (
        Mode.DECODE,
        4,
        8,
    )
    assert inputs.positions.tolist() == [12, 10, 0, 0]
    assert inputs.kv_lens.tolist() == [13, 11, 0, 0]
    assert inputs.write_slots.tolist() == [12, 30, 0, 0]
    assert inputs.row_slots.tolist() == [2, 4, 0, 0]
    assert inputs.q_starts.tolist() == [0, 1, 2, 3, 4]
    assert inputs.sampling.samples.tolist() == [True, True, False, False]
    assert not inputs.page_table[2:].any()


def arrays(inputs: StepInputs) -> dict[str, np.ndarray]:
    named = {name: getattr(inputs, name) for name in inputs.__dataclass_fields__}
    sampling = named.pop("sampling")
    named |= {name: getattr(sampling, name) for name in sampling.__dataclass_fields__}
    return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}


def test_arrays_have_the_contracts_types_and_are_new_in_every_step():
    seq = make_seq(2, 9, [5, 6, 1])
    builder = make_builder(seq)
    once, again = arrays(builder.decode([seq]).inputs), arrays(builder.decode([seq]).inputs)
    floats = {name for name, value in once.items() if value.dtype == np.float32}
    assert floats == {
        "temperature",
        "top_p",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
    }
    assert {value.dtype for name, value in once.items() if name not in floats} == {
        np.dtype(np.int32),
        np.dtype(np.bool_),
        np.dtype(np.uint32),
    }
    for name in once:
        assert not np.shares_memory(once[name], again[name])
        assert not np.shares_memory(once[name], builder._page_table)


def extend_one(**sampling) -> StepInputs:
    seq = make_seq(2, 0, [5, 6, 1], **sampling)
    return make_builder(seq).extend([Chunk(seq, 10, True)]).inputs


def test_a_row_carries_its_sampling_parameters_and_padding_is_greedy():
    sampling = extend_one(
        temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, num_logprobs=0, presence_penalty=1.5
    ).sampling
    assert sampling.temperature.tolist() == [0.5, 0, 0, 0]
    assert sampling.top_k.tolist() == [7, 0, 0, 0]
    assert sampling.top_p.tolist() == [0.25, 1, 1, 1]
    assert sampling.min_p.tolist() == [0.125, 0, 0, 0]
    assert sampling.presence_penalty.tolist() == [1.5, 0, 0, 0]
    assert sampling.repetition_penalty.tolist() == [1, 1, 1, 1]
    assert sampling.wants_logprobs.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("seed", "words"),
    [(5, [0, 5]), (-1, [2**32 - 1, 2**32 - 1]), (2**40 + 3, [256, 3]), (-(2**63), [2**31, 0])],
)
def test_seeds_are_split_into_words(seed, words):
    assert extend_one(seed=seed).sampling.seeds[0].tolist() == words


def test_stop_ids_are_masked_until_enough_tokens_came_before():
    # The prompt has 10 tokens: at kv_len 10 none came before, at kv_len 12 two did.
    assert extend_one(min_new_tokens=2).sampling.min_lens.tolist() == [12, 0, 0, 0]
    assert extend_one().sampling.min_lens.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "sampling",
    [
        {"frequency_penalty": 1.0},
        {"presence_penalty": 1.0},
        {"repetition_penalty": 1.5},
        {"logit_bias": ((4, 2.0),)},
        {"min_new_tokens": 1},
        {"logprob_token_ids": (3, 1)},
    ],
)
def test_a_slots_past_is_sent_when_it_is_needed(sampling):
    (init,) = extend_one(stop_token_ids=(9,), **sampling).slot_inits
    assert (init.slot, init.output_ids, init.stop_ids) == (2, (), (2, 9))
    assert init.prompt_ids == tuple(range(200, 210))
    assert init.logit_bias == sampling.get("logit_bias", ())
    assert init.logprob_ids == sampling.get("logprob_token_ids", ())


def test_a_slots_past_is_not_sent_without_need_or_twice():
    assert extend_one().slot_inits == ()
    seq = make_seq(2, 4, [5, 6, 1], frequency_penalty=1.0)
    assert make_builder(seq).extend([Chunk(seq, 6, False)]).inputs.slot_inits == ()


def test_a_resumed_sequence_sends_its_output():
    seq = make_seq(2, 0, [5, 6, 1], frequency_penalty=1.0)
    seq.tokens.extend([41, 42])
    (init,) = make_builder(seq).extend([Chunk(seq, 12, True)]).inputs.slot_inits
    assert init.output_ids == (41, 42)


def test_a_request_of_no_tokens_samples_nothing():
    assert not extend_one(max_new_tokens=0).sampling.samples.any()


def test_logprobs_of_a_row():
    result = StepResult(
        token_ids=np.array([4, 5], np.int32),
        logprobs=np.array([-1.0, -2.0], np.float32),
        top_logprobs=np.array([[-1, -3, -4], [-2, -5, -6]], np.float32),
        top_token_ids=np.array([[4, 1, 0], [5, 3, 2]], np.int32),
        id_logprobs=np.array([[-7, -8, 0], [-9, -10, 0]], np.float32),
    )
    (entry,) = row_logprobs(result, 1, make_seq(1, 0, [], num_logprobs=2))
    assert (entry.token_id, entry.logprob) == (5, -2.0)
    assert entry.top == ((5, -2.0), (3, -5.0))
    (entry,) = row_logprobs(result, 0, make_seq(1, 0, [], num_logprobs=0))
    assert (entry.token_id, entry.top, entry.of_ids) == (4, (), ())
    named = {"num_logprobs": 0, "logprob_token_ids": (11, 12)}
    (entry,) = row_logprobs(result, 1, make_seq(1, 0, [], **named))
    assert entry.of_ids == ((11, -9.0), (12, -10.0))
    assert row_logprobs(result, 0, make_seq(1, 0, [])) == ()
    assert row_logprobs(StepResult(token_ids=result.token_ids), 0, make_seq(1, 0, [])) == ()
