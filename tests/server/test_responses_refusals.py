"""What /v1/responses refuses, and how it says so."""

import asyncio
import json

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM

ASK = {"model": "m", "input": "What is the capital of France?", "max_output_tokens": 3}
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}


async def post(client: TestClient, body: object, status: int) -> dict:
    response = await client.post("/v1/responses", json=body)
    answer = await response.json()
    assert response.status == status, answer
    return answer


REFUSED = [
    ({}, "input"),
    ({"input": 3}, "input"),
    ({"prompt": {"id": "x"}}, "`prompt` is not supported: there are no stored prompt templates"),
    ({"conversation": "c"}, "`conversation` is not supported"),
    ({"moderation": {"model": "x"}}, "`moderation` is not supported"),
    ({"response_format": {"type": "text"}}, "it is text.format"),
    ({"lora_path": "x"}, "`lora_path` is not supported"),
    ({"return_meta_info": True}, "`return_meta_info` is not supported: only the answers of"),
    ({"n": 2}, "n must be 1 in /v1/responses, got 2."),
    ({"truncation": "some"}, "truncation"),
    ({"text": {"verbosity": "low"}}, "verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type must be text, json_object or"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema must be a"),
    ({"reasoning": {"summary": "detailed"}}, "summary"),
    ({"include": ["file_search_call.results"]}, "`include` 'file_search_call.results' is not"),
    ({"tools": [{"type": "web_search"}]}, "`tools[0]` of type 'web_search' is not supported"),
    ({"tools": [WEATHER | {"async": True}]}, "`tools[0].async` is not supported"),
    ({"tools": [{"type": "function"}]}, "tools[0].name must be a string, got None."),
    ({"tool_choice": "some"}, "tool_choice must be auto, none, required or an object"),
    ({"tool_choice": {"type": "mcp"}}, "`tool_choice` of type 'mcp' is not supported"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.tools must be a list"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "tools": [{"name": "x"}]}},
        "Tool 'x' not found in tools list.",
    ),
    (
        {"tool_choice": {"type": "allowed_tools", "tools": [], "mode": "x"}},
        "tool_choice.mode must be auto or required, got 'x'.",
    ),
    ({"tool_choice": "required"}, "Tools cannot be empty if tool choice is set to required."),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 513}, "max_output_tokens is too large: 513. This model supports at"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata has 17 pairs; at most 16 are"),
    ({"metadata": {"a": "x" * 513}}, "metadata 'a': keys have at most 64 characters"),
    ({"stream_options": {"include_obfuscation": True}}, "include_obfuscation` is not supported"),
    ({"background": True}, "`background` is not supported without a store"),
    ({"previous_response_id": "resp_1"}, "Previous response with id 'resp_1' not found. Responses"),
    ({"temperature": -1}, "temperature must be a non-negative finite number, got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda x: str(x)[:40])
async def test_refusals_name_the_field(client: TestClient, change: dict, message: str) -> None:
    body = {"model": "m"} if change == {} else ASK | change
    error = (await post(client, body, 400))["error"]
    assert message in error.pop("message")
    assert error == {"type": "invalid_request_error", "param": None, "code": 400}


async def test_the_media_type_must_be_json(client: TestClient) -> None:
    response = await client.post("/v1/responses", data=json.dumps(ASK))
    assert response.status == 400
    assert "Only 'application/json' is allowed" in (await response.json())["error"]["message"]


async def test_a_gone_client_aborts(client: TestClient, llm: FakeLLM) -> None:
    llm.wait = asyncio.Event().wait
    request = asyncio.create_task(client.post("/v1/responses", json=ASK))
    async with asyncio.timeout(5):
        while not llm.open:
            await asyncio.sleep(0)
        request.cancel()
        while llm.open:
            await asyncio.sleep(0)
    assert llm.closed[0].startswith("resp_")
