"""Logprobs, token ids and counts that OpenAI's endpoints return on request."""

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM
from server.openai_calls import CHAT, chat, post, stream

from jaxserve.config import ServerConfig

HALF = pytest.approx(-0.6931, abs=1e-4)
COMPLETE = {"prompt": [10, 11], "max_tokens": 1, "rid": "r", "model": "m"}
ECHOED = {
    "text_offset": [-1] * 3,
    "token_logprobs": [None, -1.0, HALF],
    "tokens": [" the", " capital", " Paris"],
    "top_logprobs": [None, {" Paris": 0.0, " is": -1.0}, {" Paris": 0.0, " is": -1.0}],
}


async def test_chat_logprobs(client: TestClient) -> None:
    choice = await chat(client, max_tokens=1, logprobs=True, top_logprobs=1)
    token = {"token": " Paris", "bytes": list(b" Paris")}
    assert choice["logprobs"] == {
        "content": [token | {"logprob": HALF, "top_logprobs": [token | {"logprob": 0.0}]}]
    }


async def test_bytes_are_those_of_the_token(client: TestClient, llm: FakeLLM) -> None:
    llm.words = ("\ufffd", "\ufffd", "!")
    llm.parts = {0: b"\xc3", 1: b"\xa9"}
    choice = await chat(client, max_tokens=3, logprobs=True)
    content = choice["logprobs"]["content"]
    assert [item["token"] for item in content] == ["\ufffd", "\ufffd", "!"]
    assert bytes(byte for item in content for byte in item["bytes"]).decode() == "é!"


async def test_top_tokens_written_alike_tell_the_likeliest(
    client: TestClient, llm: FakeLLM
) -> None:
    llm.words = ("\ufffd", "\ufffd", "!")
    answer = await post(client, "completions", COMPLETE | {"logprobs": 3})
    (top,) = answer["choices"][0]["logprobs"]["top_logprobs"]
    assert list(top.items()) == [("\ufffd", 0.0), ("!", -2.0)]


async def test_echo_brings_the_prompts_logprobs(client: TestClient, llm: FakeLLM) -> None:
    body = COMPLETE | {"echo": True, "logprobs": 2}
    (choice,) = (await post(client, "completions", body))["choices"]
    assert choice["text"] == " the capital Paris"
    assert choice["logprobs"] == ECHOED
    assert llm.submitted[0].params.prompt_logprobs_start == 0
    await post(client, "completions", COMPLETE | {"logprobs": 2})
    assert llm.submitted[1].params.prompt_logprobs_start is None


async def test_echo_alone_scores_the_prompt(client: TestClient) -> None:
    body = COMPLETE | {"echo": True, "logprobs": 2, "max_tokens": 0}
    (choice,) = (await post(client, "completions", body))["choices"]
    assert choice["text"] == " the capital"
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0]


async def test_streamed_echo(client: TestClient) -> None:
    body = COMPLETE | {"echo": True, "logprobs": 2, "max_tokens": 2}
    echo, *chunks = [c["choices"][0] for c in await stream(client, "completions", body)]
    assert (echo["text"], echo["logprobs"]) == (" the capital", None)
    assert "".join(chunk["text"] for chunk in chunks) == " Paris is"
    tokens = [token for chunk in chunks for token in chunk["logprobs"]["tokens"]]
    assert tokens == [" the", " capital", " Paris", " is"]
    assert chunks[0]["logprobs"]["token_logprobs"] == [None, -1.0, HALF]


async def test_streamed_chat_logprobs_ride_on_their_chunk(client: TestClient) -> None:
    chunks = await stream(client, "chat/completions", CHAT | {"max_tokens": 2, "logprobs": True})
    found = [c["choices"][0]["logprobs"] for c in chunks]
    assert found[0] is None
    assert [item["content"][0]["token"] for item in found[1:3]] == [" Paris", " is"]
    assert found[3] is None


async def test_token_ids_of_a_chat(client: TestClient) -> None:
    choice = await chat(client, max_tokens=2, return_token_ids=True)
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([0, 1], [10])
    choice = await chat(client, max_tokens=2, return_prompt_token_ids=True)
    assert "token_ids" not in choice
    assert choice["prompt_token_ids"] == [10]
    body = CHAT | {"max_tokens": 2, "return_token_ids": True}
    role, *choices = [c["choices"][0] for c in await stream(client, "chat/completions", body)]
    assert role["prompt_token_ids"] == [10]
    assert [choice.get("token_ids") for choice in choices] == [[0], [1], None]


async def test_token_ids_of_a_completion(client: TestClient) -> None:
    body = COMPLETE | {"max_tokens": 2, "return_token_ids": True}
    (choice,) = (await post(client, "completions", body))["choices"]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([0, 1], [10, 11])
    chunks = [c["choices"][0] for c in await stream(client, "completions", body)]
    assert chunks[0]["prompt_token_ids"] == [10, 11]
    assert [i for chunk in chunks[1:] for i in chunk["token_ids"]] == [0, 1]


async def test_meta_info(client: TestClient) -> None:
    choice = await chat(client, max_tokens=2, return_meta_info=True, logprobs=True)
    meta = choice["meta_info"]
    assert (meta["id"], meta["prompt_tokens"], meta["completion_tokens"]) == ("r", 1, 2)
    assert [entry[:2] for entry in meta["output_token_logprobs"]] == [[HALF, 0], [HALF, 1]]


async def test_where_cached_tokens_came_from(client: TestClient) -> None:
    details = {"cached_tokens_details": {"device": 1, "host": 0}}
    for path, body in (("chat/completions", CHAT), ("completions", COMPLETE)):
        fields = body | {"return_cached_tokens_details": True}
        assert (await post(client, path, fields))["sglext"] == details
        chunk = (await stream(client, path, fields))[-1]
        assert (chunk["choices"], chunk["sglext"]) == ([], details)


@pytest.mark.parametrize("config", [ServerConfig(stream_response_default_include_usage=True)])
async def test_usage_ends_every_stream_by_default(client: TestClient) -> None:
    for path, body in (("chat/completions", CHAT), ("completions", COMPLETE)):
        chunk = (await stream(client, path, body))[-1]
        assert chunk["choices"] == []
        assert chunk["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", COMPLETE)])
async def test_continuous_usage_is_on_every_chunk(
    client: TestClient, path: str, body: dict
) -> None:
    fields = body | {"max_tokens": 2, "n": 2, "echo": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await stream(client, path, fields | {"stream_options": options})
    usages = [chunk["usage"] for chunk in chunks]
    assert {usage["prompt_tokens"] for usage in usages} == {1 if "messages" in body else 2}
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts[:2] == [0, 0]  # the roles, or the echoed prompts
    assert counts == sorted(counts) and counts[-1] == 4


async def test_the_best_samples_of_each_prompt(client: TestClient, llm: FakeLLM) -> None:
    llm.sample_logprobs = {0: -3.0, 1: -1.0, 2: -2.0}
    body = COMPLETE | {"prompt": ["a b", "c"], "n": 2, "best_of": 3, "max_tokens": 2}
    answer = await post(client, "completions", body | {"logprobs": 0, "return_token_ids": True})
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    first = [choice["logprobs"]["token_logprobs"][0] for choice in choices]
    assert first == [-1.0, -2.0, -1.0, -2.0]
    assert [len(choice["prompt_token_ids"]) for choice in choices] == [2, 2, 1, 1]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 12)
    assert [s.n for s in llm.submitted] == [3, 3]
    assert (await post(client, "completions", body))["choices"][0]["logprobs"] is None
    assert llm.submitted[-1].params.num_logprobs == 0  # to rank by
    llm.submitted.clear()
    await post(client, "completions", COMPLETE | {"n": 2, "best_of": 1})  # two are asked for
    assert (llm.submitted[0].n, llm.submitted[0].params.num_logprobs) == (2, None)


async def test_the_best_samples_cannot_be_streamed(client: TestClient) -> None:
    answer = await post(client, "completions", COMPLETE | {"best_of": 2, "stream": True}, 400)
    assert answer["message"] == (
        "best_of=2 above n=1 cannot be streamed: the best samples are known at the end. Send "
        "stream=false, or leave best_of away."
    )


async def test_cache_namespaces(client: TestClient, llm: FakeLLM) -> None:
    fields = [{"cache_salt": "ab"}, {"cache_salt": "a", "extra_key": "b"}, {"extra_key": "ab"}, {}]
    for body in fields:
        await post(client, "chat/completions", CHAT | body)
        await post(client, "completions", COMPLETE | body)
    chats, completions = llm.submitted[::2], llm.submitted[1::2]
    assert [s.cache_namespace for s in chats] == [s.cache_namespace for s in completions]
    assert len({s.cache_namespace for s in chats}) == len(fields)
    assert chats[-1].cache_namespace == ""
