"""/tokenize, /detokenize, /parse_function_call and /separate_reasoning over a fake LLM."""

from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import CALL, FakeLLM

from jaxserve.config import ServerConfig
from jaxserve.server.state import STATE

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


async def post(client: TestClient, path: str, body: object, status: int = 200) -> Any:
    response = await client.post(path, json=body)
    answer = await response.json()
    assert response.status == status, answer
    return answer


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokenize(client: TestClient, prefix: str) -> None:
    path = f"{prefix}/tokenize"
    assert await post(client, path, {"prompt": "two words"}) == {
        "tokens": [1, 10, 11], "count": 3, "max_model_len": 512,
    }  # fmt: skip
    several = {"prompt": ["one", "two words", ""], "add_special_tokens": False}
    assert await post(client, path, several) == {
        "tokens": [[10], [10, 11], []], "count": [1, 2, 0], "max_model_len": 512,
    }  # fmt: skip


async def test_tokenize_a_conversation(client: TestClient, llm: FakeLLM) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS,
        "chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low",
        "add_generation_prompt": False,
    }  # fmt: skip
    assert (await post(client, "/tokenize", body))["tokens"] == [10]
    assert llm.messages == [{"role": "user", "content": "hi"}]
    assert llm.tools == TOOLS
    assert llm.template_kwargs == {"enable_thinking": False, "reasoning_effort": "low"}
    assert llm.adds_generation_prompt is False
    assert llm.was_prompt is False
    await post(client, "/tokenize", body | {"tool_choice": "none", "reasoning_effort": "None"})
    assert llm.tools is None
    assert llm.template_kwargs == {
        "enable_thinking": False, "thinking": False, "reasoning_effort": "none",
    }  # fmt: skip


@pytest.mark.parametrize("config", [ServerConfig(default_chat_template_kwargs={"a": 1, "b": 2})])
async def test_tokenize_renders_as_chat_does(client: TestClient, llm: FakeLLM) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"b": 3}}
    await post(client, "/tokenize", body)
    assert llm.template_kwargs == {"a": 1, "b": 3}


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": []}])
async def test_exactly_one_thing_to_tokenize(client: TestClient, body: object) -> None:
    assert await post(client, "/tokenize", body, 400) == {
        "object": "error",
        "message": "Exactly one of 'prompt' or 'messages' must be provided.",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_detokenize(client: TestClient, prefix: str) -> None:
    path = f"{prefix}/detokenize"
    assert await post(client, path, {"tokens": [0, 2, 3]}) == {"text": " Paris the capital"}
    assert await post(client, path, {"tokens": [[0], [2, 3], []]}) == {
        "text": [" Paris", " the capital", ""]
    }
    assert await post(client, path, {"tokens": []}) == {"text": ""}
    special = {"tokens": [1, 2]}  # the fake's special token
    assert await post(client, path, special) == {"text": " the"}
    kept = special | {"skip_special_tokens": False}
    assert await post(client, path, kept) == {"text": " is the"}
    assert (await post(client, path, {"tokens": [0] * 5000}))["text"] == " Paris" * 5000


@pytest.mark.parametrize("token_id", [-1, 1000])
async def test_detokenize_what_is_no_token(client: TestClient, token_id: int) -> None:
    answer = await post(client, "/detokenize", {"tokens": [1, token_id]}, 400)
    assert answer["message"] == (
        f"tokens contains out-of-vocabulary token id {token_id}; valid range is [0, 1000)."
    )


async def test_v1_wants_json(client: TestClient) -> None:
    for path in ("/v1/tokenize", "/v1/detokenize"):
        response = await client.post(path, data=b"{}", headers={"Content-Type": "text/plain"})
        assert response.status == 400
        assert "Only 'application/json' is allowed" in (await response.json())["message"]


async def test_parse_function_call(client: TestClient) -> None:
    body = {"text": f"Let me see. {CALL}", "tools": TOOLS, "tool_call_parser": "qwen25"}
    answer = await post(client, "/parse_function_call", body)
    assert answer["normal_text"].strip() == "Let me see."
    (call,) = answer["calls"]
    assert (call["tool_index"], call["name"]) == (0, "get_weather")
    assert call["parameters"].replace(" ", "") == '{"city":"Paris"}'
    plain = await post(client, "/parse_function_call", body | {"text": "No."})
    assert plain == {"normal_text": "No.", "calls": []}


async def test_separate_reasoning(client: TestClient) -> None:
    body = {"text": "<think>Hm.</think>Yes.", "reasoning_parser": "qwen3"}
    assert await post(client, "/separate_reasoning", body) == {
        "reasoning_text": "Hm.",
        "text": "Yes.",
    }
    blocks = await post(client, "/separate_reasoning", body | {"return_blocks": True})
    assert blocks == {
        "reasoning_text": "Hm.",
        "text": "Yes.",
        "reasoning_blocks": ["Hm."],
        "text_blocks": ["Yes."],
        "blocks": [{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "Yes."}],
    }


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/parse_function_call", "tool_call_parser"),
        ("/separate_reasoning", "reasoning_parser"),
    ],
)
async def test_the_server_s_parser_is_the_default(
    client: TestClient, path: str, field: str
) -> None:
    for body in ({"text": "a"}, {"text": "a", field: "auto"}):
        answer = await post(client, path, body, 400)
        flag = f"--{field.replace('_', '-')}"
        assert answer["error"]["message"] == (
            f"{field} is missing, and the server was launched without {flag}; name one."
        )
    unknown = await post(client, path, {"text": "a", field: "nope"}, 400)
    assert f"{field} 'nope' is not supported" in unknown["error"]["message"]
    name = "qwen25" if field == "tool_call_parser" else "qwen3"
    client.app[STATE].ready(FakeLLM(**{field: name}))
    await post(client, path, {"text": "a"})
