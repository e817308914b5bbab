"""The conversation of /v1/messages as chat messages.

One Anthropic message may be several of chat: every tool_result is a tool message of its own, and
the texts around it are messages of the user.
"""

from collections.abc import Sequence

import orjson

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.server.json_body import JsonObject

ROLES = ("user", "assistant", "system")


def chat_messages(
    system: str | Sequence[JsonObject], messages: Sequence[JsonObject]
) -> tuple[list[JsonObject], bool]:
    """The chat messages, and whether the answer continues the last of them.

    Raises:
        InvalidRequestError: a message that is not what its role says.
        UnsupportedFeatureError: a block of a type that is not built.
    """
    if not messages:
        raise InvalidRequestError("messages must have at least one message.")
    chat: list[JsonObject] = []
    if system:
        chat.append({"role": "system", "content": _text("system", system)})
    for i, message in enumerate(messages):
        role = message.get("role")
        blocks = _blocks(f"messages[{i}].content", message.get("content"))
        match role:
            case "assistant":
                chat.append(_assistant(i, blocks))
            case "user":
                chat += _user(i, blocks)
            case "system":
                text = _text(f"messages[{i}].content", blocks)
                chat.append({"role": role, "content": text})
            case _:
                raise InvalidRequestError(
                    f"messages[{i}].role must be one of {', '.join(ROLES)}, got {role!r}."
                )
    return chat, _continues(chat[-1])


def _continues(last: JsonObject) -> bool:
    if last["role"] != "assistant":
        return False
    if last.get("tool_calls"):
        raise InvalidRequestError(
            "A tool_use block must be followed by a message of the user with its tool_result."
        )
    return True


def _blocks(where: str, content: object) -> list[JsonObject]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise InvalidRequestError(f"{where} must be a string or a list of blocks.")
    if not content:
        raise InvalidRequestError(f"{where} must have at least one block.")
    for j, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidRequestError(f"{where}[{j}] must be an object with a type, such as text.")
    return content


def _text(where: str, content: object) -> str:
    """A content of text blocks only."""
    blocks = _blocks(where, content)
    return "\n\n".join(_text_of(f"{where}[{j}]", block) for j, block in enumerate(blocks))


def _text_of(where: str, block: JsonObject) -> str:
    if block["type"] != "text":
        raise UnsupportedFeatureError(
            f"`{where}` of type {block['type']!r} is not supported: the model takes text only."
        )
    return _string(where, block, "text")


def _string(where: str, block: JsonObject, name: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise InvalidRequestError(f"{where}.{name} must be a string.")
    return value


def _user(i: int, blocks: Sequence[JsonObject]) -> list[JsonObject]:
    messages: list[JsonObject] = []
    texts: list[str] = []

    def say() -> None:
        if texts:
            messages.append({"role": "user", "content": "\n\n".join(texts)})
            texts.clear()

    for j, block in enumerate(blocks):
        where = f"messages[{i}].content[{j}]"
        if block["type"] != "tool_result":
            texts.append(_text_of(where, block))
            continue
        say()
        content = block.get("content")
        text = _text(f"{where}.content", content) if content else ""
        messages.append(
            {
                "role": "tool",
                "tool_call_id": _string(where, block, "tool_use_id"),
                # Templates have no place for the flag.
                "content": f"Error: {text}" if block.get("is_error") else text,
            }
        )
    say()
    return messages


def _assistant(i: int, blocks: Sequence[JsonObject]) -> JsonObject:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[JsonObject] = []
    for j, block in enumerate(blocks):
        where = f"messages[{i}].content[{j}]"
        match block["type"]:
            case "thinking":
                thoughts.append(_string(where, block, "thinking"))
            case "redacted_thinking":
                pass  # of another model; nothing in it can be read
            case "tool_use":
                calls.append(_call(where, block))
            case _:
                texts.append(_text_of(where, block))
    message: JsonObject = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(where: str, block: JsonObject) -> JsonObject:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise InvalidRequestError(f"{where}.input must be an object.")
    function = {
        "name": _string(where, block, "name"),
        "arguments": orjson.dumps(arguments).decode(),
    }
    return {"id": _string(where, block, "id"), "type": "function", "function": function}
