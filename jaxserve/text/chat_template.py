"""Messages to prompt ids, by the checkpoint's Jinja template in transformers' own sandbox."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.text.tokenizer import Tokenizer

# A template that loops over the parts of a message's content wants the list, not a string.
_LOOPS_OVER_PARTS = re.compile(r"\{%-?\s*for\s+[\w\s,]+?\s+in\s+(?:(?!\bif\b)[^%])*\bcontent\b")

# A template leaves out, without a word, a message of a role that it does not ask for.  Role → what
# it stands for, and what a template that knows it has.
_STAND_INS = {
    "developer": ("system", re.compile(r"\bdeveloper\b")),
    "function": ("tool", re.compile(r"\brole\b[^%}]*\bfunction\b")),
}

# What a template may raise: its own raise_exception, and Python's answers to a message whose
# shape it does not expect.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

# Client-chosen template variables must not reach the other arguments of apply_chat_template.
_ARGUMENTS = inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters
_RESERVED = frozenset(("messages", *_ARGUMENTS)) - {"documents", "kwargs"}


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    max_tokens: int | None = None,
) -> list[int]:
    """Prompt ids of a conversation.  The template writes the BOS token, if there is to be one.

    A developer's message is the system's, and a function's a tool's, for a template that does not
    know these roles.

    Raises:
        InvalidRequestError: no template, no messages, or the template refuses them.
        UnsupportedFeatureError: a content part that is not text.
        ContextLengthError: the text cannot fit into ``max_tokens``.
    """
    template = tokenizer.chat_template
    if template is None:
        raise InvalidRequestError(
            "this model has no chat template, so it takes plain prompts only (/v1/completions or "
            "/generate); start the server with --chat-template FILE to give it one"
        )
    if not messages:
        raise InvalidRequestError("Messages cannot be empty.")
    variables = dict(chat_template_kwargs or {})
    for name in variables:
        if name in _RESERVED:
            raise InvalidRequestError(f"chat_template_kwargs must not set {name!r}")
    keeps_parts = _LOOPS_OVER_PARTS.search(template) is not None
    roles = {
        role: stand_in
        for role, (stand_in, known) in _STAND_INS.items()
        if known.search(template) is None
    }
    plain = [_plain_message(message, keeps_parts, roles) for message in messages]
    try:
        text = tokenizer.apply_template(
            plain,
            tools=tools or None,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            **variables,
        )
    except _TEMPLATE_ERRORS as error:
        raise InvalidRequestError(f"the chat template refused the messages: {error}") from error
    return tokenizer.encode(text, add_special_tokens=False, max_tokens=max_tokens)


def _plain_message(
    message: Mapping[str, Any], keeps_parts: bool, roles: Mapping[str, str]
) -> dict[str, Any]:
    plain = dict(message)
    role = plain.get("role")
    if isinstance(role, str):
        plain["role"] = roles.get(role, role)
    content = plain.get("content")
    if isinstance(content, list):
        texts = [_part_text(part) for part in content]
        plain["content"] = (
            [{"type": "text", "text": text} for text in texts] if keeps_parts else " ".join(texts)
        )
    if isinstance(plain.get("tool_calls"), list):
        plain["tool_calls"] = [_plain_tool_call(call) for call in plain["tool_calls"]]
    return plain


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text":
        raise UnsupportedFeatureError(
            f"content parts of type {kind!r} are not supported: this model takes text parts only"
        )
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise InvalidRequestError("a content part of type 'text' needs a string in 'text'")
    return text


def _plain_tool_call(call: object) -> object:
    """OpenAI's clients send a call's arguments as JSON text; templates expect the object."""
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(call, dict) or not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return call
    return call | {"function": call["function"] | {"arguments": parsed}}
