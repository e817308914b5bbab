"""truncation: auto, over a fake LLM whose prompts have a token per message."""

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM

from jaxserve.errors import ContextLengthError

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "3"}


def said(role: str, text: str) -> dict:
    return {"role": role, "content": text}


CONVERSATION = [
    said("user", "one"), said("assistant", "1"),
    said("user", "two"), CALL, RESULT, said("assistant", "2"),
    said("user", "three"),
]  # fmt: skip


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM(context_len=10, max_req_input_len=9)


async def ask(client: TestClient, **fields: object) -> dict:
    body = {"input": CONVERSATION, "instructions": "Be brief.", "truncation": "auto"} | fields
    response = await client.post("/v1/responses", json=body)
    assert response.status == 200, await response.text()
    return await response.json()


@pytest.mark.parametrize(
    ("max_output_tokens", "first"),
    [(2, "one"), (3, "two"), (4, "two"), (5, "three"), (9, "three")],
)
async def test_the_oldest_turns_are_left_out(
    client: TestClient, llm: FakeLLM, max_output_tokens: int, first: str
) -> None:
    answer = await ask(client, max_output_tokens=max_output_tokens)
    assert answer["truncation"] == "auto"
    instructions, *rest = llm.messages
    assert (instructions["role"], instructions["content"]) == ("system", "Be brief.")
    assert (rest[0]["role"], rest[0]["content"]) == ("user", first)
    assert rest[-1]["content"] == "three"
    assert len(llm.submitted[-1].prompt) == len(llm.messages)


@pytest.mark.parametrize("llm", [FakeLLM(context_len=100, max_req_input_len=9)])
async def test_the_pool_may_be_smaller_than_the_context(client: TestClient, llm: FakeLLM) -> None:
    await ask(client, max_output_tokens=5)
    assert llm.messages[1]["content"] == "three"


async def test_what_fits_stays_and_so_does_the_last_turn(client: TestClient, llm: FakeLLM) -> None:
    await ask(client, input=[said("user", "one"), said("user", "two")], max_output_tokens=4)
    assert len(llm.messages) == 3
    await ask(client, input=CONVERSATION[2:6], max_output_tokens=9)  # for the engine to refuse
    assert [message["role"] for message in llm.messages] == [
        "system", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip


async def test_nothing_is_left_out_unless_asked_for(client: TestClient, llm: FakeLLM) -> None:
    await ask(client, max_output_tokens=9, truncation="disabled")
    assert len(llm.messages) == 8


async def test_a_text_too_long_to_read_does_not_fit(client: TestClient, llm: FakeLLM) -> None:
    render = llm.render_chat

    async def render_chat(messages: list[dict], **fields: object) -> tuple[int, ...]:
        if len(messages) > 2 and fields["is_prompt"]:  # else all of it is read, again and again
            raise ContextLengthError("The input (at least 9 tokens) is longer than …")
        return await render(messages, **fields)

    llm.render_chat = render_chat
    await ask(client, max_output_tokens=1)
    assert [message["content"] for message in llm.messages] == ["Be brief.", "three"]
