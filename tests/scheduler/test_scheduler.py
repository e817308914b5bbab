"""What the scheduler decides: order, chunks, turns, ends, refusals."""

import numpy as np
import pytest

from jaxserve.batch import Mode, StepResult
from jaxserve.config import EngineConfig
from jaxserve.errors import ContextLengthError, KVCacheFullError, OverloadedError
from jaxserve.request import FinishReason, Request, SamplingParams, TokenOutput
from jaxserve.scheduler import BatchPlan, Scheduler, SchedulerConfig, make_buckets

SIZE, EOS = 4, 2


def make_scheduler(num_pages: int = 65, max_pages_per_row: int = 16, **changes) -> Scheduler:
    fields = {
        "max_running_requests": 4,
        "chunked_prefill_size": 16,
        "prefill_max_requests": 4,
        "page_size": SIZE,
    }
    config = SchedulerConfig(**{**fields, **changes})
    buckets = make_buckets(
        chunked_prefill_size=config.chunked_prefill_size,
        max_running_requests=config.max_running_requests,
        prefill_max_requests=config.prefill_max_requests,
        max_pages_per_row=max_pages_per_row,
    )
    return Scheduler(config, num_pages=num_pages, buckets=buckets, eos_token_ids=(EOS,))


def make_request(rid: str, prompt=range(10, 16), priority: int = 0, **sampling) -> Request:
    params = SamplingParams(**{"seed": 0, "max_new_tokens": 4, **sampling})
    return Request(
        rid=rid, prompt_ids=tuple(prompt), sampling=params, arrival_s=0.0, priority=priority
    )


def sampled(plan: BatchPlan, token: int = 9) -> StepResult:
    return StepResult(token_ids=np.full(plan.inputs.bucket.num_rows, token, np.int32))


def turn(scheduler: Scheduler, token: int = 9) -> tuple[str, str, list[TokenOutput]]:
    """One turn without overlap: the mode, the rids of the rows, the outputs."""
    plan = scheduler.schedule()
    scheduler.check()
    assert plan is not None
    outputs = scheduler.process(plan, sampled(plan, token))
    scheduler.check()
    return plan.mode.value, " ".join(seq.rid for seq in plan.rows), outputs


def finish_all(scheduler: Scheduler) -> dict[str, FinishReason]:
    ends: dict[str, FinishReason] = {}
    for _ in range(1_000):
        if not scheduler.has_work:
            return ends
        ends |= {out.rid: out.finish for out in turn(scheduler)[2] if out.finish is not None}
    raise AssertionError("the requests do not finish")


# ---- ends ------------------------------------------------------------------------------------


def test_a_request_runs_to_its_length():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", max_new_tokens=3))
    turns = [turn(scheduler) for _ in range(3)]
    assert [mode for mode, _, _ in turns] == ["extend", "decode", "decode"]
    outputs = [output for _, _, (output,) in turns]
    assert [output.token_ids for output in outputs] == [(9,), (9,), (9,)]
    assert [output.finish for output in outputs] == [None, None, FinishReason("length")]
    assert not scheduler.has_work
    assert scheduler.schedule() is None


def test_length_is_known_in_advance_so_no_surplus_step_is_planned():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", max_new_tokens=2))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None and second is not None
    assert scheduler.schedule() is None
    scheduler.process(first, sampled(first))
    (output,) = scheduler.process(second, sampled(second))
    assert output.finish == FinishReason("length")


def test_the_surplus_token_after_a_stop_token_is_dropped():
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    first, surplus = scheduler.schedule(), scheduler.schedule()
    assert first is not None and surplus is not None
    (output,) = scheduler.process(first, sampled(first, EOS))
    assert (output.token_ids, output.finish) == ((EOS,), FinishReason("stop", matched=EOS))
    assert not scheduler.has_work
    assert scheduler.process(surplus, sampled(surplus)) == []
    scheduler.check()


@pytest.mark.parametrize(
    ("sampling", "token", "finish"),
    [
        ({"ignore_eos": True}, EOS, None),
        ({"stop_token_ids": (7,)}, 7, FinishReason("stop", matched=7)),
        ({"stop_token_ids": (7,), "ignore_eos": True}, 7, FinishReason("stop", matched=7)),
        ({"min_new_tokens": 1}, EOS, None),
    ],
)
def test_which_tokens_stop(sampling, token, finish):
    scheduler = make_scheduler()
    scheduler.add(make_request("a", **sampling))
    assert turn(scheduler, token)[2][0].finish == finish


def test_a_request_of_no_tokens_fills_the_cache_and_ends():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", range(40), max_new_tokens=0))
    outputs = [turn(scheduler)[2] for _ in range(3)]
    assert outputs[:2] == [[], []]
    assert [(output.token_ids, output.finish) for output in outputs[2]] == [
        ((), FinishReason("length"))
    ]
    assert scheduler.stats().num_cached_pages == 10


# ---- admission -------------------------------------------------------------------------------


def test_rows_share_the_token_budget_and_only_the_last_is_cut():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", range(10)))
    scheduler.add(make_request("b", range(50, 60)))
    plan = scheduler.schedule()
    assert plan is not None
    assert plan.inputs.q_starts.tolist() == [0, 10, 16, 16, 16]
    assert plan.inputs.sampling.samples.tolist() == [True, False, False, False]
    assert (plan.num_new_tokens, plan.num_new_sequences) == (16, 2)
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    scheduler.process(plan, sampled(plan))
    assert turn(scheduler)[:2] == ("extend", "b")


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "priority"])
def test_a_half_prefilled_sequence_is_first_in_line(policy):
    scheduler = make_scheduler(schedule_policy=policy, max_extends_per_decode=100)
    scheduler.add(make_request("long", range(40)))
    assert turn(scheduler)[1] == "long"
    scheduler.add(make_request("urgent", range(16), priority=9))
    assert turn(scheduler)[1] == "long"
    assert turn(scheduler)[1].startswith("long")


def test_a_second_row_waits_for_a_page_that_the_first_computes():
    scheduler = make_scheduler()
    for rid in "abc":
        scheduler.add(make_request(rid, range(10, 16)))
    scheduler.add(make_request("other", range(30, 34)))
    assert turn(scheduler)[1] == "a other"
    plan = scheduler.schedule()
    assert plan is not None
    assert [seq.rid for seq in plan.rows] == ["b", "c"]
    assert (plan.num_new_tokens, plan.num_cached_tokens) == (4, 8)


def test_without_cache_rows_do_not_wait_for_each_other():
    scheduler = make_scheduler(disable_radix_cache=True)
    for rid in "ab":
        scheduler.add(make_request(rid))
    assert turn(scheduler)[1] == "a b"
    finish_all(scheduler)
    assert scheduler.stats().num_free_pages == 64


def test_nobody_overtakes_a_sequence_that_waits_for_pages():
    scheduler = make_scheduler(num_pages=9, chunked_prefill_size=64)
    scheduler.add(make_request("big", range(100, 120), max_new_tokens=12))
    turn(scheduler)
    scheduler.add(make_request("large", range(200, 220)))
    scheduler.add(make_request("small", range(4)))
    assert turn(scheduler)[:2] == ("decode", "big")
    assert set(finish_all(scheduler)) == {"big", "large", "small"}


def test_admission_leaves_a_page_for_each_decoding_row():
    scheduler = make_scheduler(num_pages=5)
    scheduler.add(make_request("a", range(10, 17)))
    turn(scheduler)
    scheduler.add(make_request("b", range(30, 37), max_new_tokens=1))
    assert turn(scheduler)[:2] == ("decode", "a")  # b's two pages would leave a none


def test_decode_has_its_turn_after_max_extends():
    scheduler = make_scheduler(max_extends_per_decode=2, max_running_requests=8)
    scheduler.add(make_request("first", range(8), max_new_tokens=9))
    modes = [turn(scheduler)[0]]
    for index in range(6):
        scheduler.add(make_request(f"r{index}", range(100 * index + 50, 100 * index + 66)))
    modes += [turn(scheduler)[0] for _ in range(7)]
    assert modes == ["extend", *["extend", "extend", "decode"] * 2, "extend"]


# ---- memory ----------------------------------------------------------------------------------


def test_the_youngest_is_retracted_once_its_step_is_processed():
    scheduler = make_scheduler(num_pages=9)
    for rid, first in (("old", 10), ("young", 40)):
        scheduler.add(make_request(rid, range(first, first + 7), max_new_tokens=20))
    pending, outputs, num_blocked = None, [], 0
    for _ in range(400):
        plan = scheduler.schedule()
        num_blocked += plan is None and pending is not None and scheduler.has_work
        if pending is not None:
            outputs += scheduler.process(pending, sampled(pending))
        scheduler.check()
        pending = plan
    assert not scheduler.has_work
    ends = {output.rid: output for output in outputs if output.finish is not None}
    assert ends["old"].num_retractions == 0
    assert ends["young"].num_retractions > 0
    assert scheduler.stats().num_retractions == ends["young"].num_retractions
    assert num_blocked >= ends["young"].num_retractions
    assert [len([o for o in outputs if o.rid == rid]) for rid in ends] == [20, 20]


def test_a_finished_prompt_is_a_cache_hit_for_its_continuation():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", range(10, 17), max_new_tokens=6))
    finish_all(scheduler)
    scheduler.add(make_request("b", [*range(10, 17), *[9] * 6, 77]))
    (output,) = turn(scheduler)[2]
    assert output.num_cached == 12
    stats = scheduler.stats()
    assert (stats.num_prompt_tokens, stats.num_cached_tokens) == (7 + 14, 12)


def test_flush_needs_an_idle_scheduler():
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    assert not scheduler.flush_cache()
    turn(scheduler)
    assert not scheduler.flush_cache()
    finish_all(scheduler)
    assert scheduler.stats().num_cached_pages > 0
    assert scheduler.flush_cache()
    stats = scheduler.stats()
    assert (stats.num_cached_pages, stats.num_free_pages, stats.num_private_pages) == (0, 64, 0)


# ---- abort -----------------------------------------------------------------------------------


def test_abort_in_the_waiting_line():
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    output = scheduler.abort("a")
    assert output is not None
    assert output.finish == FinishReason("abort", message="Abort in waiting queue")
    assert scheduler.abort("a") is None
    assert scheduler.abort("unknown") is None
    assert not scheduler.has_work


@pytest.mark.parametrize("num_turns", [1, 2, 4])
def test_abort_of_a_started_sequence_frees_it_at_once(num_turns):
    scheduler = make_scheduler()
    scheduler.add(make_request("a", range(40), max_new_tokens=20))
    plans = [scheduler.schedule() for _ in range(num_turns)]
    output = scheduler.abort("a")
    assert output is not None
    assert output.finish == FinishReason("abort", message="Aborted")
    scheduler.check()
    stats = scheduler.stats()
    assert (stats.num_private_pages, stats.num_running, stats.num_waiting) == (0, 0, 0)
    for plan in plans:
        assert plan is not None
        assert scheduler.process(plan, sampled(plan)) == []
    assert scheduler.abort("a") is None


def test_a_rid_can_be_used_again_while_its_aborted_step_is_in_flight():
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    old = scheduler.schedule()
    scheduler.abort("a")
    scheduler.add(make_request("a", max_new_tokens=1))
    new = scheduler.schedule()
    assert old is not None and new is not None
    assert scheduler.process(old, sampled(old, 5)) == []
    (output,) = scheduler.process(new, sampled(new, 6))
    assert output.token_ids == (6,)


# ---- refusals --------------------------------------------------------------------------------


def test_a_request_larger_than_the_pool_is_refused():
    scheduler = make_scheduler(num_pages=5)
    with pytest.raises(
        KVCacheFullError,
        match=r"13 prompt tokens \+ max_new_tokens 4 = 17 tokens, the whole KV cache holds 16; "
        "shorten the request, or restart with a larger --max-total-tokens or --mem-fraction-static",
    ):
        scheduler.add(make_request("a", range(13)))
    scheduler.add(make_request("b", range(12)))
    assert set(finish_all(scheduler)) == {"b"}


def test_a_request_longer_than_a_table_row_is_refused():
    scheduler = make_scheduler(max_pages_per_row=3)
    with pytest.raises(
        ContextLengthError,
        match="= 13 tokens, a row of the page table holds 12; .* larger --context-length",
    ):
        scheduler.add(make_request("a", range(9)))


def test_a_full_line_is_refused():
    scheduler = make_scheduler(max_queued_requests=1)
    scheduler.add(make_request("a"))
    with pytest.raises(OverloadedError, match=r"^The request queue is full\.$"):
        scheduler.add(make_request("b"))
    turn(scheduler)
    scheduler.add(make_request("b"))


def test_a_rid_in_use_is_refused():
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    with pytest.raises(ValueError, match="rid 'a' is in use; a rid must be unique"):
        scheduler.add(make_request("a"))


def test_the_config_is_taken_from_a_resolved_engine_config():
    engine = EngineConfig(
        max_running_requests=8,
        chunked_prefill_size=64,
        prefill_max_requests=2,
        max_extends_per_decode=3,
        schedule_policy="lpm",
        disable_radix_cache=True,
    )
    config = SchedulerConfig.from_engine(engine)
    assert (config.max_running_requests, config.chunked_prefill_size) == (8, 64)
    assert (config.prefill_max_requests, config.max_extends_per_decode) == (2, 3)
    assert (config.schedule_policy, config.disable_radix_cache) == ("lpm", True)
    with pytest.raises(ValueError, match=r"max_running_requests is None; .* resolve\(\) first"):
        SchedulerConfig.from_engine(EngineConfig())


def test_stats_name_every_page():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", range(10)))
    plan = scheduler.schedule()
    assert plan is not None and plan.mode is Mode.EXTEND
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_pages) == (1, 0, 65)
    assert (stats.num_cached_pages, stats.num_evictable_pages) == (2, 0)
    assert (stats.num_private_pages, stats.num_free_pages) == (1, 61)


def test_config_must_be_resolved() -> None:
    with pytest.raises(ValueError, match=r"is None; pass the config through resolve\(\) first"):
        SchedulerConfig.from_engine(EngineConfig())
