"""The messages of a chat request, checked, as a text-only chat template takes them."""

from collections.abc import Sequence

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.server.json_body import JsonObject

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def template_messages(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """One object per message: roles in lower case, contents strings, nulls left out.

    Earlier ``tool_calls`` and ``reasoning_content`` stay as they are: the template writes them.

    Raises:
        InvalidRequestError: no message, an unknown role, a content that is no text.
        UnsupportedFeatureError: a part that is an image, audio or video.
    """
    if not messages:
        raise InvalidRequestError("Messages cannot be empty.")
    return [_message(i, message) for i, message in enumerate(messages)]


def is_continued(messages: Sequence[JsonObject], continue_final_message: bool) -> bool:
    """Whether the answer goes on with the last message: only with an assistant's, as in SGLang."""
    role = messages[-1].get("role") if messages else None
    return continue_final_message and isinstance(role, str) and role.lower() == "assistant"


def _message(i: int, message: JsonObject) -> JsonObject:
    role = message.get("role")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise InvalidRequestError(
            f"messages[{i}].role must be one of {', '.join(ROLES)}, got {role!r}."
        )
    role = role.lower()
    content = message.get("content")
    if content is None and role != "assistant":
        raise InvalidRequestError(f"messages[{i}].content is missing.")
    _check_calls(i, message.get("tool_calls"))
    rest = {k: v for k, v in message.items() if v is not None and k not in ("role", "content")}
    return {"role": role, "content": _content(i, content), **rest}


def _check_calls(i: int, calls: object) -> None:
    """What is inside a call is the template's business: it knows what the model has seen."""
    if calls is None:
        return
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InvalidRequestError(
            f"messages[{i}].tool_calls must be a list of calls such as "
            '{"id": …, "type": "function", "function": {"name": …, "arguments": …}}.'
        )


def _content(i: int, content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(
            f"messages[{i}].content must be a string or a list of parts, got "
            f"{type(content).__name__}."
        )
    return " ".join(_text_part(i, j, part) for j, part in enumerate(content))


def _text_part(i: int, j: int, part: object) -> str:
    where = f"messages[{i}].content[{j}]"
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise InvalidRequestError(f"{where} must be an object with a type, such as text.")
    if kind != "text":
        raise UnsupportedFeatureError(
            f"`{where}` of type {kind!r} is not supported: the model takes text only."
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequestError(f"{where}.text must be a string.")
    return text
