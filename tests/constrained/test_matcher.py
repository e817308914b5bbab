"""Following one sequence: masks, forced tokens, the end, reasoning before the grammar."""

import asyncio

import numpy as np
import pytest
from grammar_harness import (
    BOS,
    CALL,
    EOS,
    OTHER_EOS,
    allowed,
    byte_fallback,
    byte_level,
    spelled,
    text_of,
)

from jaxserve.constrained import CompiledGrammar, GrammarCompiler, Vocabulary, fill_masks
from jaxserve.errors import GrammarError
from jaxserve.request import Grammar, Thought

THINK_END = (10, 11)
REASONING = Thought(end_ids=THINK_END)
MAYBE = Thought(end_ids=THINK_END, start_ids=(CALL,))


def compiled(compiler: GrammarCompiler, kind: str, source: str) -> CompiledGrammar:
    return asyncio.run(compiler.compile(Grammar(kind, source)))


def test_a_mask_holds_what_may_come_next_and_no_padding(compiler: GrammarCompiler) -> None:
    vocabulary = byte_level()
    matcher = compiled(compiler, "regex", "[ab]c?").new_matcher()
    texts = {vocabulary.token_bytes[i] for i in allowed(matcher, vocabulary)}
    assert {b"a", b"b"} <= texts <= {b"a", b"b", b"ac", b"bc"}
    assert matcher.is_active and not matcher.is_finished and not matcher.may_end
    matcher.accept(spelled("a", vocabulary))
    assert matcher.may_end and not matcher.is_finished
    assert set(allowed(matcher, vocabulary)) == {EOS, OTHER_EOS, *spelled("c", vocabulary)}


@pytest.mark.parametrize("end", [EOS, OTHER_EOS])
def test_any_end_token_ends_a_complete_output(compiler: GrammarCompiler, end: int) -> None:
    matcher = compiled(compiler, "regex", "a+").new_matcher()
    matcher.accept([*spelled("a", byte_level()), end])
    assert matcher.is_finished
    matcher.accept([end])  # the engine may say it once more
    assert matcher.is_finished and not matcher.forced_tokens()


def test_only_end_tokens_may_follow_a_finished_grammar(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, "regex", "a").new_matcher()
    matcher.accept(spelled("a", byte_level()))
    assert matcher.is_finished and matcher.forced_tokens() == ()
    assert set(allowed(matcher, byte_level())) == {EOS, OTHER_EOS}


def test_special_tokens_are_text_of_no_grammar(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, "regex", "(?s).*").new_matcher()
    ids = set(allowed(matcher, byte_level()))
    assert not ids & {BOS, CALL} and {EOS, OTHER_EOS} <= ids


def test_a_special_token_comes_where_the_grammar_names_it(compiler: GrammarCompiler) -> None:
    lark = compiled(compiler, "ebnf", 'start: <call> "x"').new_matcher()
    assert list(allowed(lark, byte_level())) == [CALL]
    tag = '{"triggers": ["<call>"], "structures": [{"begin": "<call>", "schema": {}, "end": "!"}]}'
    matcher = compiled(compiler, "structural_tag", tag).new_matcher()
    ids = set(allowed(matcher, byte_level()))
    assert CALL in ids and BOS not in ids
    matcher.accept([CALL])
    assert EOS not in allowed(matcher, byte_level())


def test_forced_text_is_cut_as_the_tokenizer_would(compiler: GrammarCompiler) -> None:
    vocabulary = byte_level()
    matcher = compiled(compiler, "regex", "(propertyNames cannot be|x)").new_matcher()
    matcher.accept(spelled("property", vocabulary)[:1])
    forced = matcher.forced_tokens()
    assert forced
    matcher.accept(forced)
    first = spelled("property", vocabulary)[:1]
    assert b"propertyNames cannot be".startswith(text_of([*first, *forced], vocabulary))


def test_forced_text_never_becomes_a_special_token(compiler: GrammarCompiler) -> None:
    """The tokenizer itself would read <eos> written out as the end token."""
    vocabulary = byte_level()
    matcher = compiled(compiler, "json_schema", '{"const": "a<eos>b"}').new_matcher()
    output: list[int] = []
    while not matcher.is_finished:
        step = matcher.forced_tokens() or (int(allowed(matcher, vocabulary)[0]),)
        matcher.accept(step)
        output += step
    assert not set(output) & vocabulary.special_token_ids
    assert text_of(output, vocabulary) == b'"a<eos>b"'


def test_forced_text_without_a_leading_space() -> None:
    """A sentencepiece tokenizer puts a space before every text that it cuts."""
    vocabulary = byte_fallback()
    compiler = GrammarCompiler(vocabulary, num_threads=1)
    try:
        matcher = compiled(compiler, "regex", "true漢name;").new_matcher()
        output = [*matcher.forced_tokens()]
        assert (
            text_of(output, vocabulary)
            == "true漢name;".encode()[: len(text_of(output, vocabulary))]
        )
        assert output
    finally:
        compiler.close()


def test_a_token_that_does_not_fit_is_an_error(compiler: GrammarCompiler) -> None:
    matcher = compiled(compiler, "regex", "[0-9]+").new_matcher()
    with pytest.raises(GrammarError, match="cannot be continued as its grammar demands"):
        matcher.accept(spelled("x", byte_level()))
    assert not matcher.is_finished


def test_nothing_is_masked_before_the_reasoning_has_ended(compiler: GrammarCompiler) -> None:
    vocabulary = byte_level()
    matcher = compiled(compiler, "regex", "[0-9]").new_matcher(REASONING)
    assert not matcher.is_active and not matcher.forced_tokens() and not matcher.may_end
    assert len(allowed(matcher, vocabulary)) == vocabulary.num_mask_words * 32
    matcher.accept([10, 10, 500])
    assert not matcher.is_active and not matcher.is_finished
    matcher.accept([10, 11, *spelled("7", vocabulary)])  # the end and more, in one step
    assert matcher.is_active and matcher.is_finished


def test_the_first_token_decides_whether_there_is_reasoning(compiler: GrammarCompiler) -> None:
    vocabulary = byte_level()
    grammar = compiled(compiler, "regex", "[0-9]a")
    digits = set(allowed(grammar.new_matcher(), vocabulary))
    undecided = grammar.new_matcher(MAYBE)
    assert undecided.is_active and not undecided.forced_tokens()
    assert set(allowed(undecided, vocabulary)) == digits | {CALL}
    undecided.accept([CALL])
    assert not undecided.is_active
    answering = grammar.new_matcher(MAYBE)
    answering.accept(spelled("7", vocabulary))
    assert answering.is_active
    assert CALL not in allowed(answering, vocabulary)


def test_matchers_of_one_grammar_are_independent(compiler: GrammarCompiler) -> None:
    grammar = compiled(compiler, "regex", "ab|cd")
    one, other = grammar.new_matcher(), grammar.new_matcher()
    one.accept(spelled("a", byte_level()))
    other.accept(spelled("c", byte_level()))
    assert set(allowed(one, byte_level())) == set(spelled("b", byte_level()))
    assert set(allowed(other, byte_level())) == set(spelled("d", byte_level()))


@pytest.mark.parametrize("processors", [1, 8])
def test_masks_of_many_rows(
    compiler: GrammarCompiler, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = byte_level()
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    vocabulary.__dict__.pop("executor", None)
    matchers = [
        compiled(compiler, "regex", "[ab]+").new_matcher(),
        compiled(compiler, "regex", "[0-9]").new_matcher(REASONING),
        compiled(compiler, "json_schema", "{}").new_matcher(),
        compiled(compiler, "regex", "x").new_matcher(MAYBE),
    ]
    masks = np.zeros((4, vocabulary.num_mask_words), np.uint32)
    fill_masks(matchers, masks)
    alone = np.zeros((1, vocabulary.num_mask_words), np.uint32)
    for matcher, row in zip(matchers, masks, strict=True):
        fill_masks([matcher], alone)
        assert np.array_equal(row, alone[0])
    vocabulary.__dict__.pop("executor", None)


def test_a_grammar_too_complex_to_follow_is_an_error(compiler: GrammarCompiler) -> None:
    """A DFA of 2^40 states: the first masks are cheap, later ones are not."""
    pattern = ".*(a.{40}|b.{41}|c.{42}|d.{43})z"
    matcher = compiled(compiler, "regex", pattern).new_matcher()
    masks = np.zeros((1, byte_level().num_mask_words), np.uint32)
    rng = np.random.default_rng(0)
    with pytest.raises(GrammarError, match="simplify the grammar"):
        for _ in range(3000):
            fill_masks([matcher], masks)
            matcher.accept(spelled(rng.choice(list("abcd")), byte_level()))


def test_a_vocabulary_must_have_an_end_and_fit_the_logits() -> None:
    def encode(text: str) -> list[int]:
        return []

    with pytest.raises(ValueError, match="needs an end-of-sequence token"):
        Vocabulary((b"a",), (), frozenset(), 1, encode)
    with pytest.raises(ValueError, match="the logits have 1 entries"):
        Vocabulary((b"a", b"b"), (1,), frozenset(), 1, encode)
