"""Which tokens of a step leave wanted hidden states: each position exactly once, in order."""

import numpy as np
import pytest

from jaxserve.request import Request, SamplingParams
from jaxserve.scheduler.hidden_spans import HiddenPlanner
from jaxserve.scheduler.sequence import Sequence, make_sequence


def make_seq(mode: str | None, num_prompt: int = 10, **sampling: object) -> Sequence:
    params = SamplingParams(seed=0, hidden_states=mode, **sampling)
    request = Request(rid="r", prompt_ids=tuple(range(num_prompt)), sampling=params, arrival_s=0.0)
    return make_sequence(request, 0, ())


def step(*rows: tuple[Sequence, int]) -> list[list[int]]:
    """Plan a step and advance; the positions that each row's entries are of."""
    planner = HiddenPlanner()
    for seq, _ in rows:
        planner.note(seq)
    starts = np.cumsum([0, *(count for _, count in rows)]).astype(np.int32)
    firsts = [seq.num_computed for seq, _ in rows]
    spans, tokens = planner.plan([seq for seq, _ in rows], starts)
    for seq, count in rows:
        seq.num_computed += count
    if tokens is None:
        assert not spans
        return [[] for _ in rows]
    assert tokens.dtype == np.int32
    found = []
    for row, first in enumerate(firsts):
        own = tokens[spans[row]] if row in spans else tokens[:0]
        assert ((starts[row] <= own) & (own < starts[row + 1])).all()
        found.append((own - starts[row] + first).tolist())
    assert sum(map(len, found)) == len(tokens)
    return found


@pytest.mark.parametrize("cuts", [(10,), (4, 6), (1, 1, 8), (9, 1, 1, 1)])
def test_every_position_once_however_it_is_cut(cuts: tuple[int, ...]) -> None:
    every, last = make_seq("all"), make_seq("last")
    found = [step((every, size), (last, size)) for size in cuts]
    assert [p for positions, _ in found for p in positions] == list(range(sum(cuts)))
    assert [p for _, positions in found for p in positions] == list(range(9, sum(cuts)))


def test_rows_that_ask_for_nothing_have_nothing() -> None:
    assert step((make_seq(None), 3), (make_seq("all"), 4)) == [[], [0, 1, 2, 3]]
    assert HiddenPlanner().plan([make_seq("all")], np.array([0, 3])) == ({}, None)


def test_what_is_computed_again_is_not_given_again() -> None:
    seq = make_seq("all")
    assert step((seq, 6)) == [[0, 1, 2, 3, 4, 5]]
    seq.num_computed = 0  # retracted
    assert step((seq, 8)) == [[6, 7]]
    seq.num_computed = 0
    assert step((seq, 5)) == [[]]
    assert step((seq, 5)) == [[8, 9]]


def test_appended_tokens_come_when_they_are_computed() -> None:
    seq, last = make_seq("all", 2), make_seq("last", 2)
    step((seq, 2), (last, 2))
    assert step((seq, 3), (last, 3)) == [[2, 3, 4], [4]]


@pytest.mark.parametrize(
    ("mode", "start", "matchable"),
    [(None, None, 10), ("all", None, 0), ("last", None, 9), ("last", 4, 3), ("all", 4, 0)],
)
def test_the_cache_may_supply_what_comes_before(
    mode: str | None, start: int | None, matchable: int
) -> None:
    seq = make_seq(mode, num_logprobs=0, prompt_logprobs_start=start)
    assert seq.num_matchable == matchable


def test_once_computed_the_cache_may_supply_it() -> None:
    seq = make_seq("all")
    step((seq, 10))
    seq.tokens.append(3)
    assert seq.num_matchable == 10
