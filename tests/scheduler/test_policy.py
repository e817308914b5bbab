"""The order of the waiting line."""

import pytest

from jaxserve.request import Request, SamplingParams
from jaxserve.scheduler.policy import LPM_MAX_WAITING, fcfs, get_policy, get_rank, lpm
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


@pytest.mark.parametrize(
    ("name", "is_by_priority", "is_low_first", "expected"),
    [
        ("priority", False, False, "1320"),
        ("fcfs", True, False, "1320"),
        ("fcfs", True, True, "0213"),
        ("lpm", True, False, "3120"),  # 3 has more cached than 1
        ("fcfs", False, True, "0123"),  # priorities count for nothing
    ],
)
def test_priority_goes_before_the_policy(name, is_by_priority, is_low_first, expected):
    rank = get_rank(name, is_by_priority=is_by_priority, is_low_first=is_low_first)
    policy = get_policy(name, rank)
    assert rids(policy(make_line(0, 2, 1, 2), lambda seq: int(seq.rid))) == expected


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
