"""Grammars with random damage: compiled or refused, never a defect, never for long."""

import asyncio
import json
import random
import time

from grammar_harness import byte_level, cases, walk

from jaxserve.constrained import CompiledGrammar, GrammarCompiler
from jaxserve.errors import InvalidRequestError
from jaxserve.request import Grammar

NUM_DAMAGED = 300
MAX_S = 10.0
MARKS = "{}[]()\"'\\|*+?:,.0-9<>/#~&\0\n\u2028😀"
WORDS = '"$ref": ::= {1,9} null -1 1e999 %json start: root (?i) [^ \\x "not": @x'
SNIPPETS = [*MARKS, *WORDS.split()]


def sources() -> list[Grammar]:
    return [
        *(Grammar("json_schema", json.dumps(case["schema"])) for case in cases("schemas")),
        *(Grammar("regex", case["regex"]) for case in cases("regexes")),
        *(Grammar("ebnf", case["grammar"]) for case in cases("grammars")),
        *(Grammar("structural_tag", json.dumps(case["tag"])) for case in cases("tags")),
    ]


def damaged(source: str, rng: random.Random) -> str:
    """``source`` with a few pieces cut out, put in or moved."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(source) + 1)
        end = min(len(source), start + rng.randint(0, 8))
        piece = rng.choice(["", rng.choice(SNIPPETS), source[start:end] * 3])
        source = source[:start] + piece + source[end if rng.random() < 0.7 else start :]
    return source


async def attempt(compiler: GrammarCompiler, grammar: Grammar) -> CompiledGrammar | None:
    try:
        return await compiler.compile(grammar)
    except InvalidRequestError as error:
        text = str(error)
        assert text.startswith(("invalid ", "Grammar preprocessing timed out")), text
        assert len(text) < 2000
        return None


def test_damaged_grammars(num_damaged: int = NUM_DAMAGED, seed: int = 0) -> None:
    rng = random.Random(seed)
    small = [grammar for grammar in sources() if len(grammar.source) < 5000]
    compiler = GrammarCompiler(byte_level(), num_threads=1, timeout_s=MAX_S)
    num_good = 0
    try:
        for _ in range(num_damaged):
            whole = rng.choice(small)
            grammar = Grammar(whole.kind, damaged(whole.source, rng))
            start_s = time.monotonic()
            compiled = asyncio.run(attempt(compiler, grammar))
            assert time.monotonic() - start_s < 2 * MAX_S, grammar
            if compiled is not None:
                num_good += 1
                compiled.new_matcher().forced_tokens()
        assert num_good > num_damaged / 10
        assert walk(asyncio.run(compiler.compile(Grammar("regex", "[a-z]{3}"))), byte_level(), 0)
    finally:
        compiler.close()
