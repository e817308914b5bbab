"""The order of the waiting line."""

import pytest

from jaxserve.request import Request, SamplingParams
from jaxserve.scheduler.policy import LPM_MAX_WAITING, fcfs, get_policy, lpm, priority
from jaxserve.scheduler.sequence import Sequence, make_sequence


def make_line(*priorities: int) -> list[Sequence]:
    """Waiting sequences in arrival order."""
    return [
        make_sequence(
            Request(
                rid=str(index),
                prompt_ids=(1, 2, 3),
                sampling=SamplingParams(seed=0),
                arrival_s=0.0,
                priority=value,
            ),
            index,
            (),
        )
        for index, value in enumerate(priorities)
    ]


def rids(line: list[Sequence]) -> str:
    return "".join(seq.rid for seq in line)


def test_fcfs_is_the_line_itself():
    line = make_line(0, 2, 1)
    assert rids(fcfs(line, lambda seq: int(seq.rid))) == "012"


def test_priority_is_higher_first_then_arrival():
    line = make_line(0, 2, 1, 2)
    assert rids(priority(line, lambda seq: 0)) == "1320"


def test_lpm_is_longest_cached_first_then_arrival():
    line = make_line(0, 0, 0, 0)
    cached = {"0": 0, "1": 16, "2": 32, "3": 16}
    assert rids(lpm(line, lambda seq: cached[seq.rid])) == "2130"


def test_lpm_matches_nothing_in_a_long_line():
    line = make_line(*[0] * (LPM_MAX_WAITING + 1))

    def fail(seq: Sequence) -> int:
        raise AssertionError("a long line was matched")

    assert lpm(line, fail) == line


@pytest.mark.parametrize("name", ["fcfs", "lpm", "priority"])
def test_whoever_has_run_stays_in_front(name):
    line = make_line(0, 0, 5, 9)
    line[0].slot = 3
    line[1].num_retractions = 1
    order = get_policy(name)(line, lambda seq: int(seq.rid))
    assert rids(order[:2]) == "01"
    assert rids(line) == "0123"


def test_unknown_policy_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown schedule policy 'random'; choose one of fcfs"):
        get_policy("random")
