"""Items of /v1/responses as chat messages."""

import pytest

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.server.responses_items import chat_messages, input_items


def function_call(call_id: str) -> dict:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": '{"a": 1}'}


def tool_call(call_id: str) -> dict:
    function = {"name": "f", "arguments": '{"a": 1}'}
    return {"id": call_id, "type": "function", "function": function}


def test_a_turn_with_reasoning_and_calls_is_one_message() -> None:
    items = [
        *input_items("Hi"),
        {"type": "reasoning", "summary": [], "content": [{"text": "Hm"}, {"text": "!"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A"}]},
        function_call("c1"),
        function_call("c2"),
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {
            "type": "function_call_output", "call_id": "c2",
            "output": [{"type": "input_text", "text": "2"}, {"type": "input_text", "text": "!"}],
        },
        function_call("c3"),
    ]  # fmt: skip
    assert chat_messages(None, items) == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant", "content": "A", "reasoning_content": "Hm!",
            "tool_calls": [tool_call("c1"), tool_call("c2")],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "2!"},
        {"role": "assistant", "content": None, "tool_calls": [tool_call("c3")]},
    ]  # fmt: skip


def test_leading_system_messages_are_one() -> None:
    items = [
        {"role": "developer", "content": "B"},
        {"role": "system", "content": [{"type": "input_text", "text": "C"}]},
        {"role": "user", "content": "D"},
        {"role": "system", "content": "E"},
    ]
    assert chat_messages("A", items) == [
        {"role": "system", "content": "A\n\nB\n\nC"},
        {"role": "user", "content": "D"},
        {"role": "system", "content": "E"},
    ]


def test_texts_of_the_assistant_stay_apart() -> None:
    items = [
        {"role": "assistant", "content": "A"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "B"}]},
    ]
    assert [message["content"] for message in chat_messages(None, items)] == ["A", "B"]


def test_a_summary_stands_in_for_reasoning() -> None:
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "S"}]}
    assert chat_messages(None, [item])[0]["reasoning_content"] == "S"
    assert chat_messages(None, [{"type": "reasoning"}])[0]["reasoning_content"] == ""


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"role": "tool", "content": "x"}, "input[0].role must be one of user, assistant, system"),
        ({"role": "user"}, "input[0].content must be a string or a list of parts."),
        ({"role": "user", "content": ["x"]}, "input[0].content[0] must be an object with a type"),
        (
            {"role": "user", "content": [{"type": "input_text"}]},
            "input[0].content[0].text must be a string.",
        ),
        ({"type": "function_call", "name": "f"}, "input[0].call_id must be a string, got None."),
        (
            {"type": "function_call", "name": "f", "call_id": "c", "arguments": {}},
            "input[0].arguments must be a string of JSON, got dict.",
        ),
        (
            {"type": "function_call_output", "call_id": "c"},
            "input[0].output must be a string or a list of parts.",
        ),
        (
            {"type": "reasoning", "content": ["x"]},
            "input[0].content must be a list of parts with a text.",
        ),
        (
            {"type": "reasoning", "encrypted_content": "gAAAAA"},
            "input[0].encrypted_content is not of this server; leave the reasoning item away.",
        ),
    ],
)
def test_broken_items(item: dict, message: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        chat_messages(None, [item])
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"id": "msg_1"}, "`input[0]` of type 'item_reference' is not supported"),
        ({"type": "web_search_call", "id": "x"}, "`input[0]` of type 'web_search_call' is not"),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]},
            "`input[0].content[0]` of type 'input_image' is not supported: the model takes text",
        ),
    ],
)
def test_unsupported_items(item: dict, message: str) -> None:
    with pytest.raises(UnsupportedFeatureError) as error:
        chat_messages(None, [item])
    assert str(error.value).startswith(message)
