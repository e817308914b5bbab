"""Who waits where, and who leaves a full line."""

import pytest

from jaxserve.errors import OverloadedError
from jaxserve.request import Request, SamplingParams
from jaxserve.scheduler import SchedulerConfig
from jaxserve.scheduler.sequence import Sequence, make_sequence
from jaxserve.scheduler.waiting_line import WaitingLine


def make_line(**changes: object) -> WaitingLine:
    fields = {
        "max_running_requests": 4,
        "chunked_prefill_size": 16,
        "prefill_max_requests": 4,
        "page_size": 4,
    }
    return WaitingLine(SchedulerConfig(**{**fields, **changes}))


def make_seq(rid: str, arrival: int, priority: int = 0) -> Sequence:
    request = Request(
        rid=rid,
        prompt_ids=(1, 2, 3),
        sampling=SamplingParams(seed=0),
        arrival_s=0.0,
        priority=priority,
    )
    return make_sequence(request, arrival, ())


def rids(line: WaitingLine) -> str:
    return "".join(seq.rid for seq in line.sequences())


def test_half_prefilled_then_retracted_then_by_arrival():
    line = make_line()
    a, b, c, d = (make_seq(rid, index) for index, rid in enumerate("abcd"))
    for seq in (a, b):
        line.join(seq)
    assert line.half_prefilled is None
    b.slot = 3
    line.lead(b)
    for seq in (d, c):
        seq.num_retractions = 1
        line.rejoin(seq)
    assert rids(line) == "bcda"
    assert line.half_prefilled is b is line.first
    assert (len(line), line.num_retracted, line.num_prompt_tokens) == (4, 2, 12)
    line.leave(b)
    assert (rids(line), line.half_prefilled, line.num_prompt_tokens) == ("cda", None, 9)
    b.slot, b.num_retractions = 0, 1
    line.rejoin(b)
    assert rids(line) == "bcda"


def test_a_full_line_refuses_where_priorities_do_not_count():
    line = make_line(max_queued_requests=1)
    line.join(make_seq("a", 0))
    with pytest.raises(OverloadedError, match=r"^The request queue is full\.$"):
        line.join(make_seq("b", 1, priority=9))
    assert rids(line) == "a"


@pytest.mark.parametrize("is_low_first", [False, True])
def test_the_least_urgent_leaves_a_full_line(is_low_first):
    line = make_line(
        max_queued_requests=4,
        enable_priority_scheduling=True,
        schedule_low_priority_values_first=is_low_first,
    )
    sign = -1 if is_low_first else 1
    retracted = make_seq("r", 0, priority=-9 * sign)
    retracted.num_retractions = 1
    line.rejoin(retracted)
    for index, priority in enumerate((1, 0, 0)):
        line.join(make_seq("abc"[index], index + 1, priority * sign))
    with pytest.raises(OverloadedError, match="queue is full"):
        line.join(make_seq("d", 4, 0))
    displaced = line.join(make_seq("e", 5, 1 * sign))
    assert displaced is not None and displaced.rid == "c"
    assert rids(line) == "rabe"
    assert [seq.rid for seq in line.in_order(lambda seq: 0)] == list("raeb")
    assert line.num_prompt_tokens == 12
