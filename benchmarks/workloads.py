"""Seeded workloads: what is asked, how long the answers are, and when each question arrives.

Everything is made as token ids, so that a prompt has exactly the length asked for; ``as_text``
turns a workload into text for the APIs that take no ids.  The same seed gives the same workload
on every machine.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Ids = tuple[int, ...]
Prompt = Ids | str
# ids below this are special tokens in most vocabularies; a random one could end a prompt early
FIRST_PLAIN_ID = 256
ROUND_TRIPS = 4


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and the length of its answer.

    ``shared_prompt`` comes before ``prompt`` and is the same in other conversations.
    """

    prompt: Prompt
    prompt_len: int  # tokens of shared_prompt + prompt
    output_len: int  # tokens
    shared_prompt: Prompt = ()

    @property
    def full_prompt(self) -> Prompt:
        if isinstance(self.prompt, str):
            return f"{self.shared_prompt or ''}{self.prompt}"
        return (*self.shared_prompt, *self.prompt)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns sent one after another, each with all turns and answers before it in its prompt."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token lengths, drawn uniformly from [range_ratio * length, length], at least 1."""

    input_len: int
    output_len: int
    range_ratio: float = 1.0

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        return self._one(rng, self.input_len), self._one(rng, self.output_len)

    def _one(self, rng: np.random.Generator, longest: int) -> int:
        shortest = max(1, int(longest * self.range_ratio))
        return int(rng.integers(shortest, max(longest, 1), endpoint=True))


def random_workload(
    num_prompts: int, lengths: Lengths, vocab_size: int, seed: int
) -> list[Conversation]:
    """Return ``num_prompts`` unrelated prompts of one turn."""
    rng = np.random.default_rng(seed)
    workload = []
    for _ in range(num_prompts):
        input_len, output_len = lengths.draw(rng)
        prompt = _ids(rng, input_len, vocab_size)
        workload.append(Conversation((Turn(prompt, input_len, output_len),)))
    return workload


def shared_prefix_workload(
    num_groups: int,
    prompts_per_group: int,
    lengths: Lengths,
    *,
    system_prompt_len: int,
    vocab_size: int,
    seed: int,
) -> list[Conversation]:
    """Return shuffled prompts; those of a group begin with the same system prompt.

    ``lengths.input_len`` is the length of the question behind the system prompt.
    """
    rng = np.random.default_rng(seed)
    workload = []
    for _ in range(num_groups):
        system = _ids(rng, system_prompt_len, vocab_size)
        for _ in range(prompts_per_group):
            input_len, output_len = lengths.draw(rng)
            question = _ids(rng, input_len, vocab_size)
            turn = Turn(question, system_prompt_len + input_len, output_len, system)
            workload.append(Conversation((turn,)))
    return [workload[index] for index in rng.permutation(len(workload))]


def multi_turn_workload(
    num_conversations: int, num_turns: int, lengths: Lengths, vocab_size: int, seed: int
) -> list[Conversation]:
    """Return conversations of ``num_turns`` turns; ``lengths.input_len`` is that of one turn."""
    rng = np.random.default_rng(seed)
    workload = []
    for _ in range(num_conversations):
        turns = []
        for _ in range(num_turns):
            input_len, output_len = lengths.draw(rng)
            turns.append(Turn(_ids(rng, input_len, vocab_size), input_len, output_len))
        workload.append(Conversation(tuple(turns)))
    return workload


def arrival_times(num: int, request_rate: float, seed: int) -> list[float]:
    """Return ``num`` arrival times in seconds from the start: a Poisson process.

    ``request_rate`` in requests per second; infinite = all at once.
    """
    if not request_rate > 0:
        raise ValueError(f"--request-rate must be above 0 (inf = all at once), got {request_rate}")
    if math.isinf(request_rate):
        return [0.0] * num
    gaps = np.random.default_rng(seed).exponential(1.0 / request_rate, num)
    return (np.cumsum(gaps) - gaps[:1]).tolist()


def as_text(
    workload: Sequence[Conversation],
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> list[Conversation]:
    """Return ``workload`` with text in place of ids.

    Texts are cut back until they encode to about the length asked for; ``prompt_len`` becomes the
    length they really have.
    """
    shared: dict[Prompt, str] = {}
    return [
        Conversation(tuple(_turn_as_text(turn, shared, encode, decode) for turn in talk.turns))
        for talk in workload
    ]


def _turn_as_text(
    turn: Turn,
    shared: dict[Prompt, str],
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> Turn:
    key = turn.shared_prompt
    if key not in shared:
        shared[key] = _text_of(key, encode, decode)
    prompt = _text_of(turn.prompt, encode, decode)
    return Turn(prompt, len(encode(shared[key] + prompt)), turn.output_len, shared[key])


def _text_of(
    prompt: Prompt,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> str:
    """Random ids rarely survive decode and encode; their text mostly grows: cut it and retry."""
    ids = [token for token in prompt if isinstance(token, int)]
    length = len(ids)
    text = decode(ids)
    for _ in range(ROUND_TRIPS):
        ids = list(encode(text))
        if len(ids) <= length:
            break
        text = decode(ids[:length])
    return text


def _ids(rng: np.random.Generator, length: int, vocab_size: int) -> Ids:
    lowest = min(FIRST_PLAIN_ID, vocab_size - 1)
    return tuple(rng.integers(lowest, vocab_size, length).tolist())
