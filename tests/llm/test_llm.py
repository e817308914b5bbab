import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from fake_engine import ANSWER, FakeEngine, fake_llm

from jaxserve import LLM
from jaxserve.config import EngineConfig
from jaxserve.errors import (
    ConfigError,
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    OverloadedError,
)
from jaxserve.request import Request, SamplingParams, TextChunk
from jaxserve.text import Tokenizer
from jaxserve.text_stream import TextStream


async def one(llm: LLM, prompt: Any = "hi", **params: Any) -> TextStream:
    return (await llm.submit(prompt, SamplingParams(**params)))[0]


async def chunks(stream: TextStream) -> list[TextChunk]:
    return [chunk async for chunk in stream]


def joined(parts: Sequence[TextChunk]) -> str:
    return "".join(part.text for part in parts)


# --- streams ---


async def test_increments_join_to_the_answer(pair: tuple[LLM, FakeEngine], answer: Any) -> None:
    parts = await chunks(await one(pair[0]))
    assert joined(parts) == ANSWER
    assert [i for part in parts for i in part.token_ids] == answer
    assert [part.finish for part in parts[:-1]] == [None] * (len(parts) - 1)
    last = parts[-1]
    assert last.finish is not None and last.finish.type == "length"
    assert last.usage.completion_tokens == len(answer)
    assert (last.usage.prompt_tokens, last.usage.cached_tokens) == (1, 3)
    assert len(parts) == len(answer)
    assert pair[0].num_open == 0


async def test_a_slow_reader_gets_all_that_waits_as_one_chunk(pair: tuple[LLM, FakeEngine]) -> None:
    stream = await one(pair[0])
    await asyncio.sleep(0.05)
    parts = await chunks(stream)
    assert [part.text for part in parts] == [ANSWER]
    assert (await chunks(stream)) == []


async def test_result_is_the_whole_sequence(pair: tuple[LLM, FakeEngine], answer: Any) -> None:
    part = await (await one(pair[0])).result()
    assert (part.text, part.token_ids) == (ANSWER, tuple(answer))


@pytest.mark.parametrize("slow", [False, True])
async def test_stop_string_ends_the_sequence_and_its_work(
    pair: tuple[LLM, FakeEngine], answer: list[int], tokenizer: Tokenizer, slow: bool
) -> None:
    llm, engine = pair
    stream = await one(llm, stop=("END",))
    if slow:
        await asyncio.sleep(0.05)
    parts = await chunks(stream)
    assert joined(parts) == ANSWER.split("END")[0]
    finish = parts[-1].finish
    assert finish is not None and (finish.type, finish.matched) == ("stop", "END")
    assert engine.aborted == [stream.request.rid]
    ids = [i for part in parts for i in part.token_ids]
    assert tokenizer.decode(ids).endswith("END")
    assert parts[-1].usage.completion_tokens == len(ids) < len(answer)


async def test_no_stop_trim_keeps_the_stop_string(pair: tuple[LLM, FakeEngine]) -> None:
    parts = await chunks(await one(pair[0], stop=("END",), no_stop_trim=True))
    assert joined(parts) == ANSWER.split("END")[0] + "END"


async def test_a_stop_token_is_counted_and_not_shown(tokenizer: Tokenizer) -> None:
    for token, params in ((2, {}), (28, {"stop_token_ids": (28,)})):
        llm, _ = fake_llm(tokenizer, lambda request, token=token: [500, 501, token, 502])  # type: ignore[misc]
        part = await (await one(llm, **params)).result()
        assert part.token_ids == (500, 501, token)
        assert part.text == tokenizer.decode([500, 501])
        assert part.finish is not None and part.finish.matched == token
        kept = await (
            await one(llm, no_stop_trim=True, skip_special_tokens=False, **params)
        ).result()
        assert kept.text == tokenizer.decode([500, 501, token], skip_special_tokens=False)


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_stop_string_may_be_a_special_token(tokenizer: Tokenizer, keeps: bool) -> None:
    llm, _ = fake_llm(tokenizer, lambda request: [500, 501, 2, 502])
    stops = {"stop": ("<|im_end|>",), "no_stop_trim": keeps}
    part = await (await one(llm, ignore_eos=True, **stops)).result()
    assert (part.token_ids, part.text) == ((500, 501, 2), tokenizer.decode([500, 501]))
    assert part.finish is not None and part.finish.matched == "<|im_end|>"
    part = await (await one(llm, **stops)).result()
    assert part.token_ids == (500, 501, 2)
    assert part.finish is not None and part.finish.matched == 2  # the token is looked at first


async def test_stop_ids_that_no_token_has_are_left_out(pair: tuple[LLM, FakeEngine]) -> None:
    await one(pair[0], stop_token_ids=(-1, 7, 10**9))
    assert pair[1].requests[0].sampling.stop_token_ids == (7,)


async def test_close_aborts_once_and_ends_iteration(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    engine.is_running = False
    stream = await one(llm)
    reader = asyncio.create_task(chunks(stream))
    await asyncio.sleep(0.01)
    stream.close()
    stream.close()
    assert await reader == []
    assert engine.aborted == [stream.request.rid]
    assert llm.num_open == 0


async def test_close_after_the_end_aborts_nothing(pair: tuple[LLM, FakeEngine]) -> None:
    stream = await one(pair[0])
    await chunks(stream)
    stream.close()
    assert pair[1].aborted == []


async def test_abort_by_prefix_and_all(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    engine.is_running = False
    started = [
        (await llm.submit("hi", SamplingParams(), rid=rid))[0] for rid in ("job_0", "job_1", "x")
    ]
    llm.abort("")
    llm.abort("unknown")
    assert engine.aborted == []
    llm.abort("job")
    for stream in started[:2]:
        part = await stream.result()
        assert part.finish is not None and part.finish.message == "Aborted"
    assert llm.num_open == 1
    assert not await llm.flush_cache()
    llm.abort_all()
    await started[2].result()
    assert llm.num_open == 0
    assert await llm.flush_cache()
    assert llm.stats().num_running == 0


# --- n, rid, seed ---


async def test_samples_have_ids_and_seeds_of_their_own(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    streams = await llm.submit("hi", SamplingParams(seed=5), rid="r", n=3)
    assert [(s.rid, s.index) for s in streams] == [("r_0", 0), ("r_1", 1), ("r_2", 2)]
    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    for stream in streams:
        await stream.result()
    await llm.submit("hi", SamplingParams(seed=5), n=3)
    assert [request.sampling.seed for request in engine.requests[3:]] == seeds


async def test_drawn_seeds_follow_random_seed(tokenizer: Tokenizer, answer: list[int]) -> None:
    def drawn(engine: FakeEngine) -> list[int | None]:
        return [request.sampling.seed for request in engine.requests]

    pairs = [fake_llm(tokenizer, lambda request: answer, random_seed=s) for s in (1, 1, 2, None)]
    for llm, _ in pairs:
        await one(llm)
        await one(llm)
    seeds = [drawn(engine) for _, engine in pairs]
    assert seeds[0] == seeds[1]
    assert len({seed for pair in seeds for seed in pair}) == 6


async def test_a_rid_is_not_copied_at_any_length(pair: tuple[LLM, FakeEngine]) -> None:
    await pair[0].submit("hi", SamplingParams(), rid="x" * 1024)
    with pytest.raises(InvalidRequestError, match="a rid has at most 1024 characters, one of 1025"):
        await pair[0].submit("hi", SamplingParams(), rid="x" * 1025, n=2)
    assert len(pair[1].requests) == 1


async def test_an_open_rid_is_refused_until_it_is_free(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    engine.is_running = False
    (stream,) = await llm.submit("hi", SamplingParams(), rid="a")
    with pytest.raises(InvalidRequestError, match="Duplicate request ID detected: a"):
        await llm.submit("hi", SamplingParams(), rid="a")
    stream.close()
    engine.is_running = True
    # What the engine still says about the first "a" must not reach the second.
    (again,) = await llm.submit("hi", SamplingParams(), rid="a")
    assert (await again.result()).text == ANSWER
    assert len({request.rid for request in engine.requests}) == 2


# --- what is refused ---


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "input_ids cannot be empty"),
        ([], "input_ids cannot be empty"),
        ([5, 49152], r"out-of-vocabulary token id 49152; valid range is \[0, 49152\)"),
        ([-1], "input_ids contains out-of-vocabulary token id -1"),
        (
            [5] * 65,
            r"The input \(65 tokens\) is longer than the model's context length \(64 tokens\)",
        ),
        ([5] * 64, r"The input \(64 tokens\) is longer than the model's context length"),
    ],
)
async def test_bad_prompts(pair: tuple[LLM, FakeEngine], prompt: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        await one(pair[0], prompt)
    assert pair[0].num_open == 0
    assert (await (await one(pair[0])).result()).text == ANSWER


async def test_lengths(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    prompt = [5] * 60
    await one(llm, prompt)  # the default is shortened
    await one(llm, prompt, max_new_tokens=None)
    await one(llm, prompt, max_new_tokens=4)
    await one(llm, [5] * 64, max_new_tokens=0)
    await llm.submit(prompt, SamplingParams(max_new_tokens=9), clamp_max_new_tokens=True)
    assert [r.sampling.max_new_tokens for r in engine.requests] == [4, 4, 4, 0, 4]
    exceeds = (
        "Requested token count exceeds the model's maximum context length of 64 tokens. You "
        "requested a total of 65 tokens: 60 tokens from the input messages and 5 tokens for the "
        "completion. Please reduce the number of tokens in the input messages or the completion "
        "to fit within the limit."
    )
    with pytest.raises(ContextLengthError) as caught:
        await one(llm, prompt, max_new_tokens=5)
    assert str(caught.value) == exceeds
    with pytest.raises(ContextLengthError, match="You requested a total of 188"):
        await llm.submit(prompt, SamplingParams(), clamp_max_new_tokens=False)


async def test_a_small_pool_is_the_limit_and_says_so(tokenizer: Tokenizer) -> None:
    llm, _ = fake_llm(tokenizer, lambda request: [5], max_total_num_tokens=16)
    assert llm.info.max_req_input_len == 15
    with pytest.raises(
        ContextLengthError, match=r"\(16 tokens\)\. \(The model's own context is 64"
    ):
        await one(llm, [5] * 20)
    with pytest.raises(ContextLengthError, match="maximum context length of 16 tokens"):
        await one(llm, [5] * 10, max_new_tokens=7)


async def test_bad_logit_bias(pair: tuple[LLM, FakeEngine]) -> None:
    bad_key = r"logit_bias must has keys in \[0, 49151\], got 49152"
    with pytest.raises(InvalidRequestError, match=bad_key):
        await one(pair[0], logit_bias=((49152, 1.0),))
    with pytest.raises(InvalidRequestError, match="logit_bias values must be finite 32-bit"):
        await one(pair[0], logit_bias=((1, 1e39),))


async def test_bad_logprob_requests(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    with pytest.raises(
        InvalidRequestError,
        match=r"token_ids_logprob contains out-of-vocabulary token id 49152; valid range is \[0, 4",
    ):
        await one(llm, num_logprobs=0, logprob_token_ids=(5, 49152))
    with pytest.raises(
        InvalidRequestError,
        match=r"logprob_start_len \(3\) is higher than the number of input tokens \(2\). Please",
    ):
        await one(llm, [5, 6], num_logprobs=0, prompt_logprobs_start=3)
    await one(llm, [5, 6], num_logprobs=0, prompt_logprobs_start=2)  # of nothing
    assert engine.requests[0].sampling.prompt_logprobs_start is None


async def test_a_dead_engine_refuses(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    assert llm.is_healthy
    engine.is_alive = False
    assert not llm.is_healthy
    with pytest.raises(EngineDeadError, match="the engine died"):
        await llm.submit("hi", SamplingParams(), n=2)
    assert llm.num_open == 0


async def test_failure_amid_n_closes_what_was_started(
    pair: tuple[LLM, FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, engine = pair
    submit = engine.submit

    def full_after_one(request: Request, deliver: Any, constraint: Any) -> None:
        if engine.requests:
            raise OverloadedError("The request queue is full.")
        submit(request, deliver, constraint)

    monkeypatch.setattr(engine, "submit", full_after_one)
    with pytest.raises(OverloadedError):
        await llm.submit("hi", SamplingParams(), n=3)
    assert llm.num_open == 0
    assert engine.aborted == [engine.requests[0].rid]


# --- text ---


@pytest.mark.parametrize(("num_words", "waits"), [(10, False), (2000, True)])
async def test_only_long_texts_leave_the_loop(
    pair: tuple[LLM, FakeEngine], num_words: int, waits: bool
) -> None:
    llm, _ = pair
    llm.info = replace(llm.info, context_len=8192, max_total_num_tokens=8192)
    text = "word " * num_words
    turns: list[str] = []
    asyncio.get_running_loop().call_soon(turns.append, "tokenize")
    ids = await llm.encode(text)
    assert bool(turns) == waits
    await asyncio.sleep(0)
    turns.clear()
    asyncio.get_running_loop().call_soon(turns.append, "chat")
    chat = await llm.render_chat([{"role": "user", "content": text}])
    assert bool(turns) == waits
    assert len(chat) > len(ids) > num_words - 1


async def test_what_is_only_counted_may_be_longer_than_a_prompt(
    pair: tuple[LLM, FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, _ = pair
    text = "word " * 20_000
    messages = [{"role": "user", "content": text}]
    for read in (partial(llm.encode, text), partial(llm.render_chat, messages)):
        with pytest.raises(ContextLengthError):
            await read()
        assert len(await read(is_prompt=False)) > 20_000
    monkeypatch.setattr("jaxserve.admission.MAX_COUNTED_CHARS", len(text) - 1)
    with pytest.raises(ContextLengthError, match="at least"):
        await llm.encode(text, is_prompt=False)


async def test_chat_and_single_tokens(pair: tuple[LLM, FakeEngine], tokenizer: Tokenizer) -> None:
    llm, _ = pair
    ids = await llm.render_chat([{"role": "user", "content": "hi"}])
    assert llm.decode_token(ids[0]) == "<|im_start|>"
    assert llm.token_bytes(ids[0]) == b"<|im_start|>"
    assert await llm.encode("hi") == tuple(tokenizer.encode("hi"))


# --- metrics ---


async def test_requests_are_counted(pair: tuple[LLM, FakeEngine], answer: list[int]) -> None:
    llm, engine = pair
    await (await one(llm, "hello there")).result()
    engine.is_running = False
    (await one(llm)).close()

    def value(name: str) -> float:
        samples = [s for family in llm.metrics.registry.collect() for s in family.samples]
        return sum(sample.value for sample in samples if sample.name == name)

    assert value("sglang:num_requests_total") == 1
    assert value("sglang:num_aborted_requests_total") == 1
    assert value("sglang:generation_tokens_total") == len(answer)
    assert value("sglang:time_to_first_token_seconds_count") == 1
    assert value("sglang:inter_token_latency_seconds_count") == len(answer) - 1
    assert value("sglang:e2e_request_latency_seconds_count") == 1
    assert value("sglang:per_stage_req_latency_seconds_count") == 2  # request_process, of both


def test_config_and_single_settings_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="give either config or single settings, not both"):
        LLM("model", config=EngineConfig())
    with pytest.raises(ConfigError, match="give either config"):
        LLM(config=EngineConfig(), dtype="float32")
