"""Every grammar of the suite, driven to its end at random; every output is valid."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from grammar_checks import check_output
from grammar_harness import byte_fallback, byte_level, cases, takes, text_of, walk

from jaxserve.constrained import GrammarCompiler
from jaxserve.request import Grammar

VOCABULARIES = {"byte_level": byte_level, "byte_fallback": byte_fallback}
WALKS = {"byte_level": ((0, True), (1, False)), "byte_fallback": ((2, True),)}  # seed, forcing
each_vocabulary = pytest.mark.parametrize("kind", VOCABULARIES, scope="module")


@pytest.fixture(scope="module")
def compiler(kind: str) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(VOCABULARIES[kind](), num_threads=1)
    yield compiler
    compiler.close()


GRAMMARS: dict[str, Callable[[dict[str, Any]], Grammar]] = {
    "schemas": lambda case: Grammar("json_schema", json.dumps(case["schema"])),
    "regexes": lambda case: Grammar("regex", case["regex"]),
    "grammars": lambda case: Grammar("ebnf", case["grammar"]),
    "tags": lambda case: Grammar("structural_tag", json.dumps(case["tag"])),
}


@each_vocabulary
@pytest.mark.parametrize(
    ("file", "case"),
    [
        pytest.param(file, case, id=f"{file}-{case['name']}")
        for file in GRAMMARS
        for case in cases(file)
    ],
)
def test_outputs_are_valid(
    compiler: GrammarCompiler, kind: str, file: str, case: dict[str, Any]
) -> None:
    compiled = asyncio.run(compiler.compile(GRAMMARS[file](case)))
    vocabulary = VOCABULARIES[kind]()
    for seed, is_forcing in WALKS[kind]:
        token_ids = walk(
            compiled, vocabulary, seed, endings=case.get("endings", ()), is_forcing=is_forcing
        )
        check_output(file, case, text_of(token_ids, vocabulary).decode())
    for text in case.get("accepts", ()):
        assert takes(compiled, text, vocabulary), text
    for text in case.get("refuses", ()):
        assert not takes(compiled, text, vocabulary), text


def test_the_suite_is_large() -> None:
    names = [(file, case["name"]) for file in GRAMMARS for case in cases(file)]
    assert len(names) == len(set(names)) >= 200
