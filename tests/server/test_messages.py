"""Anthropic's /v1/messages over a fake LLM, and by the official client."""

import json

import anthropic
import pydantic
import pytest
from aiohttp.test_utils import TestClient, TestServer
from anthropic.types import Message, RawMessageStreamEvent
from server.fake_llm import FakeLLM
from server.named_events import named_events

from jaxserve.config import ServerConfig
from jaxserve.request import FinishReason
from jaxserve.server.app import make_app
from jaxserve.server.foreign_answers import MessageObject, TokenCount

TEXT = " Paris is the"
HELLO = [{"role": "user", "content": "What is the capital of France?"}]
ASK = {"model": "m", "messages": HELLO, "max_tokens": 3}
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
EVENT = pydantic.TypeAdapter(RawMessageStreamEvent)


def usage(output: int, thinking: int = 0, prompt: int = 1) -> dict:
    return {
        "input_tokens": prompt - 1, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 1, "output_tokens": output,
        "output_tokens_details": {"thinking_tokens": thinking},
    }  # fmt: skip


async def post(client: TestClient, body: object, status: int = 200, path: str = "") -> dict:
    response = await client.post(f"/v1/messages{path}", json=body)
    answer = await response.json()
    assert response.status == status, answer
    return answer


async def message_of(client: TestClient, body: dict) -> dict:
    answer = await post(client, body)
    Message.model_validate(answer)
    MessageObject.model_validate(answer)
    assert answer.pop("id").startswith("msg_")
    return answer


async def events_of(client: TestClient, body: dict) -> list[dict]:
    response = await client.post("/v1/messages", json=body | {"stream": True})
    raw = await response.text()
    assert response.status == 200, raw
    events = named_events(raw)
    for event in events:
        if event["type"] != "error":
            EVENT.validate_python(event)
        if event["type"] == "message_start":
            MessageObject.model_validate(event["message"])
    return events


def replayed(events: list[dict]) -> list[dict]:
    """The content that the events tell, each block opened, grown and closed in turn."""
    blocks: list[dict] = []
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"] | {"json": ""})
            case "content_block_delta":
                assert event["index"] == len(blocks) - 1
                delta = event["delta"]
                kind = delta.pop("type")
                ((name, piece),) = delta.items()
                name = "json" if kind == "input_json_delta" else name
                blocks[-1][name] += piece
    for block in blocks:
        if arguments := block.pop("json"):
            block["input"] = json.loads(arguments)
    return blocks


# --- answers ---


async def test_a_message_is_answered(client: TestClient, llm: FakeLLM) -> None:
    assert await message_of(client, ASK | {"temperature": 0.25, "top_k": 5, "top_p": 0.5}) == {
        "type": "message", "role": "assistant", "model": "m",
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "max_tokens", "stop_sequence": None, "usage": usage(3),
    }  # fmt: skip
    assert llm.messages == HELLO
    params = llm.submitted[0].params
    assert (params.temperature, params.top_k, params.top_p) == (0.25, 5, 0.5)
    assert (params.max_new_tokens, llm.submitted[0].clamps) == (3, True)
    assert llm.submitted[0].rid.startswith("msg_")


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        (FinishReason("stop", matched=2), "end_turn", None),
        (FinishReason("stop", matched="END"), "stop_sequence", "END"),
        (FinishReason("length"), "model_context_window_exceeded", None),
        (FinishReason("abort", message="Aborted"), "pause_turn", None),
    ],
)
async def test_stop_reasons(
    client: TestClient, llm: FakeLLM, finish: FinishReason, reason: str, sequence: str | None
) -> None:
    llm.abort_at[2] = finish
    body = ASK | {"stop_sequences": ["END"]}
    answer = await message_of(client, body)
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)
    assert llm.submitted[0].params.stop == ("END",)
    delta = (await events_of(client, body))[-2]
    assert delta["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


async def test_events_of_a_text(client: TestClient) -> None:
    events = await events_of(client, ASK)
    start, opened, *deltas, closed, delta, stop = events
    assert start["message"].pop("id").startswith("msg_")
    assert start["message"] == {
        "type": "message", "role": "assistant", "model": "m", "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": usage(0),
    }  # fmt: skip
    text = {"type": "text", "text": ""}
    assert opened == {"type": "content_block_start", "index": 0, "content_block": text}
    assert [event["delta"] for event in deltas] == [
        {"type": "text_delta", "text": word} for word in (" Paris", " is", " the")
    ]
    assert closed == {"type": "content_block_stop", "index": 0}
    assert delta["usage"] == usage(3)
    assert stop == {"type": "message_stop"}


async def test_a_dead_engine_in_a_stream_is_an_event(client: TestClient, llm: FakeLLM) -> None:
    llm.abort_at[2] = FinishReason("abort", message="It is dead.", status_code=500)
    assert (await events_of(client, ASK))[-1] == {
        "type": "error", "error": {"type": "api_error", "message": "It is dead."}
    }  # fmt: skip
    llm.abort_at = {0: FinishReason("abort", message="Full.", status_code=503)}
    assert await post(client, ASK | {"stream": True}, 503) == {
        "type": "error", "error": {"type": "overloaded_error", "message": "Full."}
    }  # fmt: skip


async def test_tokens_are_counted(client: TestClient, llm: FakeLLM) -> None:
    body = {"model": "m", "messages": HELLO, "system": "Be brief."}
    count = await post(client, body, path="/count_tokens")
    assert TokenCount.model_validate(count).input_tokens == 2
    assert llm.was_prompt is False
    assert not llm.submitted


# --- thinking and tools ---


TOOLS = ASK | {"tools": [WEATHER], "max_tokens": 2000}


async def test_thinking_text_and_call(client: TestClient, thinker: FakeLLM) -> None:
    answer = await message_of(client, TOOLS)
    thinking, text, call = answer["content"]
    assert thinking == {"type": "thinking", "thinking": "Hm.", "signature": "jaxserve"}
    assert text["text"].strip() == "Well,"
    assert call.pop("id").startswith("call_")
    assert call == {"type": "tool_use", "name": "get_weather", "input": {"city": "Paris"}}
    assert answer["stop_reason"] == "tool_use"
    assert answer["usage"]["output_tokens_details"]["thinking_tokens"] > 0
    content = replayed(await events_of(client, TOOLS))
    content[2].pop("id")
    assert content == [thinking, text, call]
    function = {"name": "get_weather", "description": "Weather of a city"}
    function["parameters"] = WEATHER["input_schema"]
    assert thinker.tools == [{"type": "function", "function": function}]


async def test_thinking_is_left_out_where_asked(client: TestClient, thinker: FakeLLM) -> None:
    body = TOOLS | {"thinking": {"type": "adaptive", "display": "omitted"}}
    hidden = {"type": "thinking", "thinking": "", "signature": "jaxserve"}
    assert (await message_of(client, body))["content"][0] == hidden
    assert replayed(await events_of(client, body))[0] == hidden


@pytest.mark.parametrize(
    ("thinking", "enabled"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "disabled"}, False),
        ({"type": "adaptive"}, None),
    ],
)
async def test_thinking_reaches_the_template(
    client: TestClient, thinker: FakeLLM, thinking: dict, enabled: bool | None
) -> None:
    await message_of(client, TOOLS | {"thinking": thinking, "output_config": {"effort": "low"}})
    assert thinker.template_kwargs.get("enable_thinking") is enabled
    assert thinker.template_kwargs["reasoning_effort"] == "low"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
async def test_a_tool_can_be_demanded(client: TestClient, llm: FakeLLM, choice: dict) -> None:
    llm.words = ('[{"name": "get_weather", ', '"parameters": {"city": "Rome"}}]') + ("",) * 12
    choice = choice | {"disable_parallel_tool_use": True}
    answer = await message_of(client, TOOLS | {"tool_choice": choice})
    assert answer["content"][0]["input"] == {"city": "Rome"}
    assert llm.submitted[0].params.grammar.kind == "json_schema"


async def test_a_call_that_breaks_off_has_no_input(client: TestClient, llm: FakeLLM) -> None:
    llm.words = ('[{"name": "get_weather", ', '"parameters": {"city": "Ro')
    answer = await message_of(client, ASK | {"tools": [WEATHER], "tool_choice": {"type": "any"},
                                            "max_tokens": 2})  # fmt: skip
    assert answer["content"][-1]["input"] == {}
    assert answer["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("place", ["output_config", "output_format"])
async def test_a_schema_is_a_grammar(client: TestClient, llm: FakeLLM, place: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    given = {"type": "json_schema", "schema": schema}
    await message_of(
        client, ASK | {place: {"format": given} if place == "output_config" else given}
    )
    assert json.loads(llm.submitted[0].params.grammar.source) == schema


async def test_an_edit_that_keeps_everything_is_taken(client: TestClient) -> None:
    edit = {"type": "clear_thinking_20251015", "keep": "all"}
    await message_of(client, ASK | {"context_management": {"edits": [edit]}})
    body = ASK | {"context_management": {"edits": [edit | {"keep": 1}]}}
    answer = await post(client, body, 400)
    assert "`context_management` is not supported: a conv" in answer["error"]["message"]


BUDGET = ASK | {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}


@pytest.mark.parametrize("config", [ServerConfig(enable_strict_thinking=True), ServerConfig()])
async def test_a_budget_is_kept_to_where_thinking_is_strict(
    client: TestClient, thinker: FakeLLM, config: ServerConfig
) -> None:
    await message_of(client, BUDGET)
    thought = thinker.submitted[-1].params.thought
    assert (thought and thought.budget) == (1024 if config.enable_strict_thinking else None)


# --- refusals ---

REFUSED = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages must have at least one message."),
    ({"container": "c"}, "`container` is not supported: there are no hosted tools"),
    ({"mcp_servers": [{"name": "x"}]}, "`mcp_servers` is not supported"),
    ({"context_management": {"edits": [1]}}, "`context_management` is not supported"),
    ({"response_format": {"type": "text"}}, "it is output_config.format"),
    ({"stop": ["x"]}, "`stop` is not supported: in /v1/messages it is stop_sequences"),
    ({"return_token_ids": True}, "`return_token_ids` is not supported"),
    ({"n": 2}, "n must be 1 in /v1/messages, got 2."),
    ({"thinking": {"type": "enabled"}}, 'thinking of type "enabled" needs budget_tokens, at least'),
    ({"thinking": {"type": "enabled", "budget_tokens": 1}}, "budget_tokens"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        "thinking.budget_tokens (1024) must be less than max_tokens (3).",
    ),
    ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "`tools[0]` of type 'web_search_2"),
    ({"tools": [WEATHER | {"defer_loading": True}]}, "`tools[0].defer_loading` is not supported"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name must be a string, got None."),
    ({"tools": [{"name": "x"}]}, "tools[0].input_schema must be a JSON schema, an object."),
    ({"tool_choice": {"type": "tool"}}, 'tool_choice of type "tool" needs the name of a tool.'),
    ({"tool_choice": {"type": "some"}}, "tool_choice"),
    ({"tool_choice": {"type": "any"}}, "Tools cannot be empty"),
    ({"output_config": {"format": {"type": "x"}}}, "output_config.format.type must be json_schema"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema must be"),
    ({"temperature": -1}, "temperature must be a non-negative finite number, got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda x: str(x)[:40])
async def test_refusals_name_the_field(client: TestClient, change: dict, message: str) -> None:
    answer = await post(client, ASK | change, 400)
    assert message in answer["error"].pop("message")
    assert answer == {"type": "error", "error": {"type": "invalid_request_error"}}


# --- the official client ---


class Capital(pydantic.BaseModel):
    city: str


async def test_the_official_client_reads_it_all(client: TestClient, thinker: FakeLLM) -> None:
    url = str(client.make_url("/"))
    async with anthropic.AsyncAnthropic(base_url=url, api_key="None", max_retries=0) as ai:
        kwargs = {"model": "m", "messages": HELLO, "max_tokens": 100}
        answer = await ai.messages.create(**kwargs, tools=[WEATHER])
        assert answer.content[0].thinking == "Hm."
        assert answer.content[2].input == {"city": "Paris"}
        async with ai.messages.stream(**kwargs, tools=[WEATHER]) as stream:
            said = "".join([text async for text in stream.text_stream])
            final = await stream.get_final_message()
        assert said.strip() == "Well,"
        assert final.content[2].input == {"city": "Paris"}
        assert (final.stop_reason, final.usage.output_tokens) == ("tool_use", 13)
        back = [*HELLO, {"role": "assistant", "content": answer.content}]
        result = {"type": "tool_result", "tool_use_id": answer.content[2].id, "content": "Sunny"}
        back.append({"role": "user", "content": [result]})
        await ai.messages.create(model="m", messages=back, max_tokens=3, tools=[WEATHER])
        assert thinker.messages[1]["reasoning_content"] == "Hm."
        assert thinker.messages[2]["content"] == "Sunny"
        thinker.words = ('{"city": ', '"Paris"}') + ("",) * 12
        parsed = await ai.messages.parse(**kwargs, output_format=Capital)
        assert parsed.parsed_output == Capital(city="Paris")
        count = await ai.messages.count_tokens(model="m", messages=HELLO, system="Be brief.")
        assert count.input_tokens == 2
        with pytest.raises(anthropic.BadRequestError, match="needs the name of a tool"):
            await ai.messages.create(**kwargs, tool_choice={"type": "tool"})


async def test_the_key_may_come_in_anthropics_header(llm: FakeLLM) -> None:
    app = make_app(llm, ServerConfig(api_key="secret"))
    async with TestClient(TestServer(app)) as client:
        url = str(client.make_url("/"))
        async with anthropic.AsyncAnthropic(base_url=url, api_key="secret") as ai:
            await ai.messages.create(**ASK)
        async with anthropic.AsyncAnthropic(base_url=url, api_key="other") as ai:
            with pytest.raises(anthropic.AuthenticationError):
                await ai.messages.create(**ASK)
