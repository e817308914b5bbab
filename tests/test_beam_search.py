"""Beam search against a plain one that looks at everything and never stops early."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.beam_search import Beam, BeamSearch

VOCAB_SIZE = 12


def logprobs(seed: int, token_ids: tuple[int, ...]) -> np.ndarray:
    """A model: what may follow ``token_ids``, f64[VOCAB_SIZE]."""
    logits = np.random.default_rng([seed, len(token_ids), *token_ids]).normal(0, 2, VOCAB_SIZE)
    return logits - np.log(np.exp(logits).sum())


def top(seed: int, token_ids: tuple[int, ...], count: int) -> list[tuple[int, float]]:
    row = logprobs(seed, token_ids)
    return [(int(i), float(row[i])) for i in np.argsort(-row)[:count]]


def run(search: BeamSearch, seed: int) -> int:
    """Search to the end; return how many steps it took."""
    steps = 0
    while not search.is_over:
        tops = [top(seed, beam.token_ids, search.num_candidates) for beam in search.frontier]
        search.advance(tops)
        steps += 1
    return steps


def plain(seed: int, width: int, length: int, stops: set[int]) -> list[tuple[int, ...]]:
    """Token ids of the results, best first; every token of the vocabulary is a candidate."""
    frontier: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    ended: list[tuple[tuple[int, ...], float]] = []
    for step in range(1, length + 1):
        every = [
            ((*ids, token_id), total + logprobs(seed, ids)[token_id])
            for ids, total in frontier
            for token_id in range(VOCAB_SIZE)
        ]
        every.sort(key=lambda item: -item[1])
        if step == length:
            ended += every[:width]
            break
        frontier = []
        for item in every[: 2 * width]:
            if len(frontier) == width:
                break
            (ended if item[0][-1] in stops else frontier).append(item)
        if len(frontier) < width:
            ended += frontier
            break
    ended.sort(key=lambda item: -item[1] / len(item[0]))
    return [ids for ids, _ in ended[:width]]


@given(
    seed=st.integers(0, 10_000),
    width=st.integers(2, 5),
    length=st.integers(1, 6),
    stops=st.sets(st.integers(0, VOCAB_SIZE - 1), max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_the_plain_search_finds_the_same(
    seed: int, width: int, length: int, stops: set[int]
) -> None:
    search = BeamSearch(width, length, stops)
    assert run(search, seed) <= length
    best = search.best(width)
    assert [beam.token_ids for beam in best] == plain(seed, width, length, stops)
    for beam in best:
        ids = beam.token_ids
        total = sum(logprobs(seed, ids[:i])[token_id] for i, token_id in enumerate(ids))
        assert beam.logprob == pytest.approx(total)
        assert beam.score == pytest.approx(total / len(ids))
        assert beam.matched == (ids[-1] if ids[-1] in stops and len(ids) < length else None)


def test_a_search_that_is_decided_ends() -> None:
    """Two beams have ended at once, and no other token is worth a thousand steps."""
    search = BeamSearch(2, 1000, {0, 1})
    search.advance([[(0, -0.1), (1, -0.2), (2, -300.0), (3, -400.0)]])
    assert search.is_over
    assert [beam.token_ids for beam in search.best(2)] == [(0,), (1,)]
    hopeful = BeamSearch(2, 1000, {0, 1})
    hopeful.advance([[(0, -0.1), (1, -0.2), (2, -3.0), (3, -4.0)]])
    assert not hopeful.is_over


def test_fewer_results_and_an_early_end() -> None:
    search = BeamSearch(2, 9, ())
    search.advance([[(5, -1.0), (6, -2.0), (7, -3.0), (8, -4.0)]])
    search.stop()
    assert search.is_over
    assert search.best(1) == [Beam((5,), -1.0)]
    empty = BeamSearch(2, 9, ())
    empty.stop()
    assert (empty.best(2), empty.best(2)[0].score) == ([Beam()], 0.0)
