"""Every grammar of the suite, driven to its end at random; every output is valid."""

import asyncio
import base64
import ipaddress
import json
import re
from collections.abc import Iterator
from datetime import date
from typing import Any
from urllib.parse import urlsplit

import pytest
from grammar_harness import byte_fallback, byte_level, cases, takes, text_of, walk
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.validators import validator_for

from jaxserve.constrained import CompiledGrammar, GrammarCompiler
from jaxserve.request import Grammar

VOCABULARIES = {"byte_level": byte_level, "byte_fallback": byte_fallback}
WALKS = {"byte_level": ((0, True), (1, False)), "byte_fallback": ((2, True),)}  # seed, forcing
each_vocabulary = pytest.mark.parametrize("kind", VOCABULARIES, scope="module")


@pytest.fixture(scope="module")
def compiler(kind: str) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(VOCABULARIES[kind](), num_threads=1)
    yield compiler
    compiler.close()


def each(name: str) -> Any:
    records = cases(name)
    return pytest.mark.parametrize("case", records, ids=[record["name"] for record in records])


def outputs(
    compiler: GrammarCompiler, kind: str, grammar: Grammar, endings: list[str]
) -> tuple[CompiledGrammar, list[str]]:
    compiled = asyncio.run(compiler.compile(grammar))
    vocabulary = VOCABULARIES[kind]()
    walks = [
        walk(compiled, vocabulary, seed, endings=endings, is_forcing=is_forcing)
        for seed, is_forcing in WALKS[kind]
    ]
    return compiled, [text_of(token_ids, vocabulary).decode() for token_ids in walks]


formats = FormatChecker()


@formats.checks("date-time", raises=ValueError)
def is_date_time(text: str) -> bool:
    day, _, clock = text.upper().partition("T")
    return is_date(day) and is_time(clock)


@formats.checks("date", raises=ValueError)
def is_date(text: str) -> bool:
    leap_year_0 = text.replace("0000-", "2000-", 1)  # Python's years begin at 1
    return isinstance(date.fromisoformat(leap_year_0), date)


@formats.checks("time")
def is_time(text: str) -> bool:
    clock = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?"
    return re.fullmatch(clock + r"([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)", text) is not None


@formats.checks("duration")
def is_duration(text: str) -> bool:
    day = r"(\d+Y)?(\d+M)?(\d+D)?"
    return re.fullmatch(rf"P(?!$)(\d+W|{day}(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)", text) is not None


@formats.checks("hostname")
def is_hostname(text: str) -> bool:
    label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    return re.fullmatch(rf"{label}(\.{label})*", text) is not None


@formats.checks("ipv6", raises=ValueError)
def is_ipv6(text: str) -> bool:
    return ipaddress.IPv6Address(text) is not None


@formats.checks("uri", raises=ValueError)
@formats.checks("iri", raises=ValueError)
@formats.checks("uri-reference", raises=ValueError)
def is_uri(text: str) -> bool:
    return " " not in text and bool(urlsplit(text).scheme)


@formats.checks("byte", raises=ValueError)
def is_base64(text: str) -> bool:
    return base64.b64decode(text, validate=True) is not None


@formats.checks("json-pointer")
def is_pointer(text: str) -> bool:
    return re.fullmatch(r"(/([^~/]|~[01])*)*", text) is not None


@formats.checks("relative-json-pointer")
def is_relative_pointer(text: str) -> bool:
    return re.fullmatch(r"(0|[1-9]\d*)(#|(/([^~/]|~[01])*)*)", text) is not None


@each_vocabulary
@each("schemas")
def test_schemas(compiler: GrammarCompiler, kind: str, case: dict[str, Any]) -> None:
    schema = case["schema"]
    grammar = Grammar("json_schema", json.dumps(schema))
    _, texts = outputs(compiler, kind, grammar, case.get("endings", []))
    validator = validator_for(schema, Draft202012Validator)(schema, format_checker=formats)
    for text in texts:
        validator.validate(json.loads(text))


@each_vocabulary
@each("regexes")
def test_regexes(compiler: GrammarCompiler, kind: str, case: dict[str, Any]) -> None:
    compiled, texts = outputs(
        compiler, kind, Grammar("regex", case["regex"]), case.get("endings", [])
    )
    if "[[:" not in case["regex"] and r"\p{" not in case["regex"]:  # Python's re has neither
        pattern = re.compile(case["regex"], re.ASCII if "(?i)" not in case["regex"] else 0)
        for text in texts:
            # An unanchored match at both ends: ^ and $ may stand inside the pattern.
            assert pattern.fullmatch(text), text
    check_examples(compiled, kind, case)


@each_vocabulary
@each("grammars")
def test_grammars(compiler: GrammarCompiler, kind: str, case: dict[str, Any]) -> None:
    compiled, texts = outputs(
        compiler, kind, Grammar("ebnf", case["grammar"]), case.get("endings", [])
    )
    for text in texts:
        check(case["check"], text)
    check_examples(compiled, kind, case)


@each_vocabulary
@each("tags")
def test_structural_tags(compiler: GrammarCompiler, kind: str, case: dict[str, Any]) -> None:
    grammar = Grammar("structural_tag", json.dumps(case["tag"]))
    compiled, texts = outputs(compiler, kind, grammar, case.get("endings", []))
    for text in texts:
        check(case["check"], text)
    check_examples(compiled, kind, case)


def check_examples(compiled: CompiledGrammar, kind: str, case: dict[str, Any]) -> None:
    vocabulary = VOCABULARIES[kind]()
    for text in case["accepts"]:
        assert takes(compiled, text, vocabulary), text
    for text in case["refuses"]:
        assert not takes(compiled, text, vocabulary), text


def check(rule: dict[str, Any], text: str) -> None:
    """An opinion on ``text`` that owes nothing to llguidance."""
    if "json" in rule:
        json.loads(text)
    if "regex" in rule:
        assert re.fullmatch(rule["regex"], text, re.DOTALL), text
    if "python" in rule:
        compile(text.strip(), "output", rule["python"])
    if "balanced" in rule:
        opening, closing = rule["balanced"]
        depth = 0
        for character in text:
            depth += (character == opening) - (character == closing)
            assert depth >= 0, text
        assert depth == 0, text
    for begin, schema, end in rule.get("inside", ()):
        for body in re.findall(f"{re.escape(begin)}(.*?){re.escape(end)}", text, re.DOTALL):
            Draft202012Validator(schema).validate(json.loads(body))


def test_the_suite_is_large() -> None:
    names = [(file, record["name"]) for file in ("schemas", "regexes", "grammars", "tags")
             for record in cases(file)]  # fmt: skip
    assert len(names) == len(set(names)) >= 200
