"""The conversation of /v1/messages as chat messages."""

import pytest

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.server.messages_input import chat_messages

USER = {"role": "user", "content": "Hi"}


def text(value: str) -> dict:
    return {"type": "text", "text": value, "cache_control": {"type": "ephemeral"}}


def test_blocks_become_messages() -> None:
    messages = [
        {"role": "user", "content": [text("A"), text("B")]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                text("C"),
                text("D"),
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "é"}},
                {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "1"},
                {
                    "type": "tool_result", "tool_use_id": "t2", "is_error": True,
                    "content": [text("no"), text("way")],
                },
                {"type": "tool_result", "tool_use_id": "t3"},
                text("E"),
            ],
        },
        {"role": "system", "content": "F"},
    ]  # fmt: skip
    assert chat_messages([text("S"), text("T")], messages) == (
        [
            {"role": "system", "content": "S\n\nT"},
            {"role": "user", "content": "A\n\nB"},
            {
                "role": "assistant", "content": "CD", "reasoning_content": "Hm",
                "tool_calls": [
                    {
                        "id": "t1", "type": "function",
                        "function": {"name": "f", "arguments": '{"a":"é"}'},
                    },
                    {"id": "t2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "1"},
            {"role": "tool", "tool_call_id": "t2", "content": "Error: no\n\nway"},
            {"role": "tool", "tool_call_id": "t3", "content": ""},
            {"role": "user", "content": "E"},
            {"role": "system", "content": "F"},
        ],
        False,
    )  # fmt: skip


def test_a_last_message_of_the_assistant_is_continued() -> None:
    messages, continues = chat_messages("", [USER, {"role": "assistant", "content": "Well"}])
    assert continues
    assert messages == [USER, {"role": "assistant", "content": "Well"}]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].role must be one of user, assistant, sys"),
        ({"role": "user"}, "messages[0].content must be a string or a list of blocks."),
        ({"role": "user", "content": []}, "messages[0].content must have at least one block."),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0] must be an object with a typ"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text must be a"),
        (
            {"role": "user", "content": [{"type": "tool_result"}]},
            "messages[0].content[0].tool_use_id must be a string.",
        ),
        (
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f"}]},
            "messages[0].content[0].input must be an object.",
        ),
        (
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}],
            },
            "A tool_use block must be followed by a message of the user with its tool_result.",
        ),
    ],
)
def test_broken_messages(message: dict, error: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat_messages("", [message])
    assert str(caught.value).startswith(error)


@pytest.mark.parametrize("kind", ["image", "document", "search_result", "server_tool_use"])
def test_unsupported_blocks(kind: str) -> None:
    with pytest.raises(UnsupportedFeatureError, match=f"messages.1..content.0.` of type '{kind}'"):
        chat_messages("", [USER, {"role": "user", "content": [{"type": kind}]}])
