"""White space in JSON: bounded, as a pattern, or none."""

import asyncio
import json

import pytest
from grammar_harness import byte_level, takes

from jaxserve.constrained import GrammarCompiler
from jaxserve.errors import ConfigError
from jaxserve.request import Grammar

PAIR = Grammar("json_schema", json.dumps({"type": "array", "items": {"type": "integer"}}))


def accepted(*texts: str, **style: object) -> list[bool]:
    compiler = GrammarCompiler(byte_level(), num_threads=1, **style)
    try:
        grammar = asyncio.run(compiler.compile(PAIR))
        return [takes(grammar, text, byte_level()) for text in texts]
    finally:
        compiler.close()


def test_white_space_is_free_but_bounded() -> None:
    texts = ("[1,2]", "[\n  1,\n\t2 ]", "[1," + " " * 64 + "2]", "[1," + " " * 65 + "2]")
    assert accepted(*texts) == [True, True, True, False]


def test_white_space_can_be_a_pattern() -> None:
    assert accepted("[1,2]", "[1, 2]", "[1,  2]", whitespace_pattern="[ ]?") == [True, True, False]


def test_white_space_can_be_forbidden() -> None:
    assert accepted("[1,2]", "[1, 2]", disable_any_whitespace=True) == [True, False]


def test_the_two_settings_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="leaves no white space for --constrained-json"):
        accepted(whitespace_pattern=" ", disable_any_whitespace=True)


def test_a_bad_pattern_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"'\[ ' is not a regex: unclosed character class"):
        accepted(whitespace_pattern="[ ")
