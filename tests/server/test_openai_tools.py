"""Tools of /v1/chat/completions: shown to the model, called by it, forced, refused."""

import json

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM
from server.openai_calls import CHAT, chat, chat_deltas, post, said

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": None,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
CALL = ("Well.", "<tool", '_call>\n{"name": "weather", "argu', 'ments": {"city"', ': "Rome"}}',
        "\n</tool_call>")  # fmt: skip
TWO_CALLS = (
    '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>\n',
    '<tool_call>{"name": "time", "arguments": {}}</tool_call>',
)
ARRAY = ('[{"name": "wea', 'ther", "parameters": {"city": "Rome"}}', ', {"name": "time", ',
         '"parameters": {}}]')  # fmt: skip
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM(tool_call_parser="qwen25")


def functions(calls: list[dict]) -> list[tuple[str, object]]:
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]


async def test_a_call_is_taken_out_of_the_text(client: TestClient, llm: FakeLLM) -> None:
    llm.words = said(*CALL)
    choice = await chat(client, tools=[WEATHER, TIME])
    message = choice["message"]
    assert message["content"] == "Well."
    (call,) = message["tool_calls"]
    assert set(call) == {"id", "index", "type", "function"}
    assert (call["index"], call["type"], len(call["id"])) == (0, "function", len("call_") + 24)
    assert functions([call]) == [("weather", {"city": "Rome"})]
    assert (choice["finish_reason"], choice["matched_stop"]) == ("tool_calls", None)
    assert llm.tools == [WEATHER, TIME]
    assert llm.submitted[0].params.grammar is None
    assert not llm.submitted[0].params.skip_special_tokens


async def test_a_call_is_streamed_in_pieces(client: TestClient, llm: FakeLLM) -> None:
    llm.words = said(*CALL)
    *deltas, finish = await chat_deltas(client, tools=[WEATHER])
    assert finish == {"finish_reason": "tool_calls"}
    assert deltas[0] == {"content": "Well.", "reasoning_content": None}
    first, *rest = [delta["tool_calls"][0] for delta in deltas[1:]]
    assert first == {
        "index": 0,
        "id": first["id"],
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    assert {(piece["id"], piece["function"]["name"]) for piece in rest} == {(None, None)}
    assert len(rest) > 1
    arguments = "".join(piece["function"]["arguments"] for piece in rest)
    assert json.loads(arguments) == {"city": "Rome"}


async def test_a_text_without_calls_stays_one(client: TestClient, llm: FakeLLM) -> None:
    llm.words = said("Sunny", ", I", " think.")
    choice = await chat(client, tools=[WEATHER])
    assert choice["message"]["content"] == "Sunny, I think."
    assert choice["message"]["tool_calls"] is None
    assert choice["finish_reason"] == "stop"


async def test_parallel_calls_and_only_one(client: TestClient, llm: FakeLLM) -> None:
    llm.words = said(*TWO_CALLS)
    calls = (await chat(client, tools=[WEATHER, TIME]))["message"]["tool_calls"]
    assert functions(calls) == [("weather", {"city": "Rome"}), ("time", {})]
    assert [call["index"] for call in calls] == [0, 1]
    one = await chat(client, tools=[WEATHER, TIME], parallel_tool_calls=False)
    assert functions(one["message"]["tool_calls"]) == [("weather", {"city": "Rome"})]
    assert one["message"]["content"] is None
    deltas = await chat_deltas(client, tools=[WEATHER, TIME], parallel_tool_calls=False)
    assert {c["index"] for d in deltas for c in d.get("tool_calls", ())} == {0}


async def test_forced_calls_are_a_json_array(client: TestClient, llm: FakeLLM) -> None:
    llm.words = said(*ARRAY)
    fields = {"tools": [WEATHER, TIME], "tool_choice": "required"}
    message = (await chat(client, **fields))["message"]
    assert functions(message["tool_calls"]) == [("weather", {"city": "Rome"}), ("time", {})]
    assert message["content"] is None
    grammar = llm.submitted[0].params.grammar
    assert grammar.kind == "json_schema"
    schema = json.loads(grammar.source)
    assert schema["type"] == "array"
    assert "maxItems" not in schema
    deltas = await chat_deltas(client, **fields)
    names = [c["function"]["name"] for d in deltas for c in d.get("tool_calls", ())]
    assert [name for name in names if name] == ["weather", "time"]


async def test_a_named_tool_is_called_once(client: TestClient, llm: FakeLLM) -> None:
    llm.words = said('[{"name": "weather", "parameters": {}}]')
    message = (await chat(client, tools=[WEATHER, TIME], tool_choice=NAMED))["message"]
    assert functions(message["tool_calls"]) == [("weather", {})]
    schema = json.loads(llm.submitted[0].params.grammar.source)
    assert schema["maxItems"] == 1
    assert schema["items"]["properties"]["name"]["enum"] == ["weather"]
    assert llm.tools == [WEATHER]  # the others are not shown, as in SGLang


def allowed(mode: str, *names: str) -> dict:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


async def test_allowed_tools_leave_some(client: TestClient, llm: FakeLLM) -> None:
    llm.words = said(*TWO_CALLS)
    fields = {"tools": [WEATHER, TIME]}
    choice = await chat(client, **fields, tool_choice=allowed("auto", "time"))
    assert llm.tools == [TIME]
    assert functions(choice["message"]["tool_calls"]) == [("time", {})]
    assert llm.submitted[-1].params.grammar is None
    await chat(client, **fields, tool_choice=allowed("required", "time", "weather"))
    assert llm.tools == [WEATHER, TIME]
    assert json.loads(llm.submitted[-1].params.grammar.source)["type"] == "array"
    await chat(client, **fields, tool_choice=allowed("auto"))
    assert llm.tools is None


async def test_a_response_format_or_a_call(client: TestClient, llm: FakeLLM) -> None:
    fields = {"tools": [WEATHER], "response_format": {"type": "json_object"}}
    llm.words = said('{"a": 1}')
    assert (await chat(client, **fields))["message"]["content"] == '{"a": 1}'
    grammar = llm.submitted[0].params.grammar
    assert grammar.kind == "structural_tag"
    text, calls = json.loads(grammar.source)["format"]["elements"]
    assert text == {"type": "json_schema", "json_schema": {"type": "object"}}
    assert [tag["begin"][:11] for tag in calls["tags"]] == ["<tool_call>"]
    llm.words = said(*TWO_CALLS)
    assert (await chat(client, **fields))["finish_reason"] == "tool_calls"


async def test_strict_tools_are_held_to_their_schema(client: TestClient, llm: FakeLLM) -> None:
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    await chat(client, tools=[strict])
    assert llm.submitted[0].params.grammar.kind == "structural_tag"


async def test_no_tools_no_grammar(client: TestClient, llm: FakeLLM) -> None:
    for fields in ({"tools": [WEATHER], "tool_choice": "none"}, {"tools": []}, {"tools": None}):
        choice = await chat(client, **fields)
        assert choice["message"]["tool_calls"] is None
        assert llm.tools is None
        assert llm.submitted[-1].params.grammar is None
        assert llm.submitted[-1].params.skip_special_tokens


async def test_history_of_calls_reaches_the_template(client: TestClient, llm: FakeLLM) -> None:
    call = {
        "id": "c1", "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
    }  # fmt: skip
    history = [
        {"role": "user", "content": "hi", "name": None},
        {"role": "ASSISTANT", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    await chat(client, messages=history, tools=[WEATHER])
    assert llm.messages == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ]


REFUSED = [
    ({"tool_choice": "required"}, "Tools cannot be empty if tool choice is set to required."),
    (
        {"tool_choice": {"type": "function"}},
        "Tools cannot be empty if tool choice is set to a specific tool.",
    ),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "Tool 'x' not found in tools list.",
    ),
    (
        {"tools": [WEATHER], "tool_choice": "always"},
        'tool_choice must be one of auto, none, required or {"type": "function", "function": '
        "{\"name\": …}}, got 'always'.",
    ),
    (
        {"tools": [WEATHER], "tool_choice": allowed("auto", "x")},
        "Tool 'x' not found in tools list.",
    ),
    (
        {"tools": [WEATHER], "tool_choice": allowed("required")},
        "Tools cannot be empty if tool choice is set to required.",
    ),
    (
        {"tools": [WEATHER], "tool_choice": allowed("never", "weather")},
        'tool_choice of type allowed_tools takes {"mode": "auto" or "required", "tools": '
        '[{"type": "function", "function": {"name": …}}]} in `allowed_tools`.',
    ),
    (
        {"tools": [{"type": "function", "function": {"name": []}}], "tool_choice": NAMED},
        "Tool 'weather' not found in tools list.",
    ),
    (
        {"tools": [{"type": "web_search"}]},
        "`tools[0]` of type 'web_search' is not supported: tools are of type 'function'.",
    ),
    (
        {"tools": [{"type": "function"}]},
        'tools[0].function must be an object such as {"name": …, "parameters": {…}}.',
    ),
    (
        {"tools": [WEATHER, {"type": "function", "function": {"name": "f", "parameters": [1]}}]},
        "Tool 1 function has invalid 'parameters' schema: parameters must be an object, got list.",
    ),
    (
        {"tools": [WEATHER], "tool_choice": "required", "regex": "a+"},
        "a regex that the output must match cannot be combined with these tools: leave one of them "
        'away, or send tool_choice "none".',
    ),
    (
        {"tools": [WEATHER], "json_schema": "{"},
        "json_schema is not JSON: unexpected end of data: line 1 column 2 (char 1)",
    ),
    (
        {"tools": [WEATHER], "structural_tag": {"format": {"type": "any_text"}}},
        "a structural_tag that the output must match cannot be combined with these tools: leave "
        'one of them away, or send tool_choice "none".',
    ),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
async def test_refusals(client: TestClient, fields: dict, message: str) -> None:
    for streamed in (False, True):
        body = CHAT | fields | {"stream": streamed}
        answer = await post(client, "chat/completions", body, 400)
        assert answer["message"] == message


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"type": "text"}, "parameters.type must be one of array, boolean, integer, null, number, "
         "object, string, got 'text'."),
        ({"properties": []}, "parameters.properties must be an object, got list."),
        ({"properties": {"a": {"type": ["string", 3]}}}, "parameters.properties.a.type must be one "
         "of array, boolean, integer, null, number, object, string, got 3."),
    ],
)  # fmt: skip
async def test_schemas_that_are_none(client: TestClient, parameters: dict, problem: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    answer = await post(client, "chat/completions", CHAT | {"tools": [tool]}, 400)
    assert answer["message"] == f"Tool 0 function has invalid 'parameters' schema: {problem}"


class TestIdsOfKimi:
    """Kimi K2 was trained on ids that count the calls of the conversation."""

    @pytest.fixture
    def llm(self) -> FakeLLM:
        llm = FakeLLM(tool_call_parser="kimi_k2")
        llm.words = said(*ARRAY)
        return llm

    async def test_they_go_on_counting(self, client: TestClient) -> None:
        made = {"type": "function", "id": "x", "function": {"name": "time", "arguments": "{}"}}
        history = [*CHAT["messages"], {"role": "assistant", "tool_calls": [made, made]},
                   {"role": "tool", "content": "12:00"}]  # fmt: skip
        choice = await chat(client, messages=history, tools=[WEATHER, TIME], tool_choice="required")
        ids = [call["id"] for call in choice["message"]["tool_calls"]]
        assert ids == ["functions.weather:2", "functions.time:3"]


class TestWithoutParser:
    """A server that was started without --tool-call-parser."""

    @pytest.fixture
    def llm(self) -> FakeLLM:
        return FakeLLM()

    async def test_auto_is_refused(self, client: TestClient) -> None:
        answer = await post(client, "chat/completions", CHAT | {"tools": [WEATHER]}, 400)
        assert answer["message"] == (
            '`tools` with tool_choice "auto" is not supported by this server: it does not know how '
            "the model writes calls. Start it with --tool-call-parser NAME (auto, if the chat "
            'template tells), or send tool_choice "required" or "none".'
        )

    async def test_forced_calls_work(self, client: TestClient, llm: FakeLLM) -> None:
        llm.words = said(*ARRAY)
        choice = await chat(client, tools=[WEATHER, TIME], tool_choice="required")
        assert len(choice["message"]["tool_calls"]) == 2
        assert choice["finish_reason"] == "tool_calls"
