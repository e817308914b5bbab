"""Stop patterns: the same matches as ``re`` finds, however the text comes, in bounded time."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import InvalidRequestError
from jaxserve.text.stop_regex import (
    MAX_STATES,
    Match,
    RegexSearch,
    compile_stop_regex,
    compile_stop_regexes,
)


def search(pattern: str, text: str) -> Match | None:
    found = RegexSearch(compile_stop_regex(pattern))
    return found.push(text) or found.end()


def first_by_re(pattern: str, text: str) -> tuple[int, int] | None:
    """What ends first, and of that the longest, by trying every piece of the text."""
    compiled = re.compile(pattern)
    for end in range(1, len(text) + 1):
        for start in range(end):
            if compiled.fullmatch(text, start, end):
                return start, end
    return None


PATTERNS = [
    "ab", "a|b", "a+b", "(ab)+c", "a.c", "[ab]c", "[^ab]c", "(?:a|b){2}c", "a{2,3}b", "a??bc",
    "(a|ab)(c|bcd)", "(a*)*b", "(?i)AB", "a\nb", "(?s:a.b)", r"\w\s\w", r"\d", "a(?:b|)c",
    "(?i:B)a", "[a-b]{3}", r"[^\n]c", r"\.", "(b+|a)+c",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=st.text(alphabet="abcAB1. \n", max_size=14))
@settings(max_examples=60, deadline=None)
def test_finds_what_re_finds(pattern: str, text: str) -> None:
    assert search(pattern, text) == first_by_re(pattern, text)


@given(text=st.text(alphabet="ab c", max_size=14), cuts=st.lists(st.integers(0, 14), max_size=5))
@settings(max_examples=100, deadline=None)
def test_the_way_a_text_is_cut_does_not_matter(text: str, cuts: list[int]) -> None:
    for pattern in ("a+b", r"\bab\b", "a b|c"):
        found = RegexSearch(compile_stop_regex(pattern))
        ends = sorted({*(cut for cut in cuts if cut < len(text)), len(text)})
        match, start = None, 0
        for end in ends:
            match = match or found.push(text[start:end])
            start = end
        assert (match or found.end()) == search(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text", "match"),
    [
        (r"\d{3}-\d{4}", "call 555-1234 now", (5, 13)),
        ("(?i)end|stop", "The EnD", (4, 7)),
        ("[一-龥]。", "你好。", (1, 3)),
        ("^b", "ab", None),
        ("^a", "ab", (0, 1)),
        ("(?m)^b", "a\nb", (2, 3)),
        (r"\Ab", "a\nb", None),
        ("END$", "x END", (2, 5)),  # a stop that waited for the end of everything would be none
        (r"\bSTOP\b", "STOPPED a STOP.", (10, 14)),
        (r"\bSTOP\b", "NONSTOP", None),
        (r"\bSTOP\b", "STOP", (0, 4)),
        (r"a\B", "a ab", (2, 3)),
    ],
)
def test_assertions(pattern: str, text: str, match: tuple[int, int] | None) -> None:
    assert search(pattern, text) == match


@pytest.mark.parametrize(
    ("pattern", "text", "begins"),
    [
        ("END", "abc", 3),
        ("END", "abcEN", 3),
        ("END", "abcENE", 5),
        ("aaab", "aaaaaa", 3),  # no more than may still match
        ("a.*b", "xa y z", 1),
        (r"\bSTOP\b", "a STOP", 2),
        (r"\bSTOP\b", "a STOPP", 7),
    ],
)
def test_knows_where_the_next_match_may_begin(pattern: str, text: str, begins: int) -> None:
    found = RegexSearch(compile_stop_regex(pattern))
    assert found.push(text) is None
    assert found.begins == begins


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", "missing ), unterminated subpattern at position 0"),
        ("[z-a]", "bad character range z-a at position 1"),
        ("*", "nothing to repeat at position 0"),
        ("a*", "it matches the empty text, so it would stop at once"),
        ("$", "it matches the empty text, so it would stop at once"),
        ("a|", "it matches the empty text, so it would stop at once"),
        ("(?=a)b", "look-around is not supported in stop_regex"),
        ("(?<!a)b", "look-around is not supported in stop_regex"),
        (r"(a)\1", "a back-reference is not supported in stop_regex"),
        ("(a)?(?(1)b|c)", "a conditional group is not supported in stop_regex"),
        ("(?>a)", "an atomic group is not supported in stop_regex"),
        ("a++", "a possessive repeat is not supported in stop_regex"),
        (
            "((a{99}){99}){99}",
            "its repetitions written out have more than 1000 parts; repeat less often",
        ),
        ("(.?){400}x", "it has too many optional parts in a row; make some required"),
    ],
)
def test_bad_patterns(pattern: str, problem: str) -> None:
    start_s = time.perf_counter()
    with pytest.raises(InvalidRequestError) as caught:
        compile_stop_regex(pattern)
    assert str(caught.value) == f"invalid stop_regex '{pattern}': {problem}"
    assert time.perf_counter() - start_s < 1


def test_all_patterns_of_a_request_share_one_limit() -> None:
    patterns = ["a{200}", "b{300}", "c{400}"]
    assert len(compile_stop_regexes(patterns)) == 3
    with pytest.raises(InvalidRequestError, match="all patterns together have 1009 parts, at most"):
        compile_stop_regexes([*patterns, "d{101}"])
    assert MAX_STATES == 1000


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|aa)+b", "(a|a)*b", "(.*)*b", "(.*a){12}b"])
def test_no_pattern_takes_exponential_time(pattern: str) -> None:
    found = RegexSearch(compile_stop_regex(pattern))
    start_s = time.perf_counter()
    assert found.push("a" * 2000) is None
    assert time.perf_counter() - start_s < 4  # 0.05 s here; ``re`` would need ages


@given(st.text(alphabet="ab()[]{}|*+?.^$\\1,-:=!<>PiLmsx ", max_size=24))
@settings(max_examples=300, deadline=2000)
def test_no_text_breaks_the_compiler(pattern: str) -> None:
    try:
        found = RegexSearch(compile_stop_regex(pattern))
    except InvalidRequestError as error:
        assert str(error).startswith(f"invalid stop_regex '{pattern}': ")
        return
    found.push("aab b1 \n" * 3)
