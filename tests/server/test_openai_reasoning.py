"""Reasoning in /v1/chat/completions: split off, streamed, counted, turned off."""

import re

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM
from server.openai_calls import CHAT, chat, chat_deltas, post, said, stream

from jaxserve.config import ServerConfig

THOUGHT = said("<think>", "\n", "Let", " me see.", "</think>", "\n\n", "4", "2")
NUM_REASONING = 5  # both markers are tokens of it
END = THOUGHT.index("</think>")


@pytest.fixture
def llm() -> FakeLLM:
    llm = FakeLLM(reasoning_parser="qwen3")
    llm.words = THOUGHT
    llm.special_tokens = {"</think>": END}
    return llm


async def test_reasoning_has_a_place_of_its_own(client: TestClient) -> None:
    choice = await chat(client)
    assert choice["message"]["reasoning_content"] == "Let me see."
    assert choice["message"]["content"] == "42"
    assert choice["usage"]["reasoning_tokens"] == NUM_REASONING
    assert choice["usage"]["completion_tokens_details"] == {"reasoning_tokens": NUM_REASONING}


async def test_reasoning_is_streamed_first(client: TestClient) -> None:
    *deltas, finish = await chat_deltas(client)
    assert deltas == [
        {"reasoning_content": "Let"},
        {"reasoning_content": " me see."},
        {"content": "4", "reasoning_content": None},
        {"content": "2", "reasoning_content": None},
    ]
    assert finish == {"finish_reason": "stop"}


async def test_reasoning_in_one_chunk(client: TestClient) -> None:
    deltas = await chat_deltas(client, stream_reasoning=False)
    assert deltas[0] == {"reasoning_content": "Let me see."}
    assert [delta.get("content") for delta in deltas[1:3]] == ["4", "2"]
    cut = await chat_deltas(client, stream_reasoning=False, max_tokens=4)
    assert cut == [{"reasoning_content": "Let me see."}, {"finish_reason": "length"}]


async def test_reasoning_left_in_the_text(client: TestClient) -> None:
    choice = await chat(client, separate_reasoning=False)
    assert choice["message"]["content"] == "".join(THOUGHT)
    assert choice["message"]["reasoning_content"] is None
    assert choice["usage"]["reasoning_tokens"] == NUM_REASONING
    deltas = await chat_deltas(client, separate_reasoning=False)
    assert "".join(delta.get("content", "") for delta in deltas) == "".join(THOUGHT)


async def test_thinking_cut_off_has_no_content(client: TestClient) -> None:
    choice = await chat(client, max_tokens=3)
    assert choice["message"]["reasoning_content"] == "Let"
    assert choice["message"]["content"] is None
    assert (choice["finish_reason"], choice["usage"]["reasoning_tokens"]) == ("length", 3)


async def test_an_empty_thought_counts_its_markers(client: TestClient, llm: FakeLLM) -> None:
    llm.words = said("<think>", "</think>", "42")
    llm.special_tokens = {"</think>": 1}
    assert (await chat(client))["usage"]["reasoning_tokens"] == 2
    fields = {"stream_options": {"include_usage": True}}
    chunks = await stream(client, "chat/completions", CHAT | fields)
    assert chunks[-1]["usage"]["reasoning_tokens"] == 2


async def test_every_choice_has_its_own(client: TestClient) -> None:
    answer = await post(client, "chat/completions", CHAT | {"n": 2})
    assert [c["message"]["reasoning_content"] for c in answer["choices"]] == ["Let me see."] * 2
    assert answer["usage"]["reasoning_tokens"] == 2 * NUM_REASONING


OFF = [
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"reasoning_effort": "none"},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"effort": "none"}},
]


@pytest.mark.parametrize("fields", OFF)
async def test_thinking_turned_off(client: TestClient, llm: FakeLLM, fields: dict) -> None:
    llm.words = said("4", "2")
    choice = await chat(client, **fields)
    assert choice["message"]["reasoning_content"] is None
    assert choice["message"]["content"] == "42"
    assert choice["usage"]["reasoning_tokens"] == 0
    assert llm.template_kwargs["enable_thinking"] is False


@pytest.mark.parametrize("config", [
    ServerConfig(default_chat_template_kwargs={"enable_thinking": False, "style": "short"}),
])  # fmt: skip
async def test_the_servers_template_arguments_can_be_overridden(
    client: TestClient, llm: FakeLLM
) -> None:
    await chat(client)
    assert llm.template_kwargs == {"enable_thinking": False, "style": "short"}
    await chat(client, reasoning={"enabled": True, "effort": "HIGH"})
    assert llm.template_kwargs == {
        "enable_thinking": True, "thinking": True, "style": "short", "reasoning_effort": "high",
    }  # fmt: skip
    await chat(client, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert llm.template_kwargs["enable_thinking"] is True


async def test_a_text_that_does_not_begin_with_it_has_none(
    client: TestClient, llm: FakeLLM
) -> None:
    llm.words = said("No", " <think>", " here")
    choice = await chat(client)
    assert choice["message"]["content"] == "No <think> here"
    assert choice["usage"]["reasoning_tokens"] == 0


async def test_a_prompt_that_has_begun_it(client: TestClient, llm: FakeLLM) -> None:
    """One message makes a prompt of token 10, which is written as the 11th word."""
    words = list(said("so", " it is", "</think>", "42"))
    words[10] = "<think>"
    llm.words = tuple(words)
    llm.special_tokens = {"</think>": 2}
    choice = await chat(client, max_tokens=9)
    assert choice["message"]["reasoning_content"] == "so it is"
    assert choice["message"]["content"] == "42"
    assert choice["usage"]["reasoning_tokens"] == 3


async def test_a_prompt_that_has_ended_it(client: TestClient, llm: FakeLLM) -> None:
    words = list(said("42"))
    words[10] = "</think>"
    llm.words = tuple(words)
    fields = {"max_tokens": 9, "regex": "[0-9]+"}
    assert (await chat(client, **fields))["message"]["content"] == "42"
    assert llm.submitted[0].params.thought is None


@pytest.mark.parametrize(
    ("content", "reasoning"),
    [("<think>I", " see"), ("<think>I see</think>It", None), ("It", None), (" ", " see")],
)
async def test_a_continued_message(
    client: TestClient, llm: FakeLLM, content: str, reasoning: str | None
) -> None:
    llm.words = said(" see", "</think>", " 42") if reasoning else said(" see")
    if content == " ":
        llm.words = said("<think>", "see", "</think>", " 42")
    history = [*CHAT["messages"], {"role": "assistant", "content": content}]
    choice = await chat(client, messages=history, continue_final_message=True)
    expected = None if reasoning is None else reasoning.strip()
    assert choice["message"]["reasoning_content"] == expected
    assert choice["message"]["content"].strip() == ("42" if reasoning else "see")


async def test_only_the_assistants_message_is_continued(client: TestClient, llm: FakeLLM) -> None:
    begun = {"role": "Assistant", "content": "It"}
    for last, continues in ((begun, True), (CHAT["messages"][0], False)):
        history = [*CHAT["messages"], last]
        await chat(client, messages=history, continue_final_message=True)
        assert llm.continues is continues
        await client.post("/tokenize", json={"messages": history, "continue_final_message": True})
        assert llm.continues is continues


def marks(llm: FakeLLM) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The tokens that end the thought a grammar waits for, and those that begin it."""
    assert llm.submitted[-1].params.grammar is not None
    thought = llm.submitted[-1].params.thought
    return None if thought is None else (thought.end_ids, thought.start_ids)


async def test_a_grammar_holds_where_there_is_no_reasoning(
    client: TestClient, llm: FakeLLM
) -> None:
    await chat(client, response_format={"type": "json_object"})
    assert marks(llm) == ((END,), (10,))  # "<think>" is no token of its own
    llm.special_tokens = {"<think>": 0, "</think>": END}
    await chat(client, response_format={"type": "json_object"})
    assert marks(llm) == ((END,), (0,))
    await chat(client, regex="[0-9]+", reasoning={"enabled": False})
    assert marks(llm) is None


class TestAlwaysThinking:
    """A format whose answers begin inside the reasoning."""

    @pytest.fixture
    def llm(self) -> FakeLLM:
        llm = FakeLLM(reasoning_parser="deepseek-r1")
        llm.words = said("hm", "</think>", "42")
        return llm

    async def test_a_grammar_starts_after_it(self, client: TestClient, llm: FakeLLM) -> None:
        llm.special_tokens = {"</think>": 1}
        choice = await chat(client, regex="[0-9]+")
        assert choice["message"]["reasoning_content"] == "hm"
        assert choice["usage"]["reasoning_tokens"] == 2
        assert marks(llm) == ((1,), ())
        llm.special_tokens = {}
        await chat(client, regex="[0-9]+")
        assert marks(llm) == ((10,), ())  # what encode makes of "</think>"


class TestThinkingOnRequest:
    """A format that is off unless it is asked for."""

    @pytest.fixture
    def llm(self) -> FakeLLM:
        llm = FakeLLM(reasoning_parser="mistral")
        llm.words = said("[THINK]", "hm", "[/THINK]", "42")
        llm.special_tokens = {"[THINK]": 0, "[/THINK]": 2}
        return llm

    async def test_what_is_written_all_the_same_is_read(
        self, client: TestClient, llm: FakeLLM
    ) -> None:
        choice = await chat(client, regex="[0-9]+")
        assert choice["message"]["reasoning_content"] == "hm"
        assert marks(llm) is None
        assert not llm.submitted[-1].params.skip_special_tokens

    async def test_asked_for(self, client: TestClient, llm: FakeLLM) -> None:
        await chat(client, regex="[0-9]+", reasoning_effort="high")
        assert marks(llm) == ((2,), (0,))
        choice = await chat(client, reasoning_effort="none")
        assert choice["message"]["reasoning_content"] is None


class TestHarmony:
    """gpt-oss: an answer is a row of messages, of which the final one is the text."""

    @pytest.fixture
    def llm(self) -> FakeLLM:
        llm = FakeLLM(reasoning_parser="gpt-oss", tool_call_parser="gpt-oss")
        llm.words = said("<|channel|>analysis<|message|>", "hm", "<|end|>", "<|start|>assistant",
                         "<|channel|>final<|message|>", "42")  # fmt: skip
        llm.special_tokens = {"<|end|>": 2}
        return llm

    async def test_a_grammar_waits_for_the_final_message(
        self, client: TestClient, llm: FakeLLM
    ) -> None:
        choice = await chat(client, regex="[0-9]+")
        assert choice["message"]["reasoning_content"] == "hm"
        assert choice["message"]["content"] == "42"
        assert choice["usage"]["reasoning_tokens"] == 3
        assert marks(llm) == ((2,), (10,))  # what encode makes of the header
        pattern = llm.submitted[-1].params.thought.answer_pattern
        for header in ("final", "final <|constrain|>json", " final json"):
            assert re.search(pattern, f"<|channel|>{header}<|message|>")
        assert not re.search(pattern, "<|channel|>commentary to=final <|message|>")
        *deltas, finish = await chat_deltas(client)
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "hm"
        assert "".join(delta.get("content", "") for delta in deltas) == "42"


async def test_reasoning_then_calls(client: TestClient, llm: FakeLLM) -> None:

    llm.words = said("<think>", "look", "</think>", '[{"name": "f", "parameters": {}}]')
    llm.special_tokens = {"<think>": 0, "</think>": 2}
    tools = [{"type": "function", "function": {"name": "f"}}]
    fields = {"tools": tools, "tool_choice": "required"}
    message = (await chat(client, **fields))["message"]
    assert (message["reasoning_content"], message["content"]) == ("look", None)
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert marks(llm) == ((2,), (0,))
    message = (await chat(client, separate_reasoning=False, **fields))["message"]
    assert (message["reasoning_content"], message["content"]) == (None, "<think>look</think>")
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


BUDGETS = [
    {"reasoning": {"max_tokens": 7}},
    {"custom_params": {"thinking_budget": 7}},
]


@pytest.mark.parametrize("fields", BUDGETS, ids=str)
class TestStrictThinking:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(enable_strict_thinking=True)

    async def test_a_budget_reaches_the_llm(
        self, client: TestClient, llm: FakeLLM, fields: dict
    ) -> None:
        await chat(client, **fields)
        thought = llm.submitted[-1].params.thought
        assert (thought.budget, thought.is_strict, thought.end_ids) == (7, True, (END,))
        await chat(client)
        assert llm.submitted[-1].params.thought.budget is None
        await chat(client, reasoning={"enabled": False})
        assert llm.submitted[-1].params.thought is None

    async def test_a_budget_that_is_none(
        self, client: TestClient, llm: FakeLLM, fields: dict
    ) -> None:
        (name,) = fields
        key = "max_tokens" if name == "reasoning" else "thinking_budget"
        answer = await post(client, "chat/completions", CHAT | {name: {key: -1}}, 400)
        assert f"{name}.{key} must be an integer of at least 0, got -1" in answer["message"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (BUDGETS[0], "reasoning.max_tokens requires the server to be launched with --enable-str"),
        (BUDGETS[1], "custom_params.thinking_budget requires the server to be launched with --"),
        ({"custom_params": {"x": 1}}, "custom_params.x is not supported: there are no custom logi"),
    ],
)
async def test_budgets_that_cannot_be_kept_to(
    client: TestClient, fields: dict, message: str
) -> None:
    answer = await post(client, "chat/completions", CHAT | fields, 400)
    assert answer["message"].startswith(message)
