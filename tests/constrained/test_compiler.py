"""Compiling beside the event loop: the cache, the timeout, hostile grammars, the helper process."""

import asyncio
import gc
import json
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from grammar_harness import byte_level, takes

from jaxserve.constrained import GrammarCompiler
from jaxserve.constrained.workers import Workers
from jaxserve.errors import InvalidRequestError
from jaxserve.request import Grammar

DIGITS = Grammar("regex", "[0-9]+")
# Finding the least common multiple of these keeps llguidance busy for ever.
ENDLESS = Grammar(
    "json_schema",
    json.dumps({"allOf": [{"type": "integer", "multipleOf": p} for p in (10007, 10009, 10037)]}),
)


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(byte_level(), num_threads=1, cache_size=2, timeout_s=20)
    yield compiler
    compiler.close()


async def test_a_grammar_is_compiled_once(compiler: GrammarCompiler) -> None:
    one, other = await asyncio.gather(compiler.compile(DIGITS), compiler.compile(DIGITS))
    assert one is other
    assert await compiler.compile(DIGITS) is one
    stats = compiler.stats()
    assert (stats.num_compiled, stats.num_cache_hits, stats.num_failed) == (1, 2, 0)
    assert stats.compile_s > 0 and one.compile_s > 0 and one.kind == "regex"


async def test_the_least_recently_used_grammar_is_forgotten(compiler: GrammarCompiler) -> None:
    first = await compiler.compile(DIGITS)
    await compiler.compile(Grammar("regex", "a"))
    assert await compiler.compile(DIGITS) is first
    await compiler.compile(Grammar("regex", "b"))
    assert await compiler.compile(DIGITS) is first
    assert compiler.stats().num_compiled == 3
    await compiler.compile(Grammar("regex", "a"))
    assert compiler.stats().num_compiled == 4


async def test_large_grammars_leave_no_room_for_others(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxserve.constrained.compiler.MAX_CACHED_CHARS", 100)
    for source in ("[0-9]+", "a" * 80, "b" * 30):
        await compiler.compile(Grammar("regex", source))
    await compiler.compile(Grammar("regex", "b" * 30))
    await compiler.compile(Grammar("regex", "[0-9]+"))
    stats = compiler.stats()
    assert (stats.num_compiled, stats.num_cache_hits) == (4, 1)


async def test_a_bad_grammar_is_refused_each_time_and_compiled_once(
    compiler: GrammarCompiler,
) -> None:
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="unclosed group"):
            await compiler.compile(Grammar("regex", "(a"))
    stats = compiler.stats()
    assert (stats.num_compiled, stats.num_cache_hits, stats.num_failed) == (0, 1, 1)


async def test_a_caller_that_gives_up_does_not_stop_the_others(compiler: GrammarCompiler) -> None:
    task = asyncio.create_task(compiler.compile(DIGITS))
    await asyncio.sleep(0)
    other = asyncio.create_task(compiler.compile(DIGITS))
    await asyncio.sleep(0)
    task.cancel()
    assert (await other).kind == "regex"
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_event_loop_goes_on_while_a_grammar_is_compiled(
    compiler: GrammarCompiler,
) -> None:
    large = Grammar("json_schema", json.dumps({"enum": [f"{i:05d}x" for i in range(20_000)]}))
    task = asyncio.create_task(compiler.compile(large))
    slowest_s = 0.0
    while not task.done():
        start_s = time.thread_time()
        await asyncio.sleep(0.001)
        slowest_s = max(slowest_s, time.thread_time() - start_s)
    await task
    assert slowest_s < 0.1, "the loop's own thread worked on the grammar"


async def test_a_grammar_that_takes_too_long_is_refused_and_the_next_one_works() -> None:
    compiler = GrammarCompiler(byte_level(), num_threads=1, timeout_s=1.5)
    try:
        with pytest.raises(InvalidRequestError, match="Grammar preprocessing timed out"):
            while True:  # the first time may go to the start of the helper process
                await compiler.compile(DIGITS)
                await compiler.compile(ENDLESS)
        assert compiler.stats().num_timeouts == 1
        for attempt in range(20):  # the helper process starts anew within a few timeouts
            try:
                assert takes(await compiler.compile(Grammar("regex", "ok")), "ok", byte_level())
                break
            except InvalidRequestError:
                assert attempt < 19
    finally:
        compiler.close()


def chain(length: int) -> dict[str, object]:
    links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "string"}}}


def links(length: int, form: str) -> str:
    """``length`` definitions, each of which uses the next one."""
    return "\n".join(form.format(i, i + 1) for i in range(length)) + "\n"


FORKS = [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(24)]
STARS = '{"type":"star","content":'
HOSTILE = {
    "nested groups": Grammar("regex", "(" * 50_000 + "a" + ")" * 50_000),
    "nested classes": Grammar("regex", "[" * 50_000),
    "chain of references": Grammar("json_schema", json.dumps(chain(12_000))),
    "nested schema": Grammar("json_schema", '{"items":' * 3000 + "true" + "}" * 3000),
    "nested list": Grammar("json_schema", "[" * 200_000),
    "nested constant": Grammar("json_schema", '{"const":' + "[" * 5000 + "]" * 5000 + "}"),
    "wide range": Grammar("json_schema", '{"minimum": -1e-300, "maximum": 1e300}'),
    "many choices": Grammar("json_schema", json.dumps({"allOf": FORKS})),
    "chain of terminals": Grammar(
        "ebnf", "start: A0\n" + links(20_000, 'A{}: A{} "x"') + "A20000: /y/"
    ),
    "doubling terminals": Grammar(
        "ebnf", "start: A0\n" + links(60, "A{0}: A{1} A{1}") + "A60: /y/"
    ),
    "chain of rules": Grammar(
        "ebnf", "root ::= r0\n" + links(20_000, 'r{} ::= r{} "x"') + "r20000 ::= [y]"
    ),
    "nested ebnf": Grammar("ebnf", "root ::= " + "(" * 50_000),
    "nothing matches": Grammar("json_schema", '{"$ref": "#"}'),
    "too long": Grammar("regex", "a" * (1 << 19) + "b"),
    "nested tag": Grammar(
        "structural_tag", '{"format":' + STARS * 60 + '{"type":"any_text"}' + "}" * 61
    ),
}
HARMLESS = {
    "long repeat": Grammar("regex", "a{1000000000}"),
    "nested counts": Grammar("regex", "((a{1,1000}){1,1000}){1,1000}"),
    "nested repeats": Grammar("regex", "(?:" * 60 + "a" + "){0,99}" * 60),
    "exponential": Grammar("regex", "(a|a)*b(a+)+c(.*x.{20}){20}"),
    "large enum": Grammar("json_schema", json.dumps({"enum": [f"{i}v" for i in range(20_000)]})),
    "long array": Grammar("json_schema", '{"type":"array","minItems":1000000000}'),
    "long string": Grammar("json_schema", '{"type":"string","minLength":1000000,"maxLength":9e9}'),
    "ambiguous": Grammar("ebnf", 'root ::= root root | root root root | "a" | ""'),
    "repeated groups": Grammar("ebnf", 'root ::= (("a"{0,9999}){0,9999}){0,9999}'),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(byte_level(), num_threads=1, timeout_s=30)
    yield compiler
    compiler.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused(shared: GrammarCompiler, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="invalid|at most 524288 are allowed") as caught:
        asyncio.run(shared.compile(HOSTILE[name]))
    assert len(str(caught.value)) < 1000
    assert takes(asyncio.run(shared.compile(DIGITS)), "12", byte_level()), "the next one works"


@pytest.mark.parametrize("name", HARMLESS)
def test_a_large_grammar_compiles(shared: GrammarCompiler, name: str) -> None:
    assert asyncio.run(shared.compile(HARMLESS[name])).new_matcher().is_active


async def test_what_kills_the_helper_process_is_a_mistake_of_the_grammar(
    compiler: GrammarCompiler,
) -> None:
    with pytest.raises(InvalidRequestError, match="compiling it takes too much memory or too deep"):
        await compiler.compile(HOSTILE["chain of references"])


async def test_the_helper_process_starts_again(compiler: GrammarCompiler) -> None:
    await compiler.compile(DIGITS)
    guard = compiler._guards.get()
    assert guard._process is not None
    os.kill(guard._process.pid, signal.SIGKILL)
    compiler._guards.put(guard)
    with pytest.raises(InvalidRequestError, match="shorter chains of definitions"):
        await compiler.compile(Grammar("regex", "a"))
    assert (await compiler.compile(Grammar("regex", "b"))).kind == "regex"


async def test_closing_ends_the_helper_process() -> None:
    compiler = GrammarCompiler(byte_level(), num_threads=1, timeout_s=20)
    await compiler.compile(DIGITS)
    guard = compiler._guards.get()
    compiler._guards.put(guard)
    process = guard._process
    assert process is not None and process.poll() is None
    compiler.close()
    process.wait(timeout=10)
    del compiler, guard, process
    gc.collect()  # no ResourceWarning


def test_a_defect_ends_its_thread_and_another_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda defect: None)
    workers = Workers(1, "test-worker")
    try:
        failed = workers.submit(lambda: 1 // 0)
        with pytest.raises(RuntimeError, match="thread failed; see its log"):
            failed.result(timeout=10)
        assert workers.submit(lambda: "alive").result(timeout=10) == "alive"
    finally:
        workers.close()
