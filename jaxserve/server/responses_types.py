"""The body of /v1/responses, and its translation to a chat body."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.server.chat_types import ChatBody
from jaxserve.server.foreign_bodies import FOREIGN_UNSUPPORTED, common_fields
from jaxserve.server.json_body import JsonObject, parse, refuse_unsupported
from jaxserve.server.openai_types import CommonBody, Items

DEFAULT_TEMPERATURE = 0.7  # SGLang's, where neither the request nor the model has one
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512

_NO_STATE = "only previous_response_id leads to earlier turns"
RESPONSES_UNSUPPORTED = FOREIGN_UNSUPPORTED | {
    "prompt": "there are no stored prompt templates",
    "conversation": _NO_STATE,
    "context_management": "a conversation is never shortened",
    "moderation": "there is no moderation model",
    "image": "the model takes text only",
    "background_options": "a background response starts at once",
    "response_format": "in /v1/responses it is text.format",
}
_INCLUDED = ("message.output_text.logprobs", "reasoning.encrypted_content")


class TextConfig(BaseModel):
    """``text``: the form of the answer."""

    format: Annotated[
        JsonObject,
        Field(description="Of type text, json_object, or json_schema with name and schema."),
    ] = {}
    verbosity: Annotated[Literal["medium"], Field(description="The model has no such control.")] = (
        "medium"
    )


class Reasoning(BaseModel):
    """``reasoning``: summaries are not made, the reasoning itself is in the answer."""

    effort: Annotated[str | None, Field(description="Given to the chat template.")] = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None
    context: Annotated[
        Literal["auto"] | None,
        Field(description="Which reasoning is kept is the template's decision."),
    ] = None
    mode: Literal["standard"] | None = None


class ResponsesBody(CommonBody):
    """POST /v1/responses.

    SGLang's sampling fields (top_k, min_p, stop, ...) work here too.  Nothing is stored unless
    the server runs with ``--enable-response-store``; the answer's ``store`` tells.
    """

    input: str | Items[JsonObject]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tool_calls: Annotated[
        int | None, Field(description="Of built-in tools, of which there are none.")
    ] = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: Reasoning = Reasoning()
    text: TextConfig = TextConfig()
    tools: Annotated[Items[JsonObject], Field(description="Of type function.")] = []
    tool_choice: str | JsonObject = "auto"
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    include: Items[str] = []
    store: bool = True
    background: bool = False
    truncation: Annotated[
        Literal["auto", "disabled"],
        Field(description="auto: what is too long for the context loses its oldest turns."),
    ] = "disabled"
    service_tier: Annotated[str, Field(description="There is one, which is `default`.")] = "auto"
    user: Annotated[str | None, Field(description="Comes back in the answer.")] = None
    safety_identifier: Annotated[str | None, Field(description="Likewise.")] = None
    prompt_cache_key: Annotated[
        str | None, Field(description="Likewise; any prefix is found in the cache without it.")
    ] = None
    chat_template_kwargs: JsonObject = {}
    request_id: Annotated[
        str | None,
        Field(min_length=1, max_length=256, description="The response's id; SGLang's field."),
    ] = None

    @property
    def with_logprobs(self) -> bool:
        """Whether the text comes with logprobs."""
        return self.top_logprobs > 0 or _INCLUDED[0] in self.include

    @property
    def with_encrypted_reasoning(self) -> bool:
        """Whether a reasoning item carries a copy that clients send back unread."""
        return _INCLUDED[1] in self.include

    def chat_body(self, messages: Sequence[JsonObject], temperature: float | None) -> ChatBody:
        """The same request in chat's words.

        Args:
            messages: the whole conversation.
            temperature: what to sample with.

        Raises:
            InvalidRequestError: a tool or a format that chat does not take.
        """
        return parse(
            ChatBody,
            common_fields(self)
            | {
                "messages": messages,
                "temperature": temperature,
                "max_completion_tokens": self.max_output_tokens,
                "tools": [_chat_tool(i, tool) for i, tool in enumerate(self.tools)],
                "tool_choice": _chat_tool_choice(self.tool_choice),
                "parallel_tool_calls": self.parallel_tool_calls,
                "response_format": _chat_format(self.text.format),
                "reasoning_effort": self.reasoning.effort,
                "chat_template_kwargs": self.chat_template_kwargs,
                "logprobs": self.with_logprobs,
                "top_logprobs": self.top_logprobs,
            },
        )


def parse_responses_body(raw: JsonObject) -> ResponsesBody:
    """The body, checked as far as it can be without the model.

    Raises:
        BodyError: fields that are missing or of the wrong type.
        InvalidRequestError: values that are not built; the message names the field.
    """
    refuse_unsupported(raw, RESPONSES_UNSUPPORTED)
    body = parse(ResponsesBody, {**raw, **_without_nulls(raw, "text", "reasoning")})
    if body.n != 1:
        raise InvalidRequestError(f"n must be 1 in /v1/responses, got {body.n}.")
    for name in set(body.include).difference(_INCLUDED):
        raise UnsupportedFeatureError(
            f"`include` {name!r} is not supported: there is nothing to include. "
            f"Allowed are {', '.join(_INCLUDED)}."
        )
    if isinstance(body.tool_choice, str) and body.tool_choice not in ("auto", "none", "required"):
        raise InvalidRequestError(
            f"tool_choice must be auto, none, required or an object, got {body.tool_choice!r}."
        )
    _check_metadata(body.metadata)
    options = raw.get("stream_options")
    if isinstance(options, dict) and options.get("include_obfuscation"):
        raise UnsupportedFeatureError(
            "`stream_options.include_obfuscation` is not supported: events are not padded. "
            "Leave it away or send false."
        )
    return body


def _without_nulls(raw: Mapping[str, object], *names: str) -> JsonObject:
    """Null is absent, one level down too: routers send every field that they know."""
    return {
        name: {k: v for k, v in value.items() if v is not None}
        for name in names
        if isinstance(value := raw.get(name), dict)
    }


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if len(metadata) > MAX_METADATA:
        raise InvalidRequestError(
            f"metadata has {len(metadata)} pairs; at most {MAX_METADATA} are allowed."
        )
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            raise InvalidRequestError(
                f"metadata {key[:MAX_METADATA_KEY]!r}: keys have at most {MAX_METADATA_KEY} "
                f"characters and values at most {MAX_METADATA_VALUE}."
            )


def _chat_tool(i: int, tool: JsonObject) -> JsonObject:
    kind = tool.get("type")
    if kind != "function":
        raise UnsupportedFeatureError(
            f"`tools[{i}]` of type {kind!r} is not supported: this server runs no tools itself. "
            'Describe it as a tool of type "function" and run it where you call from.'
        )
    for name in ("async", "defer_loading"):
        if tool.get(name):
            raise UnsupportedFeatureError(
                f"`tools[{i}].{name}` is not supported: every tool is in the prompt and its call "
                "is answered in the next request. Leave it away or send false."
            )
    if not isinstance(tool.get("name"), str):
        raise InvalidRequestError(f"tools[{i}].name must be a string, got {tool.get('name')!r}.")
    fields = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {k: tool[k] for k in fields if tool.get(k) is not None}}


def _chat_tool_choice(choice: str | JsonObject) -> str | JsonObject:
    if isinstance(choice, str):
        return choice
    kind = choice.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind == "allowed_tools":
        mode = choice.get("mode", "auto")
        if mode not in ("auto", "required"):
            raise InvalidRequestError(f"tool_choice.mode must be auto or required, got {mode!r}.")
        tools = choice.get("tools")
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise InvalidRequestError("tool_choice.tools must be a list of tools with a name.")
        return {"type": kind, kind: {"mode": mode, "tools": tools}}
    raise UnsupportedFeatureError(
        f"`tool_choice` of type {kind!r} is not supported: this server runs no tools itself. "
        "Allowed are function and allowed_tools."
    )


def _chat_format(text_format: JsonObject) -> JsonObject:
    kind = text_format.get("type", "text")
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        raise InvalidRequestError(
            f"text.format.type must be text, json_object or json_schema, got {kind!r}."
        )
    if not isinstance(text_format.get("schema"), dict):
        raise InvalidRequestError("text.format.schema must be a JSON schema, an object.")
    return {"type": kind, "json_schema": {k: v for k, v in text_format.items() if k != "type"}}
