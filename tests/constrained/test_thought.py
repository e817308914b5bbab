"""Reasoning before the answer: where it ends, its budget, and what may not stand in it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from grammar_harness import BOS, CALL, EOS, OTHER_EOS, allowed, byte_level, spelled, text_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.constrained import GrammarCompiler, Matcher
from jaxserve.constrained.thought import ThoughtFollower
from jaxserve.request import Grammar, Thought

# With two tokens that end a mark and go on, as large vocabularies have.
VOCABULARY = replace(byte_level(), token_bytes=(*byte_level().token_bytes, b">\n\n", b">{"))
BLANK, BRACE = len(VOCABULARY.token_bytes) - 2, len(VOCABULARY.token_bytes) - 1
MARK = "</think>"
END_IDS = tuple(spelled(MARK, VOCABULARY))
BY_BYTE = [spelled(character, VOCABULARY)[0] for character in MARK]
START_IDS = tuple(spelled("<think>", VOCABULARY))
HEADER = r"<\|channel\|>\s*final\b[^<]*(<\|constrain\|>[^<]*)?<\|message\|>"


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(VOCABULARY, num_threads=1)
    yield compiler
    compiler.close()


@pytest.fixture
def digits(compiler: GrammarCompiler):
    grammar = asyncio.run(compiler.compile(Grammar("regex", "[0-9]{2}")))
    return lambda **fields: grammar.new_matcher(Thought(end_ids=END_IDS, **fields))


def ids(text: str) -> list[int]:
    return spelled(text, VOCABULARY)


def free(matcher: Matcher) -> bool:
    return not matcher.is_active and not matcher.forced_tokens() and not matcher.is_finished


def starts_of(matcher: Matcher) -> set[bytes]:
    """The first bytes that the next token may have."""
    return {VOCABULARY.token_bytes[i][:1] for i in allowed(matcher, VOCABULARY)}


DIGITS = {bytes([b]) for b in b"0123456789"}


def test_the_mark_is_more_than_one_token() -> None:
    assert len(END_IDS) > 1 and list(END_IDS) != BY_BYTE and len(START_IDS) > 1


@pytest.mark.parametrize("mark", [list(END_IDS), BY_BYTE, ids("x")[:1] + BY_BYTE])
def test_the_mark_ends_the_wait_however_it_is_cut(digits, mark: list[int]) -> None:
    matcher = digits()
    matcher.accept(ids("hm < </thin </"))
    assert free(matcher)
    matcher.accept(mark)
    assert matcher.is_active and starts_of(matcher) == DIGITS
    matcher.accept(ids("42"))
    assert matcher.is_finished


def test_a_token_may_end_the_mark_and_bring_white_space(digits) -> None:
    matcher = digits()
    matcher.accept([*BY_BYTE[:-1], BLANK])
    assert starts_of(matcher) == DIGITS


def test_no_token_may_end_the_mark_and_begin_the_answer(digits, compiler: GrammarCompiler) -> None:
    longer = {i for i, t in enumerate(VOCABULARY.token_bytes) if t[:1] == b">" and t[1:].strip()}
    assert BRACE in longer and BLANK not in longer
    matcher = digits()
    matcher.accept(BY_BYTE[:-1])
    assert matcher.is_active and not longer & set(allowed(matcher, VOCABULARY))
    assert len(allowed(matcher, VOCABULARY)) == VOCABULARY.num_mask_words * 32 - len(longer)
    matcher.accept(ids("x"))  # it was not the mark
    assert free(matcher)
    alone = compiler.thought_matcher(Thought(end_ids=END_IDS, budget=99))
    alone.accept(BY_BYTE[:-1])
    assert free(alone)  # no grammar minds


PIECES = [i for i, text in enumerate(VOCABULARY.token_bytes) if text and text in MARK.encode() * 2]


PARTS = [[i] for i in (*PIECES, *ids("a \n"), BLANK, BRACE)] + [BY_BYTE[:-1]] * 20


@given(parts=st.lists(st.sampled_from(PARTS), max_size=30))
@settings(max_examples=300, deadline=None)
def test_the_wait_ends_when_the_text_has_the_mark(parts: list[list[int]]) -> None:
    """Whatever tokens spell it; and what stands behind it is never of the token that ended it."""
    follower = ThoughtFollower(Thought(end_ids=END_IDS), VOCABULARY, has_grammar=True)
    row = np.zeros(VOCABULARY.num_mask_words, np.uint32)
    text = b""
    for token_id in chain(*parts, BY_BYTE):
        follower.fill(row)
        if not row[token_id // 32] >> (token_id % 32) & 1:
            token = VOCABULARY.token_bytes[token_id]
            assert not follower.is_free
            assert (text + token).partition(MARK.encode())[2].strip()
            continue
        assert follower.take(token_id)
        text += VOCABULARY.token_bytes[token_id]
        assert follower.is_over is (MARK.encode() in text)
        if follower.is_over:
            assert not text.partition(MARK.encode())[2].strip()
            return


@pytest.mark.parametrize("is_forcing", [True, False])
@pytest.mark.parametrize("num_begun", [0, 1])
def test_a_budget_forces_the_whole_mark(digits, num_begun: int, is_forcing: bool) -> None:
    matcher = digits(budget=5)
    matcher.accept([*ids("aaaa")[:1] * (5 - num_begun - 1)])
    assert free(matcher)
    matcher.accept([*ids("a"), *END_IDS[:num_begun]])
    rest = END_IDS[num_begun:]
    assert matcher.is_active and matcher.forced_tokens() == rest
    if is_forcing:
        matcher.accept(rest)
    else:
        for token_id in rest:
            assert list(allowed(matcher, VOCABULARY)) == [token_id]
            matcher.accept([token_id])
    assert starts_of(matcher) == DIGITS


def test_a_budget_of_nothing_and_no_grammar(compiler: GrammarCompiler) -> None:
    matcher = compiler.thought_matcher(Thought(end_ids=END_IDS, budget=0))
    assert matcher.forced_tokens() == END_IDS
    matcher.accept(END_IDS)
    assert free(matcher) and not matcher.may_end
    matcher.accept([*ids("anything"), EOS])
    assert free(matcher)


def test_a_thought_that_ends_in_time_is_left_alone(compiler: GrammarCompiler) -> None:
    matcher = compiler.thought_matcher(Thought(end_ids=END_IDS, budget=30))
    matcher.accept([*ids("well"), *BY_BYTE, *ids("a") * 40])
    assert free(matcher)


@pytest.mark.parametrize("start", [list(START_IDS), ids("\n ") + list(START_IDS)])
def test_a_thought_that_may_not_come(compiler: GrammarCompiler, start: list[int]) -> None:
    thought = Thought(end_ids=END_IDS, start_ids=START_IDS, budget=len(start) + 2)
    thinking = compiler.thought_matcher(thought)
    for token_id in [*start, *ids("a") * 2]:
        assert free(thinking)
        thinking.accept([token_id])
    assert thinking.forced_tokens() == END_IDS
    answering = compiler.thought_matcher(thought)
    answering.accept(ids("<thought>") + ids("a") * 40)
    assert free(answering)


def test_a_start_of_several_tokens_does_not_compete_with_a_grammar(digits) -> None:
    matcher = digits(start_ids=START_IDS)
    assert starts_of(matcher) == DIGITS


def test_nothing_ends_inside_a_strict_thought(digits) -> None:
    matcher = digits(is_strict=True, call_id=CALL)
    everything = VOCABULARY.num_mask_words * 32
    assert matcher.is_active and not matcher.forced_tokens()
    got = set(allowed(matcher, VOCABULARY))
    assert not got & {EOS, OTHER_EOS, CALL} and BOS in got and len(got) == everything - 3
    matcher.accept(END_IDS)
    assert starts_of(matcher) == DIGITS


def test_a_header_stands_between_thought_and_answer(compiler: GrammarCompiler) -> None:
    grammar = asyncio.run(compiler.compile(Grammar("regex", "[0-9]{2}")))
    end, analysis = ids("<|end|>"), ids("<|channel|>analysis<|message|>")
    thought = Thought(
        end_ids=tuple(end), start_ids=tuple(analysis), answer_pattern=HEADER, budget=99
    )
    final = ids("<|start|>assistant<|channel|>final <|constrain|>json<|message|>")
    direct = grammar.new_matcher(thought)
    direct.accept(final[:-1])
    assert free(direct)
    direct.accept(final[-1:])
    assert starts_of(direct) == DIGITS
    twice = grammar.new_matcher(thought)
    twice.accept([*analysis, *ids("hm"), *end, *ids("<|start|>assistant"), *analysis])
    assert free(twice)
    twice.accept(ids("a") * 99)
    assert twice.forced_tokens() == tuple(end)
    twice.accept([*end, *final])
    assert starts_of(twice) == DIGITS
    assert text_of(final, VOCABULARY).endswith(b"<|message|>")
