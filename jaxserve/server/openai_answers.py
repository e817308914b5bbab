"""What OpenAI's endpoints answer, described for /openapi.json and the documents.

Answers are written as plain dicts and bytes; tests hold them to these types.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

JsonMap = dict[str, object]
FinishName = Literal["stop", "length", "tool_calls", "abort"]
Matched = Annotated[
    int | str | None, Field(description="The stop token's id or the stop string; else null.")
]


class CachedTokens(BaseModel):
    """Prompt tokens that came from the prefix cache."""

    cached_tokens: int


class ReasoningTokens(BaseModel):
    """Output tokens that were reasoning."""

    reasoning_tokens: int


class UsageObject(BaseModel):
    """Token counts; a prompt counts once, whatever n is."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: Annotated[
        CachedTokens | None, Field(description="Only with --enable-cache-report.")
    ]
    reasoning_tokens: int
    completion_tokens_details: Annotated[
        ReasoningTokens | None, Field(description="Only with --reasoning-parser.")
    ]


class Metadata(BaseModel):
    """Of the weights that answered."""

    weight_version: str


class TopLogprob(BaseModel):
    """A token that was likely."""

    token: str
    bytes: list[int]
    logprob: float


class ChatLogprob(TopLogprob):
    """The token that was chosen."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """One item per token of the output."""

    content: list[ChatLogprob]


class FunctionObject(BaseModel):
    """The arguments are JSON text as the model wrote it."""

    name: str
    arguments: str


class ToolCallObject(BaseModel):
    """One call."""

    id: str
    index: int
    type: Literal["function"]
    function: FunctionObject


class MessageObject(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: Annotated[
        str | None, Field(description="Null if there are calls or reasoning and nothing else.")
    ]
    reasoning_content: str | None
    tool_calls: list[ToolCallObject] | None


class ChatChoice(BaseModel):
    """One sample."""

    index: int
    message: MessageObject
    logprobs: ChatLogprobs | None
    finish_reason: FinishName
    matched_stop: Matched
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    hidden_states: list[float] | None = None
    meta_info: JsonMap | None = None


class ChatCompletion(BaseModel):
    """The answer of /v1/chat/completions without ``stream``."""

    id: Annotated[str, Field(description="The request's rid.")]
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageObject
    metadata: Metadata
    sglext: JsonMap | None = None


class CompletionLogprobs(BaseModel):
    """One item per token, with ``echo`` those of the prompt first; its first has nulls."""

    text_offset: Annotated[list[int], Field(description="Not computed: -1 each.")]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    """One sample of one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishName
    matched_stop: Matched
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    hidden_states: list[float] | None = None


class Completion(BaseModel):
    """The answer of /v1/completions without ``stream``."""

    id: Annotated[str, Field(description="The request's rid.")]
    object: Literal["text_completion"]
    created: int
    model: str
    choices: Annotated[list[CompletionChoice], Field(description="Prompts first, then samples.")]
    usage: UsageObject
    metadata: Metadata
    sglext: JsonMap | None = None


class ModelCard(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: Annotated[int, Field(description="Prompt and output together, in tokens.")]


class ModelList(BaseModel):
    """All served models: one."""

    object: Literal["list"]
    data: list[ModelCard]


class Scores(BaseModel):
    """The answer of /v1/score."""

    object: Literal["scoring"]
    model: str
    scores: Annotated[list[list[float]], Field(description="Per item, one per label token.")]
    token_logprobs: None
    pooled_hidden_states: None
    usage: UsageObject
