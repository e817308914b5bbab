"""Tokens that are appended, and sequences that are sent back, between two steps."""

import numpy as np
import pytest

from jaxserve.batch import StepResult
from jaxserve.request import FinishReason, Request, SamplingParams, TokenLogprob, TokenOutput
from jaxserve.scheduler import BatchPlan, Scheduler, SchedulerConfig, make_buckets

SIZE, EOS = 4, 2


def make_scheduler(num_pages: int = 65, **changes: object) -> Scheduler:
    fields = {
        "max_running_requests": 4,
        "chunked_prefill_size": 16,
        "prefill_max_requests": 3,
        "page_size": SIZE,
    }
    config = SchedulerConfig(**{**fields, **changes})
    buckets = make_buckets(
        chunked_prefill_size=config.chunked_prefill_size,
        max_running_requests=config.max_running_requests,
        prefill_max_requests=config.prefill_max_requests,
        max_pages_per_row=16,
    )
    return Scheduler(config, num_pages=num_pages, buckets=buckets, eos_token_ids=(EOS,))


def add(scheduler: Scheduler, *rids: str, **sampling: object) -> None:
    for rid in rids:
        params = SamplingParams(**{"seed": 0, "max_new_tokens": 20, **sampling})
        first = 20 * ord(rid[0])
        scheduler.add(
            Request(
                rid=rid, prompt_ids=tuple(range(first, first + 5)), sampling=params, arrival_s=0.0
            )
        )


def turn(scheduler: Scheduler, token: int = 9) -> tuple[str, dict[str, int]]:
    """The mode of the next step, and each row's number of tokens in it."""
    plan = scheduler.schedule()
    scheduler.check()
    assert plan is not None
    process(scheduler, plan, token)
    lens = np.diff(plan.inputs.q_starts).tolist()
    return plan.mode.value, {seq.rid: lens[row] for row, seq in enumerate(plan.rows)}


def process(scheduler: Scheduler, plan: BatchPlan, token: int = 9) -> list[TokenOutput]:
    num_rows = plan.inputs.bucket.num_rows
    outputs = scheduler.process(plan, StepResult(token_ids=np.full(num_rows, token, np.int32)))
    scheduler.check()
    return outputs


def test_appended_tokens_are_an_output_and_the_next_step_computes_them():
    scheduler = make_scheduler()
    add(scheduler, "a")
    turn(scheduler)
    logprobs = tuple(TokenLogprob(token, 0.0) for token in (30, 31))
    output = scheduler.append("a", (30, 31), logprobs)
    assert (output.token_ids, output.logprobs, output.finish) == ((30, 31), logprobs, None)
    assert turn(scheduler) == ("extend", {"a": 3})
    assert turn(scheduler) == ("decode", {"a": 1})


def test_running_rows_take_part_with_one_token_each():
    scheduler = make_scheduler()
    add(scheduler, "a", "b", "c")
    assert turn(scheduler) == ("extend", {"a": 5, "b": 5, "c": 5})
    scheduler.append("b", (30, 31))
    assert turn(scheduler) == ("extend", {"b": 3, "a": 1, "c": 1})
    assert turn(scheduler) == ("decode", {"a": 1, "b": 1, "c": 1})


def test_those_left_out_decode_next():
    scheduler = make_scheduler(prefill_max_requests=2)
    add(scheduler, "a", "b", "c")
    for _ in range(2):
        turn(scheduler)
    scheduler.append("c", (30,))
    assert turn(scheduler) == ("extend", {"c": 2, "a": 1})
    scheduler.append("c", (30,))
    assert turn(scheduler) == ("decode", {"a": 1, "b": 1})
    assert turn(scheduler) == ("extend", {"c": 2, "a": 1})


def test_a_row_is_left_for_those_that_wait():
    scheduler = make_scheduler(prefill_max_requests=2)
    add(scheduler, "a", "b")
    turn(scheduler)
    for rid in "ab":
        scheduler.append(rid, (30,))
    add(scheduler, "c")
    assert turn(scheduler) == ("extend", {"a": 2, "c": 5})
    assert turn(scheduler) == ("extend", {"b": 2, "a": 1})


def test_a_row_whose_token_is_in_flight_takes_part_with_it():
    scheduler = make_scheduler()
    add(scheduler, "a", "b")
    turn(scheduler)
    first = scheduler.schedule()
    assert first is not None and first.awaited([0, 1]) == [0, 1]
    scheduler.append("a", (30, 31))
    assert first.awaited([0, 1]) == [1]
    second = scheduler.schedule()
    assert second is not None and [seq.rid for seq in second.rows] == ["a", "b"]
    assert second.inputs.q_starts[:3].tolist() == [0, 2, 3]
    assert second.inputs.token_ids[:3].tolist() == [30, 31, ~second.rows[1].slot]
    assert second.inputs.kv_lens[:2].tolist() == [8, 7]
    assert second.inputs.sampling.samples[:2].all()
    outputs = process(scheduler, first.without([0]), 40)
    assert [(output.rid, output.token_ids) for output in outputs] == [("b", (40,))]
    outputs = process(scheduler, second, 41)
    assert [(output.rid, output.token_ids) for output in outputs] == [("a", (41,)), ("b", (41,))]
    assert turn(scheduler) == ("decode", {"a": 1, "b": 1})


def test_tokens_cannot_be_appended_before_those_of_two_steps():
    scheduler = make_scheduler()
    add(scheduler, "a")
    turn(scheduler)
    plans = [scheduler.schedule(), scheduler.schedule()]
    with pytest.raises(ValueError, match="rid 'a' has steps in flight; append only to a"):
        scheduler.append("a", (31,))
    for plan in plans:
        assert plan is not None
        process(scheduler, plan)


def test_a_sequence_ends_while_its_step_is_in_flight():
    scheduler = make_scheduler()
    add(scheduler, "a", "b")
    turn(scheduler)
    plan = scheduler.schedule()
    assert plan is not None
    output = scheduler.append("b", (EOS,), finish=FinishReason("stop", matched=EOS))
    assert output.finish == FinishReason("stop", matched=EOS)
    assert plan.awaited([0, 1]) == [0]
    assert [output.rid for output in process(scheduler, plan.without([1]))] == ["a"]


def test_many_appended_tokens_are_computed_in_chunks_and_others_join_in_between():
    scheduler = make_scheduler(chunked_prefill_size=8)
    add(scheduler, "a", max_new_tokens=40)
    turn(scheduler)
    scheduler.append("a", tuple(range(30, 48)))
    assert turn(scheduler) == ("extend", {"a": 8})
    add(scheduler, "b")
    assert turn(scheduler) == ("extend", {"a": 8})
    assert turn(scheduler) == ("extend", {"a": 3, "b": 5})
    assert turn(scheduler) == ("decode", {"a": 1, "b": 1})


def test_before_the_first_step_they_are_computed_with_the_prompt():
    scheduler = make_scheduler()
    add(scheduler, "a")
    assert scheduler.append("a", (30, 31)).num_cached == 0
    assert turn(scheduler) == ("extend", {"a": 7})
    with pytest.raises(ValueError, match="rid 'b' is not alive; append only to a sequence"):
        scheduler.append("b", (1,))


def test_a_half_prefilled_sequence_does_not_stand_still():
    scheduler = make_scheduler(chunked_prefill_size=4)
    add(scheduler, "a")
    plan = scheduler.schedule()
    with pytest.raises(ValueError, match="rid 'a' has steps in flight"):
        scheduler.append("a", (1,))
    assert plan is not None
    process(scheduler, plan)


@pytest.mark.parametrize(
    ("sampling", "finish", "taken", "expected"),
    [
        ({}, None, 6, None),
        ({"max_new_tokens": 4}, None, 3, FinishReason("length")),
        ({"stop_token_ids": (31,)}, None, 2, FinishReason("stop", matched=31)),
        ({"stop_token_ids": (31,), "min_new_tokens": 4}, None, 6, None),
        ({}, FinishReason("stop", matched=EOS), 6, FinishReason("stop", matched=EOS)),
        ({"max_new_tokens": 4}, FinishReason("stop"), 3, FinishReason("length")),
        ({"max_new_tokens": 7}, FinishReason("stop"), 6, FinishReason("stop")),
    ],
)
@pytest.mark.parametrize("has_run", [True, False])
def test_they_end_a_sequence_as_if_they_were_sampled(sampling, finish, taken, expected, has_run):
    scheduler = make_scheduler()
    add(scheduler, "a", **sampling)
    if has_run:
        turn(scheduler)
    else:
        scheduler.append("a", (9,))
    output = scheduler.append("a", tuple(range(30, 36)), finish=finish)
    assert (output.token_ids, output.finish) == (tuple(range(30, 30 + taken)), expected)
    scheduler.check()
    assert scheduler.has_work == (expected is None)


def test_a_sequence_is_sent_back_for_the_pages_of_appended_tokens():
    scheduler = make_scheduler(num_pages=8)
    add(scheduler, "old", "young")
    turn(scheduler)
    scheduler.append("old", tuple(range(30, 45)))
    assert turn(scheduler)[1] == {"old": 16}
    assert scheduler.stats().num_retracted == 1
    assert scheduler.stats().num_retractions == 1


def test_retract_all_frees_everything_and_keeps_the_order():
    scheduler = make_scheduler(chunked_prefill_size=12)
    add(scheduler, "a", "b", "c")
    turn(scheduler)
    assert (scheduler.num_running, scheduler.stats().num_prefilling) == (2, 1)
    assert scheduler.retract_all() == 2
    scheduler.check()
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_retracted) == (0, 3, 3)
    assert (stats.num_private_pages, stats.num_prefilling) == (0, 0)
    assert stats.num_evictable_pages == stats.num_cached_pages
    assert (stats.num_retracted_prompt_tokens, stats.num_retracted_output_tokens) == (15, 2)
    assert stats.num_waiting_tokens == 15
    assert list(turn(scheduler)[1]) == ["a", "b", "c"]
    assert not scheduler.flush_cache()
