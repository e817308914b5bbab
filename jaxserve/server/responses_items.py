"""The items of /v1/responses: a request's as chat messages, an answer's out of blocks.

message                 a message; instructions come before all as a system message
reasoning               the reasoning_content of the assistant message that follows it
function_call           a tool call of the assistant message before it, or of a new one
function_call_output    a tool message
"""

import base64
import binascii
from collections.abc import Sequence

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.request import TokenLogprob
from jaxserve.server.blocks import Block, Kind
from jaxserve.server.json_body import JsonObject
from jaxserve.server.openai_format import chat_logprobs
from jaxserve.server.service import TokenTexts

ROLES = ("user", "assistant", "system", "developer")
_PREFIX = {Kind.REASONING: "rs_", Kind.TEXT: "msg_", Kind.CALL: "fc_"}
_ENCRYPTED = "jaxserve."  # marks what _encrypted wrote


def input_items(given: str | Sequence[JsonObject]) -> list[JsonObject]:
    """The input as items: a string is one message of the user."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return list(given)


def chat_messages(instructions: str | None, items: Sequence[JsonObject]) -> list[JsonObject]:
    """The conversation as chat messages.

    Raises:
        InvalidRequestError: an item that is not what its type says.
        UnsupportedFeatureError: an item, or a part of one, of a type that is not built.
    """
    messages = _Messages()
    if instructions:
        messages.system("system", instructions)
    for i, item in enumerate(items):
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        match kind:
            case "message":
                _add_message(messages, i, item)
            case "reasoning":
                messages.assistant["reasoning_content"] = _reasoning_text(i, item)
            case "function_call":
                messages.call(_string(i, item, "call_id"), _function(i, item))
            case "function_call_output":
                call_id = _string(i, item, "call_id")
                content = _text(f"input[{i}].output", item.get("output"))
                messages.add({"role": "tool", "tool_call_id": call_id, "content": content})
            case _:
                _refuse(i, kind)
    return messages.done()


class _Messages:
    """Messages so far; what an assistant says in several items is one message."""

    def __init__(self) -> None:
        self._messages: list[JsonObject] = []

    @property
    def assistant(self) -> JsonObject:
        """The assistant message that is being written."""
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self.add({"role": "assistant", "content": None})
        return self._messages[-1]

    def add(self, message: JsonObject) -> None:
        self._messages.append(message)

    def system(self, role: str, text: str) -> None:
        """Many templates take one system message, and only as the first."""
        first = self._messages[0] if len(self._messages) == 1 else None
        if first is not None and first["role"] in ("system", "developer"):
            first["content"] = f"{first['content']}\n\n{text}"
        else:
            self.add({"role": role, "content": text})

    def say(self, text: str) -> None:
        message = self.assistant
        if message["content"] is not None or message.get("tool_calls"):
            message = {"role": "assistant", "content": None}
            self.add(message)
        message["content"] = text

    def call(self, call_id: str, function: JsonObject) -> None:
        calls = self.assistant.setdefault("tool_calls", [])
        assert isinstance(calls, list)
        calls.append({"id": call_id, "type": "function", "function": function})

    def done(self) -> list[JsonObject]:
        return self._messages


def _add_message(messages: _Messages, i: int, item: JsonObject) -> None:
    role = item.get("role")
    if role not in ROLES:
        raise InvalidRequestError(
            f"input[{i}].role must be one of {', '.join(ROLES)}, got {role!r}."
        )
    text = _text(f"input[{i}].content", item.get("content"))
    if role == "assistant":
        messages.say(text)
    elif role == "user":
        messages.add({"role": role, "content": text})
    else:
        messages.system(str(role), text)


def _text(where: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(f"{where} must be a string or a list of parts.")
    return "".join(_part(f"{where}[{j}]", part) for j, part in enumerate(content))


def _part(where: str, part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise InvalidRequestError(f"{where} must be an object with a type, such as input_text.")
    name = "refusal" if kind == "refusal" else "text"
    if kind not in ("input_text", "output_text", "text", "refusal"):
        raise UnsupportedFeatureError(
            f"`{where}` of type {kind!r} is not supported: the model takes text only."
        )
    text = part.get(name)
    if not isinstance(text, str):
        raise InvalidRequestError(f"{where}.{name} must be a string.")
    return text


def _string(i: int, item: JsonObject, name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"input[{i}].{name} must be a string, got {value!r}.")
    return value


def _function(i: int, item: JsonObject) -> JsonObject:
    arguments = item.get("arguments")
    if not isinstance(arguments, str):
        raise InvalidRequestError(
            f"input[{i}].arguments must be a string of JSON, got {type(arguments).__name__}."
        )
    return {"name": _string(i, item, "name"), "arguments": arguments}


def _refuse(i: int, kind: object) -> None:
    if kind == "item_reference":
        raise UnsupportedFeatureError(
            f"`input[{i}]` of type 'item_reference' is not supported: items are not stored one by "
            "one. Send the item itself, or previous_response_id."
        )
    raise UnsupportedFeatureError(
        f"`input[{i}]` of type {kind!r} is not supported: there are no hosted tools. Allowed are "
        "message, reasoning, function_call and function_call_output."
    )


def _reasoning_text(i: int, item: JsonObject) -> str:
    for name in ("content", "summary"):
        parts = item.get(name)
        if isinstance(parts, list) and parts:
            if not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
                raise InvalidRequestError(f"input[{i}].{name} must be a list of parts with a text.")
            return "".join(part["text"] for part in parts)
        if name == "content" and item.get("encrypted_content"):
            return _decrypted(i, item["encrypted_content"])
    return ""


# --- answers ---


def output_item(
    block: Block, status: str, texts: TokenTexts | None, *, is_encrypted: bool
) -> JsonObject:
    """What ``block`` is among the output.

    Args:
        status: in_progress (then its text is still empty), completed or incomplete.
        texts: writes the tokens of logprobs; None: none were asked for.
        is_encrypted: reasoning carries ``encrypted_content`` too.
    """
    item: JsonObject = {"id": item_id(block), "type": "message", "status": status}
    is_empty = status == "in_progress"
    match block.kind:
        case Kind.TEXT:
            content = [] if is_empty else [text_part(block.text, block.logprobs, texts)]
            return item | {"role": "assistant", "content": content}
        case Kind.REASONING:
            parts = [] if is_empty else [reasoning_part(block.text)]
            secret = _encrypted(block.text) if is_encrypted and not is_empty else None
            return item | {
                "type": "reasoning", "summary": [], "content": parts, "encrypted_content": secret,
            }  # fmt: skip
    return item | {
        "type": "function_call",
        "call_id": block.call_id,
        "name": block.name,
        "arguments": "" if is_empty else block.text,
    }


def item_id(block: Block) -> str:
    """The id of the item that ``block`` is."""
    return _PREFIX[block.kind] + block.uid


def text_part(text: str, logprobs: Sequence[TokenLogprob], texts: TokenTexts | None) -> JsonObject:
    """The one part of a message."""
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": text_logprobs(logprobs, texts),
    }


def reasoning_part(text: str) -> JsonObject:
    """The one part of a reasoning item."""
    return {"type": "reasoning_text", "text": text}


def text_logprobs(logprobs: Sequence[TokenLogprob], texts: TokenTexts | None) -> object:
    """Logprobs as parts and deltas carry them; none where none were asked for."""
    return [] if texts is None else chat_logprobs(logprobs, texts)["content"]


def _encrypted(text: str) -> str:
    """Not secret: ``content`` has the same text.  For clients that only keep this field."""
    return _ENCRYPTED + base64.b64encode(text.encode()).decode()


def _decrypted(i: int, secret: object) -> str:
    try:
        if not isinstance(secret, str) or not secret.startswith(_ENCRYPTED):
            raise ValueError
        return base64.b64decode(secret.removeprefix(_ENCRYPTED), validate=True).decode()
    except (ValueError, binascii.Error):
        raise InvalidRequestError(
            f"input[{i}].encrypted_content is not of this server; leave the reasoning item away."
        ) from None
