"""LangChain's ChatOpenAI against a server: ``langchain_chat.py URL``."""

import asyncio
import sys
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


@tool
def get_weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """Get the weather of a city."""
    return f"18 degrees {unit} in {city}"


class City(BaseModel):
    """A city and its country."""

    name: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]


def check_tools(model: ChatOpenAI) -> None:
    question = HumanMessage("What is the weather in Paris?")
    called = model.bind_tools([get_weather], tool_choice="required").invoke([question])
    assert called.tool_calls, called
    call = called.tool_calls[0]
    assert call["name"] == "get_weather" and set(call["args"]) == {"city", "unit"}, call
    answer = get_weather.invoke(call["args"])
    said = model.invoke([question, called, ToolMessage(answer, tool_call_id=call["id"])])
    assert isinstance(said, AIMessage)
    pieces = list(model.bind_tools([get_weather], tool_choice="get_weather").stream([question]))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    assert whole.tool_calls[0]["name"] == "get_weather", whole
    assert whole.tool_calls[0]["args"] == call["args"]


async def check_async(model: ChatOpenAI) -> None:
    questions = [f"What is the capital of {name}?" for name in ("France", "Italy", "Spain")]
    answers = await asyncio.gather(*(model.ainvoke(question) for question in questions))
    assert "Paris" in answers[0].content and all(a.content for a in answers)


def main(url: str) -> None:
    model = ChatOpenAI(
        base_url=f"{url}/v1", api_key="None", model="default", temperature=0, max_tokens=64, seed=1
    )
    messages = [HumanMessage("What is the capital of France?")]
    answer = model.invoke(messages)
    assert "Paris" in answer.content
    assert model.invoke([SystemMessage("You are brief."), *messages]).content
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    text = "".join(chunk.content for chunk in model.stream(messages))
    assert text == answer.content
    scored = model.bind(logprobs=True, top_logprobs=2).invoke(messages)
    assert len(scored.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
    for method in ("json_schema", "function_calling"):
        city = model.with_structured_output(City, method=method).invoke("Name a city.")
        assert isinstance(city, City), (method, city)
    check_tools(model)
    asyncio.run(check_async(model))
    print("langchain ok")


if __name__ == "__main__":
    main(sys.argv[1])
