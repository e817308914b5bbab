"""Hidden states in the answers of /generate and of OpenAI's endpoints."""

from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM
from server.native_calls import generate
from server.native_calls import stream as native_stream
from server.openai_calls import CHAT, chat, post, stream

from jaxserve.config import ServerConfig

BODY: dict[str, Any] = {
    "input_ids": [4, 5, 6], "sampling_params": {"max_new_tokens": 3}, "return_hidden_states": True,
}  # fmt: skip
PROMPT = [[0.0, -0.0], [1.0, -1.0], [2.0, -2.0]]
COMPLETE = {"prompt": [10, 11], "max_tokens": 3, "rid": "r", "model": "m"}


async def states_of(client: TestClient, **fields: Any) -> Any:
    return (await generate(client, BODY | fields))["meta_info"].get("hidden_states")


async def test_the_prompts_in_one_list_then_one_by_one(client: TestClient) -> None:
    assert await states_of(client) == [PROMPT, [3.0, -3.0], [4.0, -4.0]]
    assert await states_of(client, sampling_params={"max_new_tokens": 0}) == [PROMPT]


async def test_the_last_alone(client: TestClient) -> None:
    assert await states_of(client, return_hidden_states="last") == [4.0, -4.0]


@pytest.mark.parametrize("nothing", [False, None])
async def test_nothing_unless_asked_for(client: TestClient, llm: FakeLLM, nothing: object) -> None:
    assert await states_of(client, return_hidden_states=nothing) is None
    assert llm.submitted[0].params.hidden_states is None


async def test_every_prompt_has_its_own(client: TestClient, llm: FakeLLM) -> None:
    body = BODY | {"input_ids": [[4], [5], [6]], "return_hidden_states": [True, False, "last"]}
    answers = await generate(client, body)
    found = [answer["meta_info"].get("hidden_states") for answer in answers]
    assert found == [[[PROMPT[0]], [1.0, -1.0], [2.0, -2.0]], None, [2.0, -2.0]]
    for value in (True, "last"):
        llm.submitted.clear()
        await generate(client, body | {"return_hidden_states": value})
        wanted = "all" if value is True else "last"
        assert [each.params.hidden_states for each in llm.submitted] == [wanted] * 3


async def test_a_list_has_one_item_per_prompt(client: TestClient) -> None:
    answer = await generate(client, BODY | {"return_hidden_states": [True, True]}, 400)
    assert answer["error"]["message"].startswith("return_hidden_states has 2 items, the request")


async def test_a_stream_repeats_them_with_every_event(client: TestClient) -> None:
    found = [e["meta_info"]["hidden_states"] for e in await native_stream(client, BODY)]
    assert found == [[PROMPT], [PROMPT, [3.0, -3.0]], [PROMPT, [3.0, -3.0], [4.0, -4.0]]]


@pytest.mark.parametrize("config", [ServerConfig(incremental_streaming_output=True)])
async def test_an_incremental_stream_does_not(client: TestClient) -> None:
    found = [e["meta_info"]["hidden_states"] for e in await native_stream(client, BODY)]
    assert found == [[PROMPT], [[3.0, -3.0]], [[4.0, -4.0]]]


@pytest.mark.parametrize("value", [True, "last"])
async def test_openai_answers_have_the_last(
    client: TestClient, llm: FakeLLM, value: object
) -> None:
    choice = await chat(client, max_tokens=3, return_hidden_states=value)
    assert choice["hidden_states"] == [2.0, -2.0]
    fields = {"return_hidden_states": value, "n": 2}
    (first, second) = (await post(client, "completions", COMPLETE | fields))["choices"]
    assert first["hidden_states"] == second["hidden_states"] == [3.0, -3.0]
    assert {each.params.hidden_states for each in llm.submitted} == {"last"}
    assert "hidden_states" not in await chat(client, max_tokens=3)


async def test_openai_streams_end_with_them(client: TestClient) -> None:
    fields = {"return_hidden_states": True, "n": 2, "stream_options": {"include_usage": True}}
    for path, body in (("chat/completions", CHAT | {"max_tokens": 3}), ("completions", COMPLETE)):
        *chunks, first, second, usage = await stream(client, path, body | fields)
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in (first, second))
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert (usage["choices"], "usage" in usage) == ([], True)
        for index, chunk in enumerate((first, second)):
            (choice,) = chunk["choices"]
            found = choice["delta"] if path.startswith("chat") else choice
            states = [2.0, -2.0] if path.startswith("chat") else [3.0, -3.0]
            assert (choice["index"], found["hidden_states"]) == (index, states)
        assert not any("hidden_states" in str(chunk) for chunk in chunks)


async def test_other_apis_have_no_place_for_them(client: TestClient) -> None:
    body = {"model": "m", "input": "hi", "return_hidden_states": True}
    answer = await post(client, "responses", body, 400)
    assert "`return_hidden_states` is not supported: only the answers of" in str(answer)
