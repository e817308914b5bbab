"""/v1/responses over a fake LLM: whole answers, events, and what both are checked against."""

import json

import openai
import pydantic
import pytest
from aiohttp.test_utils import TestClient
from openai.types.responses import Response, ResponseStreamEvent
from server.fake_llm import FakeLLM
from server.named_events import named_events

from jaxserve.request import FinishReason
from jaxserve.server.foreign_answers import InputTokenCount, ResponseObject

TEXT = " Paris is the"
ASK = {"model": "m", "input": "What is the capital of France?", "max_output_tokens": 3}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
EVENT = pydantic.TypeAdapter(ResponseStreamEvent)


def checked(response: dict) -> dict:
    """``response`` if OpenAI's own type takes it, and ours with nothing to spare."""
    Response.model_validate(response)
    ResponseObject.model_validate(response)
    return response


async def post(client: TestClient, body: object, status: int = 200, path: str = "") -> dict:
    response = await client.post(f"/v1/responses{path}", json=body)
    answer = await response.json()
    assert response.status == status, answer
    return answer


async def events_of(client: TestClient, body: dict) -> list[dict]:
    """The events of a streamed response, each checked against OpenAI's type of that name."""
    response = await client.post("/v1/responses", json=body | {"stream": True})
    raw = await response.text()
    assert response.status == 200, raw
    assert response.headers["Content-Type"].startswith("text/event-stream")
    events = named_events(raw)
    for event in events:
        assert type(EVENT.validate_python(event)).model_fields["type"].annotation
        if "response" in event:
            checked(event["response"])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def names(events: list[dict]) -> list[str]:
    """Event types without their prefix, runs of deltas as one."""
    types = [event["type"].removeprefix("response.") for event in events]
    return [t for i, t in enumerate(types) if not (t.endswith("delta") and t in types[i - 1 : i])]


def without_ids(value: object) -> object:
    """``value`` with all ids and times replaced by their type or prefix."""
    if isinstance(value, list):
        return [without_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        k: str(v)[: str(v).find("_") + 1] if k in ("id", "item_id") else without_ids(v)
        for k, v in value.items()
        if k not in ("created_at", "completed_at", "sequence_number")
    }


# --- whole answers ---


async def test_a_string_is_answered(client: TestClient, llm: FakeLLM) -> None:
    answer = checked(await post(client, ASK | {"max_output_tokens": 100}))
    assert answer["completed_at"] >= answer["created_at"]
    text = "".join((llm.words * 2)[:12])
    assert without_ids(answer) == {
        "id": "resp_", "object": "response", "status": "completed", "background": False,
        "error": None, "incomplete_details": None, "instructions": None,
        "max_output_tokens": 100, "max_tool_calls": None, "metadata": {}, "model": "m",
        "output": [
            {
                "id": "msg_", "type": "message", "status": "completed", "role": "assistant",
                "content": [
                    {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
                ],
            }
        ],
        "parallel_tool_calls": True, "previous_response_id": None, "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None}, "safety_identifier": None,
        "service_tier": "default", "store": False, "temperature": 0.7,
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "tool_choice": "auto",
        "tools": [], "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled",
        "usage": {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
            "output_tokens": 13, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 14,
        },
        "user": None,
    }  # fmt: skip
    assert llm.messages == [{"role": "user", "content": ASK["input"]}]


async def test_fields_come_back_and_arrive(client: TestClient, llm: FakeLLM) -> None:
    given = {
        "temperature": 0.25, "top_p": 0.5, "metadata": {"a": "b"}, "instructions": "Be brief.",
        "user": "u", "safety_identifier": "s", "prompt_cache_key": "p",
        "reasoning": {"effort": "low", "summary": "auto"}, "max_tool_calls": 2,
        "parallel_tool_calls": False,
    }  # fmt: skip
    extras = {"top_k": 5, "seed": 7, "stop": ["X"], "min_p": 0.1, "frequency_penalty": 0.5}
    answer = checked(await post(client, ASK | given | extras | {"store": None, "stream": None}))
    assert {k: answer[k] for k in given} == given | {
        "reasoning": {"effort": "low", "summary": None}
    }
    params = llm.submitted[0].params
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.25, 0.5, 5, 7)
    assert (params.stop, params.min_p, params.frequency_penalty) == (("X",), 0.1, 0.5)
    assert params.max_new_tokens == 3
    assert llm.template_kwargs["reasoning_effort"] == "low"
    assert llm.messages[0] == {"role": "system", "content": "Be brief."}
    assert llm.submitted[0].rid == answer["id"]


async def test_the_limit_makes_it_incomplete(client: TestClient) -> None:
    answer = checked(await post(client, ASK))
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"
    assert answer["output"][0]["content"][0]["text"] == TEXT


@pytest.mark.parametrize(
    "asked", [{"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}]
)
async def test_logprobs(client: TestClient, asked: dict) -> None:
    answer = checked(await post(client, ASK | asked))
    logprobs = answer["output"][0]["content"][0]["logprobs"]
    assert [item["token"] for item in logprobs] == [" Paris", " is", " the"]
    assert {len(item["top_logprobs"]) for item in logprobs} == {asked.get("top_logprobs", 0)}
    events = await events_of(client, ASK | asked)
    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    assert [item for delta in deltas for item in delta["logprobs"]] == logprobs
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == logprobs


async def test_an_abort_is_a_cancellation(client: TestClient, llm: FakeLLM) -> None:
    llm.abort_at[2] = FinishReason("abort", message="Aborted")
    answer = checked(await post(client, ASK))
    assert (answer["status"], answer["output"][0]["status"]) == ("cancelled", "incomplete")
    events = await events_of(client, ASK)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["status"] == "cancelled"


async def test_an_empty_answer_is_an_empty_text(client: TestClient, llm: FakeLLM) -> None:
    llm.abort_at[0] = FinishReason("stop", matched=2)
    answer = checked(await post(client, ASK))
    assert answer["output"][0]["content"][0]["text"] == ""
    assert names(await events_of(client, ASK))[2:6] == [
        "output_item.added", "content_part.added", "output_text.done", "content_part.done",
    ]  # fmt: skip


async def test_input_tokens_are_counted(client: TestClient) -> None:
    body = ASK | {"instructions": "Be brief."}
    answer = await post(client, body, path="/input_tokens")
    assert answer == {"object": "response.input_tokens", "input_tokens": 2}
    InputTokenCount.model_validate(answer)


async def test_model_defaults_are_between_the_request_and_ours(
    client: TestClient, llm: FakeLLM
) -> None:
    llm.info.generation_defaults.update(temperature=0.3, top_p=0.9)
    answer = await post(client, ASK)
    assert (answer["temperature"], answer["top_p"]) == (0.3, 0.9)
    assert llm.submitted[0].params.temperature == 0.3


# --- events ---


async def test_events_of_a_text(client: TestClient) -> None:
    events = await events_of(client, ASK)
    assert names(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    by_name = {event["type"].removeprefix("response."): without_ids(event) for event in events}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    message = {"id": "msg_", "type": "message", "role": "assistant"}
    at = {"item_id": "msg_", "output_index": 0, "content_index": 0}
    assert by_name["created"]["response"]["status"] == "in_progress"
    assert by_name["created"]["response"] == by_name["in_progress"]["response"]
    assert by_name["output_item.added"]["item"] == message | {
        "status": "in_progress",
        "content": [],
    }
    assert by_name["content_part.added"] == {
        "type": "response.content_part.added", **at, "part": part,
    }  # fmt: skip
    assert by_name["output_text.delta"] == {
        "type": "response.output_text.delta", **at, "delta": " the", "logprobs": [],
    }  # fmt: skip
    assert by_name["output_text.done"] == {
        "type": "response.output_text.done", **at, "text": TEXT, "logprobs": [],
    }  # fmt: skip
    assert by_name["content_part.done"]["part"] == part | {"text": TEXT}
    done = {"status": "incomplete", "content": [part | {"text": TEXT}]}
    assert by_name["output_item.done"]["item"] == message | done
    whole = without_ids(await post(client, ASK))
    assert by_name["incomplete"]["response"] == whole
    assert len({event.get("item_id", event.get("item", {}).get("id")) for event in events}) == 2


async def test_a_dead_engine_in_a_stream_is_a_failure(client: TestClient, llm: FakeLLM) -> None:
    llm.abort_at[2] = FinishReason("abort", message="It is dead.", status_code=500)
    events = await events_of(client, ASK)
    assert names(events)[-2:] == ["output_text.delta", "failed"]
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "It is dead."}


async def test_a_dead_engine_before_the_stream_is_a_status(
    client: TestClient, llm: FakeLLM
) -> None:
    llm.abort_at[0] = FinishReason("abort", message="It is dead.", status_code=500)
    answer = await post(client, ASK | {"stream": True}, 500)
    assert answer == {
        "error": {"message": "It is dead.", "type": "server_error", "param": None, "code": 500}
    }


# --- reasoning and tools ---


TOOLS = ASK | {"tools": [WEATHER], "max_output_tokens": 100}


async def test_reasoning_text_and_call(client: TestClient, thinker: FakeLLM) -> None:
    answer = checked(await post(client, TOOLS))
    reasoning, message, call = without_ids(answer["output"])
    assert reasoning == {
        "id": "rs_", "type": "reasoning", "status": "completed", "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}], "encrypted_content": None,
    }  # fmt: skip
    assert message["content"][0]["text"].strip() == "Well,"
    assert call.pop("call_id").startswith("call_")
    assert call == {
        "id": "fc_", "type": "function_call", "status": "completed", "name": "get_weather",
        "arguments": '{"city": "Paris"}',
    }  # fmt: skip
    assert answer["status"] == "completed"
    assert answer["tools"] == [WEATHER]
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    function = {k: WEATHER[k] for k in ("name", "description", "parameters")}
    assert thinker.tools == [{"type": "function", "function": function}]


async def test_events_of_reasoning_text_and_call(client: TestClient, thinker: FakeLLM) -> None:
    events = await events_of(client, TOOLS)
    assert names(events) == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]  # fmt: skip
    items = [e for e in events if e["type"] == "response.output_item.added"]
    assert [e["output_index"] for e in items] == [0, 1, 2]
    assert items[2]["item"]["arguments"] == ""
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    pieces = [e["delta"] for e in events if e["type"].endswith("arguments.delta")]
    assert "".join(pieces) == done[2]["arguments"]


async def test_encrypted_reasoning_is_read_back(client: TestClient, thinker: FakeLLM) -> None:
    answer = await post(client, TOOLS | {"include": ["reasoning.encrypted_content"]})
    secret = answer["output"][0]["encrypted_content"]
    items = [
        {"role": "user", "content": "Hi"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": secret},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "And?"},
    ]
    await post(client, ASK | {"input": items})
    assert thinker.messages[1]["reasoning_content"] == "Hm."


async def test_a_required_call_needs_no_parser(client: TestClient, llm: FakeLLM) -> None:
    llm.words = ('[{"name": "get_weather", ', '"parameters": {"city": "Rome"}}]') + ("",) * 12
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        answer = checked(await post(client, TOOLS | {"tool_choice": choice}))
        (call,) = answer["output"]
        assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Rome"})
        assert answer["tool_choice"] == choice
        assert llm.submitted[-1].params.grammar.kind == "json_schema"


async def test_allowed_tools_leave_some(client: TestClient, thinker: FakeLLM) -> None:
    other = WEATHER | {"name": "other"}
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "other"}]}
    answer = await post(client, TOOLS | {"tools": [WEATHER, other], "tool_choice": allowed})
    checked(answer)
    assert [tool["function"]["name"] for tool in thinker.tools] == ["other"]


@pytest.mark.parametrize("kind", ["json_schema", "json_object"])
async def test_formats_become_grammars(client: TestClient, llm: FakeLLM, kind: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    text_format = {"type": kind}
    if kind == "json_schema":
        text_format |= {"name": "thing", "schema": schema, "strict": True}
    answer = checked(await post(client, ASK | {"text": {"format": text_format, "verbosity": None}}))
    assert answer["text"]["format"] == text_format
    grammar = llm.submitted[0].params.grammar
    assert grammar.kind == "json_schema"
    assert json.loads(grammar.source) == (schema if kind == "json_schema" else {"type": "object"})


# --- the official client ---


class Capital(pydantic.BaseModel):
    city: str


async def test_the_official_client_reads_it_all(client: TestClient, thinker: FakeLLM) -> None:
    base_url = str(client.make_url("/v1"))
    async with openai.AsyncOpenAI(base_url=base_url, api_key="None") as ai:
        answer = await ai.responses.create(model="m", input="Hi", tools=[WEATHER])
        assert answer.output_text.strip() == "Well,"
        assert answer.output[2].name == "get_weather"
        async with ai.responses.stream(model="m", input="Hi", tools=[WEATHER]) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert final.output[0].content[0].text == "Hm."
        assert final.output[2].arguments == '{"city": "Paris"}'
        thinker.words = ('{"city": ', '"Paris"}') + ("",) * 12
        parsed = await ai.responses.parse(model="m", input="Hi", text_format=Capital)
        assert parsed.output_parsed == Capital(city="Paris")
        async with ai.responses.stream(model="m", input="Hi", text_format=Capital) as stream:
            assert (await stream.get_final_response()).output_parsed == Capital(city="Paris")
        count = await ai.responses.input_tokens.count(model="m", input="Hi")
        assert count.input_tokens == 1
        with pytest.raises(openai.BadRequestError, match="of type 'web_search' is not supported"):
            await ai.responses.create(model="m", input="Hi", tools=[{"type": "web_search"}])
        with pytest.raises(openai.NotFoundError, match="'resp_1' not found. Responses are stored"):
            await ai.responses.retrieve("resp_1")
