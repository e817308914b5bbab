"""Workloads: exact lengths, the same every time, shared where they say so."""

import math

import numpy as np
import pytest
from workloads import (
    Lengths,
    arrival_times,
    as_text,
    multi_turn_workload,
    random_workload,
    shared_prefix_workload,
)

VOCAB = 1000


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_lengths_lie_in_the_range_and_prompts_have_them(ratio: float) -> None:
    workload = random_workload(200, Lengths(64, 32, ratio), VOCAB, seed=3)
    turns = [conversation.turns[0] for conversation in workload]
    assert all(max(1, int(64 * ratio)) <= turn.prompt_len <= 64 for turn in turns)
    assert all(max(1, int(32 * ratio)) <= turn.output_len <= 32 for turn in turns)
    assert all(len(turn.full_prompt) == turn.prompt_len for turn in turns)
    assert all(0 <= token < VOCAB for turn in turns for token in turn.full_prompt)


def test_a_seed_fixes_the_workload_and_another_changes_it() -> None:
    same = [random_workload(5, Lengths(16, 8), VOCAB, seed) for seed in (1, 1, 2)]
    assert same[0] == same[1] != same[2]


def test_a_group_shares_exactly_its_system_prompt() -> None:
    workload = shared_prefix_workload(
        3, 4, Lengths(8, 4), system_prompt_len=20, vocab_size=VOCAB, seed=0
    )
    turns = [conversation.turns[0] for conversation in workload]
    by_system = {turn.full_prompt[:20]: [] for turn in turns}
    for turn in turns:
        assert turn.prompt_len == len(turn.full_prompt) == 28
        by_system[turn.full_prompt[:20]].append(turn.full_prompt)
    assert [len(set(prompts)) for prompts in by_system.values()] == [4, 4, 4]


def test_turns_of_all_conversations_differ() -> None:
    workload = multi_turn_workload(3, 4, Lengths(8, 4), VOCAB, seed=0)
    assert [len(conversation.turns) for conversation in workload] == [4, 4, 4]
    assert len({turn.prompt for talk in workload for turn in talk.turns}) == 12


def test_arrivals_are_poisson_at_the_rate() -> None:
    times = arrival_times(20_000, 50.0, seed=0)
    gaps = np.diff(times)
    assert times[0] == 0.0
    assert gaps.min() >= 0.0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)  # exponential: as wide as its mean


def test_an_infinite_rate_sends_all_at_once_and_a_rate_of_zero_is_refused() -> None:
    assert arrival_times(3, math.inf, seed=0) == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="--request-rate must be above 0"):
        arrival_times(3, 0.0, seed=0)


def test_text_keeps_the_shared_part_and_is_cut_to_length() -> None:
    """The fake tokenizer splits a decoded id into two: text must be cut to fit again."""

    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(ids: object) -> str:
        return "".join("xy" if token >= 200 else chr(token) for token in ids)  # type: ignore

    workload = shared_prefix_workload(
        2, 3, Lengths(8, 4), system_prompt_len=10, vocab_size=VOCAB, seed=0
    )
    for conversation in as_text(workload, encode, decode):
        turn = conversation.turns[0]
        assert isinstance(turn.full_prompt, str)
        assert turn.full_prompt.startswith(str(turn.shared_prompt))
        assert turn.prompt_len == len(turn.full_prompt) == 18
