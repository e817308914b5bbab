"""What an ``LLM`` does beside generating: grammars, sessions, pausing, options of generate."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, fake_llm

from jaxserve import LLM
from jaxserve.constrained import GrammarCompiler, Vocabulary
from jaxserve.errors import InvalidRequestError
from jaxserve.request import Grammar, SamplingParams, SessionParams, Thought
from jaxserve.text import Tokenizer


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(
        token_bytes=tokenizer.vocabulary_bytes(),
        eos_token_ids=tokenizer.eos_token_ids,
        special_token_ids=tokenizer.special_token_ids,
        vocab_size=tokenizer.vocab_size,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
    )


@pytest.fixture
def constrained(
    tokenizer: Tokenizer, vocabulary: Vocabulary, answer: list[int]
) -> Iterator[tuple[LLM, FakeEngine]]:
    llm, engine = fake_llm(tokenizer, lambda request: answer, grammars=GrammarCompiler(vocabulary))
    yield llm, engine
    llm.shutdown()


# --- grammars ---


async def test_each_sample_has_its_own_matcher(constrained: tuple[LLM, FakeEngine]) -> None:
    llm, engine = constrained
    grammar = Grammar("regex", "[0-9]+")
    thought = Thought(end_ids=(5, 6))
    params = SamplingParams(grammar=grammar, thought=thought)
    streams = await llm.submit("hi", params, n=2)
    first, second = engine.constraints
    assert first is not None and second is not None and first is not second
    assert not first.is_active
    first.accept([5, 6])
    assert first.is_active and not second.is_active
    await asyncio.gather(*(stream.result() for stream in streams))
    await llm.submit("hi", SamplingParams(grammar=grammar))
    await llm.submit("hi", SamplingParams())
    assert engine.constraints[-1] is None
    stats = llm.stats()
    assert (stats.num_grammars_total, stats.num_grammar_cache_hits_total) == (1, 1)
    assert stats.num_grammar_queue == 0


@pytest.mark.parametrize(
    "grammar",
    [Grammar("json_schema", "{"), Grammar("regex", "("), Grammar("ebnf", "root ::= nothing")],
)
async def test_a_bad_grammar_is_refused_before_anything_starts(
    constrained: tuple[LLM, FakeEngine], grammar: Grammar
) -> None:
    llm, engine = constrained
    with pytest.raises(InvalidRequestError):
        await llm.submit("hi", SamplingParams(grammar=grammar))
    assert not engine.requests
    assert (llm.num_open, llm.stats().num_grammar_aborts_total) == (0, 1)


async def test_without_a_compiler_grammars_are_refused(pair: tuple[LLM, FakeEngine]) -> None:
    with pytest.raises(InvalidRequestError, match="launched with --grammar-backend none"):
        await pair[0].submit("hi", SamplingParams(grammar=Grammar("regex", "a")))


def test_generate_takes_grammars(constrained: tuple[LLM, FakeEngine]) -> None:
    llm, engine = constrained
    llm.generate(["a", "b"], [{"regex": "x"}, None])
    assert [each is None for each in engine.constraints] == [False, True]


# --- stop_regex ---


async def test_stop_regex_ends_a_sequence(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    (stream,) = await llm.submit("hi", SamplingParams(stop_regex=("E[A-Z]{2}",)))
    chunk = await stream.result()
    assert chunk.text.endswith("capital. ")
    assert chunk.finish is not None and chunk.finish.matched == "END"
    assert engine.aborted == [stream.request.rid]


async def test_a_bad_stop_regex_is_refused_as_a_whole(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    with pytest.raises(InvalidRequestError, match=r"invalid stop_regex '\(': missing \)"):
        await llm.submit("hi", SamplingParams(stop_regex=("(",)), n=2)
    assert (llm.num_open, engine.requests) == (0, [])


# --- sessions ---


async def test_a_session_continues_prompts(pair: tuple[LLM, FakeEngine], answer: list[int]) -> None:
    llm, engine = pair
    session = llm.open_session(60)

    async def say(ids: list[int], rid: str | None = None, **params: Any) -> str:
        wanted = SessionParams(id=session, rid=rid, **params)
        (stream,) = await llm.submit(ids, SamplingParams(max_new_tokens=2), session=wanted)
        await stream.result()
        return stream.rid

    first = await say([5, 6])
    second = await say([7], first)
    await say([8], second, offset=-1)
    prompts = [list(request.prompt_ids) for request in engine.requests]
    output = answer[:2]
    assert prompts[1] == [5, 6, *output, 7]
    assert prompts[2] == [5, 6, *output, 7, output[0], 8]
    llm.close_session(session)
    with pytest.raises(InvalidRequestError, match="does not exist"):
        await say([9], second)


async def test_a_refused_prompt_leaves_a_session_alone(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    session = llm.open_session(1000)
    engine.is_running = False
    wanted = SessionParams(id=session)
    (running,) = await llm.submit([5], SamplingParams(), session=wanted)
    replacing = SessionParams(id=session, replace=True)
    with pytest.raises(InvalidRequestError, match="longer than the model's context"):
        await llm.submit([5] * 65, SamplingParams(), session=replacing)
    assert running.finish is None
    await llm.submit([5], SamplingParams(), session=replacing)
    assert running.finish is not None and running.finish.message == "Aborted"


# --- control ---


async def test_pause_resume_and_profiles_reach_the_engine(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    assert await llm.pause("retract") == 1
    assert llm.is_paused
    await llm.resume()
    assert not llm.is_paused
    await llm.start_profile("folder", num_steps=3)
    await llm.stop_profile()
    assert engine.calls == ["retract", "resume", ("folder", 3, None), "stop"]
    with pytest.raises(InvalidRequestError, match="mode must be one of abort, retract, in_place"):
        await llm.pause("soft")  # type: ignore[arg-type]


async def test_health_checks_are_not_counted(pair: tuple[LLM, FakeEngine]) -> None:
    llm, _ = pair
    (stream,) = await llm.submit("hi", SamplingParams(), rid="HEALTH_CHECK_1")
    await stream.result()
    counted = [line for line in llm.metrics.render().splitlines() if b"requests_total{" in line]
    assert counted and all(line.endswith(b" 0.0") for line in counted)


async def test_auto_truncation_cuts_what_does_not_fit(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    llm.config = replace(llm.config, allow_auto_truncate=True)
    params = SamplingParams(max_new_tokens=50)
    for prompt in ([5] * 90, "word " * 9000, [5] * 10):
        await llm.submit(prompt, params)
    lengths = [(len(r.prompt_ids), r.sampling.max_new_tokens) for r in engine.requests]
    assert lengths == [(63, 1), (63, 1), (10, 50)]


# --- options of generate ---


def test_generate_takes_the_fields_of_the_native_api(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    bodies = llm.generate(
        ["a", "b"],
        {"max_new_tokens": 2},
        rid="mine",
        return_logprob=[True, False],
        top_logprobs_num=1,
        return_text_in_logprobs=True,
        return_prompt_token_ids=True,
        priority=3,
        cache_salt="x",
    )
    assert [body["meta_info"]["id"] for body in bodies] == ["mine_0", "mine_1"]
    assert [len(body["prompt_token_ids"]) for body in bodies] == [1, 1]
    entries = bodies[0]["meta_info"]["output_token_logprobs"]
    assert [entry[2] for entry in entries] == ["Paris", " is"]
    assert "output_token_logprobs" not in bodies[1]["meta_info"]
    assert {(r.priority, r.cache_namespace) for r in engine.requests} == {(3, '["x", ""]')}
    llm.generate("a", SamplingParams(max_new_tokens=0), return_logprob=True)
    assert engine.requests[-1].sampling.prompt_logprobs_start == 0


def test_generate_refuses_other_options(pair: tuple[LLM, FakeEngine]) -> None:
    with pytest.raises(InvalidRequestError, match="LLM.generate has no option 'lora_path'; there"):
        pair[0].generate("a", lora_path="x")


def test_hidden_states_need_a_flag(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    for value in (True, "last"):
        with pytest.raises(InvalidRequestError, match="Please set `--enable-return-hidden-states`"):
            llm.generate("hi", return_hidden_states=value)
    llm.generate("hi", return_hidden_states=False)
    assert len(engine.requests) == 1
    llm.config = replace(llm.config, enable_return_hidden_states=True)
    body = llm.generate("hi", return_hidden_states=True)
    assert body["meta_info"]["hidden_states"] == []  # this engine computes none
    assert engine.requests[-1].sampling.hidden_states == "all"


# --- embeddings as prompts ---


@pytest.fixture
def uncached(pair: tuple[LLM, FakeEngine]) -> tuple[LLM, FakeEngine]:
    """As with --disable-radix-cache; its model has a hidden_size of 4."""
    llm, engine = pair
    llm.config = replace(llm.config, disable_radix_cache=True)
    return llm, engine


def test_embeddings_reach_the_engine(uncached: tuple[LLM, FakeEngine]) -> None:
    llm, engine = uncached
    rows = [[0.5, -1.0, 2, 0.0], [1.5, 0.0, 0.0, 3.0]]
    body = llm.generate(input_embeds=rows, sampling_params={"max_new_tokens": 2, "n": 2})
    assert [each["meta_info"]["prompt_tokens"] for each in body] == [2, 2]
    first, second = engine.requests
    assert first.embeds is second.embeds and first.embeds is not None
    assert (first.embeds.dtype, first.embeds.tolist()) == (np.float32, rows)
    assert len(first.prompt_ids) == 2
    batch = llm.generate(input_embeds=np.ones((3, 5, 4)), sampling_params={"max_new_tokens": 1})
    assert [each["meta_info"]["prompt_tokens"] for each in batch] == [5, 5, 5]
    llm.generate([[1, 2]])
    assert engine.requests[-1].embeds is None


def test_embeddings_are_cut_with_their_prompt(uncached: tuple[LLM, FakeEngine]) -> None:
    llm, engine = uncached
    with pytest.raises(InvalidRequestError, match=r"The input \(70 tokens\) is longer than the"):
        llm.generate(input_embeds=np.ones((70, 4)))
    llm.config = replace(llm.config, allow_auto_truncate=True)
    llm.generate(input_embeds=np.ones((70, 4)))
    assert engine.requests[-1].embeds is not None
    assert len(engine.requests[-1].embeds) == len(engine.requests[-1].prompt_ids) == 63


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0]], r"input_embeds\[0\] has 2 numbers; send rows of 4 numbers, the model's h"),
        ([[0.0] * 4, []], r"input_embeds\[1\] has 0 numbers; send rows of 4 numbers"),
        ([[0.0] * 4, 3.0], r"input_embeds\[1\] is no list of numbers; send rows of 4 numbers"),
        ([["1"] * 4], r"input_embeds\[0\] is no list of numbers"),
        ([[True] * 4], r"input_embeds\[0\] is no list of numbers"),
        ([[None] * 4], r"input_embeds\[0\] is no list of numbers"),
        ([[0.0] * 4, [[0.0], 1.0]], r"input_embeds\[1\] is no list of numbers"),
        ([[0.0, 0.0, 1e39, 0.0]], r"input_embeds\[0\] has a number that is not finite in 32 bits"),
        ([[float("nan")] * 4], r"input_embeds\[0\] has a number that is not finite in 32 bits"),
        (np.zeros((0, 4)), "input_embeds cannot be empty"),
        (3, "input_embeds: invalid type: integer `3`, expected a sequence"),
    ],
)
def test_wrong_embeddings_are_refused(
    uncached: tuple[LLM, FakeEngine], rows: object, message: str
) -> None:
    llm, engine = uncached
    with pytest.raises(InvalidRequestError, match=message):
        llm.generate(input_embeds=rows)
    assert not engine.requests


def test_what_embeddings_cannot_have_is_refused(uncached: tuple[LLM, FakeEngine]) -> None:
    llm, engine = uncached
    rows = [[0.0] * 4]
    for options, message in (
        ({"return_prompt_token_ids": True}, "`return_prompt_token_ids` is not supported with"),
        ({"session_params": {"id": "s"}}, "session_params cannot be combined with input_embeds"),
        ({"return_logprob": True, "logprob_start_len": 0}, "there are no logprobs of the prompt"),
        ({"prompts": "a"}, "give either prompts or input_embeds, not both"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            llm.generate(input_embeds=rows, **options)
    assert not engine.requests
    llm.generate(input_embeds=rows, return_logprob=True)
    llm.config = replace(llm.config, disable_radix_cache=False)
    with pytest.raises(InvalidRequestError, match="Please add `--disable-radix-cache` when you"):
        llm.generate(input_embeds=rows)
