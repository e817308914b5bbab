"""The official client's helpers, over a fake LLM: parsed answers, tools, streams, both flavours."""

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from aiohttp.test_utils import TestClient
from pydantic import BaseModel
from server.fake_llm import FakeLLM
from server.openai_calls import HELLO, said


class Person(BaseModel):
    name: str
    age: int


class Weather(BaseModel):
    """The weather of a city."""

    city: str


PERSON = said('{"name": ', '"Ada"', ', "age"', ": 36}")
CALLS = said('[{"name": "Weather", ', '"parameters": {"city"', ': "Rome"}}, {"name": "Weather",',
             ' "parameters": {"city": "Bonn"}}]')  # fmt: skip
WEATHER = openai.pydantic_function_tool(Weather)
QUESTION = {"model": "m", "messages": HELLO}


@pytest.fixture
def llm() -> FakeLLM:
    llm = FakeLLM(reasoning_parser="qwen3", tool_call_parser="qwen25")
    llm.special_tokens = {"</think>": 2}
    return llm


@pytest.fixture
async def ai(client: TestClient) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="None") as ai:
        yield ai


async def test_parse_a_model(ai: openai.AsyncOpenAI, llm: FakeLLM) -> None:
    llm.words = PERSON
    answer = await ai.chat.completions.parse(**QUESTION, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    assert '"additionalProperties":false' in llm.submitted[0].params.grammar.source


async def test_stream_a_model(ai: openai.AsyncOpenAI, llm: FakeLLM) -> None:
    llm.words = PERSON
    async with ai.chat.completions.stream(**QUESTION, response_format=Person) as stream:
        kinds = [event.type async for event in stream]
        answer = await stream.get_final_completion()
    assert kinds.count("content.delta") > 1
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)


async def test_parse_tool_calls(ai: openai.AsyncOpenAI, llm: FakeLLM) -> None:
    llm.words = CALLS
    answer = await ai.chat.completions.parse(**QUESTION, tools=[WEATHER], tool_choice="required")
    calls = answer.choices[0].message.tool_calls
    assert [call.function.parsed_arguments for call in calls] == [
        Weather(city="Rome"), Weather(city="Bonn"),
    ]  # fmt: skip
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_stream_tool_calls(ai: openai.AsyncOpenAI, llm: FakeLLM) -> None:
    llm.words = said("Well.", '<tool_call>{"name": "Weather", "arguments": ', '{"city": "Rome"}}',
                     "</tool_call>")  # fmt: skip
    async with ai.chat.completions.stream(**QUESTION, tools=[WEATHER]) as stream:
        done = [e async for e in stream if e.type == "tool_calls.function.arguments.done"]
        answer = await stream.get_final_completion()
    assert [event.parsed_arguments for event in done] == [Weather(city="Rome")]
    message = answer.choices[0].message
    assert message.content == "Well."
    assert message.tool_calls[0].function.parsed_arguments == Weather(city="Rome")


async def test_reasoning(ai: openai.AsyncOpenAI, llm: FakeLLM) -> None:
    llm.words = said("<think>", "hm", "</think>", "42")
    answer = await ai.chat.completions.create(
        **QUESTION,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}, "separate_reasoning": True},
    )
    message = answer.choices[0].message
    assert (message.reasoning_content, message.content) == ("hm", "42")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3
    reasoning = content = ""
    async for chunk in await ai.chat.completions.create(**QUESTION, stream=True):
        reasoning += chunk.choices[0].delta.reasoning_content or ""
        content += chunk.choices[0].delta.content or ""
    assert (reasoning, content) == ("hm", "42")


async def test_the_blocking_client(client: TestClient, llm: FakeLLM) -> None:
    llm.words = PERSON
    base_url = str(client.make_url("/v1"))

    def ask() -> tuple[Person, str, str]:
        with openai.OpenAI(base_url=base_url, api_key="None") as ai:
            parsed = ai.chat.completions.parse(**QUESTION, response_format=Person)
            with ai.chat.completions.stream(**QUESTION) as stream:
                text = "".join(e.delta for e in stream if e.type == "content.delta")
            chunks = ai.completions.create(model="m", prompt="a", stream=True, max_tokens=4)
            return (
                parsed.choices[0].message.parsed,
                text,
                "".join(chunk.choices[0].text for chunk in chunks),
            )

    person, text, completion = await asyncio.to_thread(ask)
    assert person == Person(name="Ada", age=36)
    assert text == completion == "".join(PERSON)


async def test_a_cut_answer_is_no_model(ai: openai.AsyncOpenAI, llm: FakeLLM) -> None:
    llm.words = PERSON
    with pytest.raises(openai.LengthFinishReasonError):
        await ai.chat.completions.parse(**QUESTION, response_format=Person, max_tokens=2)
