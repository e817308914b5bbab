"""The bodies of Anthropic's /v1/messages and /v1/messages/count_tokens → a chat body."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.server.chat_types import ChatBody
from jaxserve.server.foreign_bodies import FOREIGN_UNSUPPORTED, common_fields
from jaxserve.server.json_body import JsonObject, parse, refuse_unsupported
from jaxserve.server.messages_input import chat_messages
from jaxserve.server.openai_types import CommonBody, Items

MIN_THINKING_BUDGET = 1024

MESSAGES_UNSUPPORTED = FOREIGN_UNSUPPORTED | {
    "container": "there are no hosted tools",
    "mcp_servers": "there are no hosted tools",
    "context_management": "a conversation is never shortened",
    "diagnostics": "the prefix cache tells only how many tokens it had",
    "response_format": "in /v1/messages it is output_config.format",
    "stop": "in /v1/messages it is stop_sequences",
}


class Thinking(BaseModel):
    """``thinking``: a budget is enforced with --enable-strict-thinking, else checked only."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=MIN_THINKING_BUDGET)] | None = None
    display: Annotated[
        Literal["summarized", "omitted"] | None, Field(description="Summarized: shown whole.")
    ] = None

    @property
    def is_enabled(self) -> bool | None:
        """None leaves it to the model."""
        return None if self.type == "adaptive" else self.type == "enabled"


class OutputConfig(BaseModel):
    """``output_config``: how hard to think, and the form of the answer."""

    effort: Annotated[str | None, Field(description="Given to the chat template.")] = None
    format: Annotated[JsonObject, Field(description="Of type json_schema, with a schema.")] = {}


class ToolChoice(BaseModel):
    """``tool_choice``: auto, any, none, or one tool by name."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @property
    def in_chat(self) -> str | JsonObject:
        """The same in chat's words."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return {"auto": "auto", "any": "required", "none": "none"}[self.type]


class TokenCountBody(CommonBody):
    """POST /v1/messages/count_tokens.

    SGLang's sampling fields (min_p, seed, ...) work in /v1/messages too.
    """

    messages: Items[JsonObject]
    system: str | Items[JsonObject] = ""
    thinking: Thinking | None = None
    tools: Annotated[
        Items[JsonObject], Field(description="Your own: of no type or of type custom.")
    ] = []
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig = OutputConfig()
    output_format: Annotated[
        JsonObject, Field(description="The older place of output_config.format.")
    ] = {}
    metadata: Annotated[JsonObject, Field(description="Not looked at.")] = {}
    chat_template_kwargs: JsonObject = {}

    @property
    def cap(self) -> int | None:
        """How many tokens may be generated."""
        return None

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return []

    @property
    def shows_thinking(self) -> bool:
        """Whether thinking blocks have their text."""
        return self.thinking is None or self.thinking.display != "omitted"

    def chat_body(self, *, is_strict: bool = False) -> ChatBody:
        """The same request in chat's words.

        Args:
            is_strict: a thinking budget is kept to.  Clients always send one, so it is no error
                where it cannot be.

        Raises:
            InvalidRequestError: a message, tool or format that chat does not take.
        """
        messages, continues = chat_messages(self.system, self.messages)
        choice = self.tool_choice
        enabled = None if self.thinking is None else self.thinking.is_enabled
        budget = self.thinking.budget_tokens if self.thinking is not None and is_strict else None
        return parse(
            ChatBody,
            common_fields(self)
            | {
                "messages": messages,
                "continue_final_message": continues,
                "max_completion_tokens": self.cap,
                "stop": self.stops,
                "tools": [_chat_tool(i, tool) for i, tool in enumerate(self.tools)],
                "tool_choice": None if choice is None else choice.in_chat,
                "parallel_tool_calls": choice is None or not choice.disable_parallel_tool_use,
                "reasoning": {"enabled": enabled, "max_tokens": budget},
                "reasoning_effort": self.output_config.effort,
                "response_format": _chat_format(self.output_config.format or self.output_format),
                "chat_template_kwargs": self.chat_template_kwargs,
            },
        )


class MessagesBody(TokenCountBody):
    """POST /v1/messages.

    ``max_tokens`` is a cap: it is shortened to what fits in the context.
    """

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Items[str] = []

    @property
    def cap(self) -> int | None:
        return self.max_tokens

    @property
    def stops(self) -> list[str]:
        return self.stop_sequences


B = TypeVar("B", bound=TokenCountBody)


def parse_messages_body(raw: JsonObject) -> MessagesBody:
    """The body of /v1/messages, checked as far as it can be without the model.

    Raises:
        BodyError: fields that are missing or of the wrong type.
        InvalidRequestError: values that are not built; the message names the field.
    """
    body = _parsed(MessagesBody, raw)
    budget = None if body.thinking is None else body.thinking.budget_tokens
    if budget is not None and budget >= body.max_tokens:
        raise InvalidRequestError(
            f"thinking.budget_tokens ({budget}) must be less than max_tokens ({body.max_tokens})."
        )
    return body


def parse_count_body(raw: JsonObject) -> TokenCountBody:
    """The body of /v1/messages/count_tokens.

    Raises:
        InvalidRequestError: as for /v1/messages.
    """
    return _parsed(TokenCountBody, raw)


def _parsed(kind: type[B], raw: JsonObject) -> B:
    if _keeps_everything(raw.get("context_management")):
        raw = {name: value for name, value in raw.items() if name != "context_management"}
    refuse_unsupported(raw, MESSAGES_UNSUPPORTED)
    body = parse(kind, raw)
    if body.n != 1:
        raise InvalidRequestError(f"n must be 1 in /v1/messages, got {body.n}.")
    thinking = body.thinking
    if thinking is not None and thinking.type == "enabled" and thinking.budget_tokens is None:
        raise InvalidRequestError(
            'thinking of type "enabled" needs budget_tokens, at least '
            f'{MIN_THINKING_BUDGET}; or send type "adaptive".'
        )
    choice = body.tool_choice
    if choice is not None and choice.type == "tool" and not choice.name:
        raise InvalidRequestError('tool_choice of type "tool" needs the name of a tool.')
    return body


def _keeps_everything(management: object) -> bool:
    """Whether it only says that no thinking is to be cleared, as some clients always do."""
    edits = management.get("edits") if isinstance(management, dict) else None
    return isinstance(edits, list) and all(
        isinstance(edit, dict)
        and str(edit.get("type")).startswith("clear_thinking_")
        and edit.get("keep") == "all"
        for edit in edits
    )


def _chat_tool(i: int, tool: JsonObject) -> JsonObject:
    kind = tool.get("type", "custom")
    if kind != "custom":
        raise UnsupportedFeatureError(
            f"`tools[{i}]` of type {kind!r} is not supported: this server runs no tools itself. "
            "Describe it with name, description and input_schema and run it where you call from."
        )
    if tool.get("defer_loading"):
        raise UnsupportedFeatureError(
            f"`tools[{i}].defer_loading` is not supported: every tool is in the prompt. Leave it "
            "away or send false."
        )
    if not isinstance(tool.get("name"), str):
        raise InvalidRequestError(f"tools[{i}].name must be a string, got {tool.get('name')!r}.")
    if not isinstance(tool.get("input_schema"), dict):
        raise InvalidRequestError(f"tools[{i}].input_schema must be a JSON schema, an object.")
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def _chat_format(output_format: JsonObject) -> JsonObject | None:
    if not output_format:
        return None
    if output_format.get("type") != "json_schema":
        raise InvalidRequestError(
            f"output_config.format.type must be json_schema, got {output_format.get('type')!r}."
        )
    if not isinstance(output_format.get("schema"), dict):
        raise InvalidRequestError("output_config.format.schema must be a JSON schema, an object.")
    schema = {"name": "output", "schema": output_format["schema"], "strict": True}
    return {"type": "json_schema", "json_schema": schema}
