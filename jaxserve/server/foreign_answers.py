"""The answers of /v1/responses, /v1/messages and Ollama's endpoints, as they are documented.

Answers are built as plain objects; the tests hold them against these types, with nothing to spare.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from jaxserve.server.json_body import JsonObject


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


# --- /v1/responses ---


class InputTokensDetails(_Answer):
    cached_tokens: int
    cache_write_tokens: Annotated[int, Field(description="Always 0: caching costs nothing.")]


class OutputTokensDetails(_Answer):
    reasoning_tokens: int


class ResponseUsage(_Answer):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class OutputText(_Answer):
    type: Literal["output_text"]
    text: str
    annotations: list[JsonObject]
    logprobs: list[JsonObject]


class MessageItem(_Answer):
    """What the model says."""

    id: str
    type: Literal["message"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningText(_Answer):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(_Answer):
    """What the model thinks first."""

    id: str
    type: Literal["reasoning"]
    status: Literal["in_progress", "completed", "incomplete"]
    summary: list[JsonObject]
    content: list[ReasoningText]
    encrypted_content: Annotated[
        str | None, Field(description="The same text in base64, where `include` asks for it.")
    ]


class FunctionCallItem(_Answer):
    """A call of one of the request's functions."""

    id: str
    type: Literal["function_call"]
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: Annotated[str, Field(description="JSON as the model wrote it.")]


class ResponseObject(_Answer):
    """A response: of POST /v1/responses, stored, and in the events of a stream."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Annotated[
        Literal["queued", "in_progress", "completed", "incomplete", "cancelled", "failed"],
        Field(description="cancelled: aborted, on whatever way."),
    ]
    background: bool
    completed_at: int | None
    error: JsonObject | None
    incomplete_details: JsonObject | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[MessageItem | ReasoningItem | FunctionCallItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: JsonObject
    safety_identifier: str | None
    service_tier: str
    store: Annotated[bool, Field(description="Whether it is stored.")]
    temperature: float | None
    text: JsonObject
    tool_choice: str | JsonObject
    tools: list[JsonObject]
    top_logprobs: int
    top_p: float | None
    truncation: str
    usage: ResponseUsage | None
    user: str | None


class InputTokenCount(_Answer):
    """POST /v1/responses/input_tokens."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedResponse(_Answer):
    """DELETE /v1/responses/{id}."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItemList(_Answer):
    """GET /v1/responses/{id}/input_items."""

    object: Literal["list"]
    data: list[JsonObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


# --- /v1/messages ---


class ThinkingTokens(_Answer):
    thinking_tokens: int


class MessageUsage(_Answer):
    """Token counts; the prompt's are those that were cached plus those that were not."""

    input_tokens: int
    cache_creation_input_tokens: Annotated[
        int, Field(description="Always 0: caching costs nothing.")
    ]
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens


class TextBlock(_Answer):
    type: Literal["text"]
    text: str


class ThinkingBlock(_Answer):
    type: Literal["thinking"]
    thinking: str
    signature: Annotated[str, Field(description="Signs nothing, and is not checked.")]


class ToolUseBlock(_Answer):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Annotated[JsonObject, Field(description="Empty where the call broke off.")]


class MessageObject(_Answer):
    """A message: of POST /v1/messages, and without content in the first event of a stream."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: Annotated[
        Literal[
            "end_turn", "max_tokens", "stop_sequence", "tool_use",
            "model_context_window_exceeded", "pause_turn",
        ] | None,
        Field(description="pause_turn: aborted; send what there is back, to go on."),
    ]  # fmt: skip
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(_Answer):
    """POST /v1/messages/count_tokens."""

    input_tokens: int


# --- Ollama ---


class _OllamaAnswer(_Answer):
    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "abort", "load", "unload"] | None = None
    total_duration: Annotated[int | None, Field(description="Nanoseconds, as all durations.")] = (
        None
    )
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[JsonObject] | None = None


class OllamaMessage(_Answer):
    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[JsonObject] | None = None


class OllamaChatAnswer(_OllamaAnswer):
    """POST /api/chat, and each line of its stream."""

    message: OllamaMessage


class OllamaGenerateAnswer(_OllamaAnswer):
    """POST /api/generate, and each line of its stream."""

    response: str
    thinking: str | None = None
