"""OpenAI's client on /v1/responses and Anthropic's on /v1/messages, on the demo model."""

import anthropic
import openai
import pydantic
import pytest
from e2e.live_server import LiveServer

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
HELLO = [{"role": "user", "content": QUESTION}]
CITY = {
    "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
GREEDY = {"extra_body": {"temperature": 0}}


class Meeting(pydantic.BaseModel):
    name: str
    day: int


TELL = "Alice comes on day 5. Who comes when?"


@pytest.fixture(scope="module")
def ai(demo_server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="None", max_retries=0)


@pytest.fixture(scope="module")
def claude(demo_server: LiveServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=demo_server.url, api_key="None", max_retries=0)


def test_responses_say_the_same_whole_and_streamed(ai: openai.OpenAI) -> None:
    asked = {"model": "m", "input": QUESTION, "temperature": 0, "max_output_tokens": 20}
    whole = ai.responses.create(**asked)
    assert (whole.output_text, whole.status) == (ANSWER, "completed")
    with ai.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert final.output_text == ANSWER
    assert final.usage.output_tokens == whole.usage.output_tokens
    # What was computed for the first is not computed again.
    assert final.usage.input_tokens_details.cached_tokens > 0
    chat = ai.chat.completions.create(model="m", messages=HELLO, temperature=0, max_tokens=20)
    assert chat.choices[0].message.content == ANSWER


def test_responses_call_tools(ai: openai.OpenAI) -> None:
    tool = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
    asked = {"model": "m", "tools": [tool], "temperature": 0, "max_output_tokens": 60}
    question = [{"role": "user", "content": "How is the weather in Rome?"}]
    choice = {"type": "function", "name": "weather"}
    first = ai.responses.create(input=question, tool_choice=choice, **asked)
    call = first.output[0]
    assert (call.type, call.name, call.arguments.count('"city"')) == ("function_call", "weather", 1)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "It rains."}
    items = [*question, call.model_dump(exclude_none=True), result]
    assert ai.responses.create(input=items, tool_choice="none", **asked).output_text


def test_responses_are_parsed(ai: openai.OpenAI) -> None:
    asked = {"model": "m", "input": TELL, "text_format": Meeting, "temperature": 0}
    parsed = ai.responses.parse(**asked, max_output_tokens=100).output_parsed
    assert isinstance(parsed, Meeting)
    with ai.responses.stream(**asked, max_output_tokens=100) as stream:
        assert stream.get_final_response().output_parsed == parsed


def test_messages_say_the_same_whole_and_streamed(claude: anthropic.Anthropic) -> None:
    asked = {"model": "m", "messages": HELLO, "max_tokens": 20, **GREEDY}
    whole = claude.messages.create(**asked)
    assert (whole.content[0].text, whole.stop_reason) == (ANSWER, "end_turn")
    with claude.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == ANSWER
        usage = stream.get_final_message().usage
    count = claude.messages.count_tokens(model="m", messages=HELLO).input_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens == count
    assert usage.cache_read_input_tokens > 0


def test_messages_stop_where_they_should(claude: anthropic.Anthropic) -> None:
    asked = {"model": "m", "messages": HELLO, **GREEDY}
    stopped = claude.messages.create(max_tokens=20, stop_sequences=["France"], **asked)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "France")
    assert claude.messages.create(max_tokens=2, **asked).stop_reason == "max_tokens"
    long = [{"role": "user", "content": "Go on. " * 130}]
    story = claude.messages.create(
        model="m", messages=long, max_tokens=10**4,
        extra_body={"temperature": 0, "ignore_eos": True},
    )  # fmt: skip
    assert story.stop_reason == "model_context_window_exceeded"
    begun = [*HELLO, {"role": "assistant", "content": "The capital of"}]
    went_on = claude.messages.create(model="m", messages=begun, max_tokens=20, **GREEDY)
    assert went_on.content[0].text == " France is Paris."


def test_messages_call_tools(claude: anthropic.Anthropic) -> None:
    question = {"role": "user", "content": "How is the weather in Rome?"}
    asked = {
        "model": "m", "max_tokens": 60, "tools": [{"name": "weather", "input_schema": CITY}],
        **GREEDY,
    }  # fmt: skip
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    first = claude.messages.create(messages=[question], tool_choice=choice, **asked)
    call = first.content[0]
    assert first.stop_reason == "tool_use"
    assert call.input["city"] in ("Rome", "Oslo")
    with claude.messages.stream(messages=[question], tool_choice=choice, **asked) as stream:
        assert stream.get_final_message().content[0].input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "It rains."}
    talk = [
        question,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    assert claude.messages.create(messages=talk, tool_choice={"type": "none"}, **asked).content


def test_messages_are_parsed(claude: anthropic.Anthropic) -> None:
    tell = [{"role": "user", "content": TELL}]
    asked = {"model": "m", "messages": tell, "max_tokens": 100, **GREEDY}
    assert isinstance(claude.messages.parse(output_format=Meeting, **asked).parsed_output, Meeting)
