"""The bodies of /v1/completions and /v1/chat/completions → prompt and SamplingParams.

Unknown fields are ignored; null is absent; a known field that is not built is refused by name.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.request import SamplingParams
from jaxserve.sampling_dict import sampling_params_from_dict
from jaxserve.server.json_body import JsonObject
from jaxserve.server.native_types import MAX_N

T = TypeVar("T")
# The first wrong item refuses a list: naming a million of them takes a minute and 100 MB.
Items = Annotated[list[T], Field(fail_fast=True)]

DEFAULT_COMPLETION_TOKENS = 16
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_CONSTRAINED = "output cannot be constrained to a grammar"
_OUTPUT = "the answer cannot carry it yet"
_COMMON_UNSUPPORTED = {
    "regex": _CONSTRAINED,
    "ebnf": _CONSTRAINED,
    "json_schema": _CONSTRAINED,
    "structural_tag": _CONSTRAINED,
    "stop_regex": "only stop strings and stop_token_ids end a text",
    "lora_path": "there are no LoRA adapters",
    "session_params": "there are no sessions",
    "custom_logit_processor": "there are no custom logit processors",
    "custom_params": "there are no custom logit processors",
    "extra_key": "the prefix cache has one namespace",
    "cache_salt": "the prefix cache has one namespace",
    "return_hidden_states": _OUTPUT,
    "return_routed_experts": _OUTPUT,
    "return_cached_tokens_details": _OUTPUT,
    "return_token_ids": _OUTPUT,
    "return_prompt_token_ids": _OUTPUT,
    "return_meta_info": _OUTPUT,
}
COMPLETION_UNSUPPORTED = _COMMON_UNSUPPORTED | {"suffix": "the model does not fill in the middle"}
CHAT_UNSUPPORTED = _COMMON_UNSUPPORTED | {
    "reasoning": "there is no reasoning parser",
    "functions": "tools are not supported",
    "function_call": "tools are not supported",
    "audio": "the model takes text only",
}


class StreamOptions(BaseModel):
    """What a stream tells about token counts."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _CommonBody(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str = "default"
    n: Annotated[int, Field(ge=1, le=MAX_N)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    stop: str | Items[str] = []
    seed: int | None = None
    logit_bias: JsonObject = {}  # its items are checked with the sampling fields
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int = 0
    stop_token_ids: Items[int] = []
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    rid: str | None = None
    priority: int = 0
    response_format: JsonObject = {}

    def check_response_format(self) -> None:
        """Refuse constrained output.

        Raises:
            UnsupportedFeatureError: any type but text.
        """
        kind = self.response_format.get("type")
        if kind not in (None, "text"):
            raise UnsupportedFeatureError(
                f"`response_format` {kind!r} is not supported: {_CONSTRAINED}. "
                'Leave it away or send {"type": "text"}.'
            )

    def sampling_params(
        self,
        max_new_tokens: int | None,
        num_logprobs: int | None,
        defaults: Mapping[str, object],
    ) -> SamplingParams:
        """How to sample; what the request leaves open comes from ``defaults``.

        Raises:
            InvalidRequestError: a value out of its range.
        """
        fields: JsonObject = {
            "max_new_tokens": max_new_tokens,
            "min_new_tokens": self.min_tokens,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "ignore_eos": self.ignore_eos,
            "logit_bias": self.logit_bias,
            "sampling_seed": self.seed,
            "skip_special_tokens": self.skip_special_tokens,
            "no_stop_trim": self.no_stop_trim,
        }
        own = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        for name, value in own.items():
            fields[name] = defaults.get(name) if value is None else value
        params, _ = sampling_params_from_dict(fields)
        return replace(params, num_logprobs=num_logprobs)


class CompletionBody(_CommonBody):
    """POST /v1/completions."""

    prompt: str | Items[int] | Items[str] | Items[Items[int]]
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool = False
    best_of: int | None = None

    @property
    def has_implicit_limit(self) -> bool:
        """Nobody asked for the limit, so it may be shortened to what fits."""
        return self.max_tokens is None

    @property
    def max_new_tokens(self) -> int:
        """The limit: OpenAI's default is 16."""
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[str | tuple[int, ...]]:
        """One item per prompt.

        Raises:
            InvalidRequestError: there is none.
        """
        if not self.prompt:
            raise InvalidRequestError("Prompt cannot be empty")
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [tuple(self.prompt)]
        return [p if isinstance(p, str) else tuple(p) for p in self.prompt]

    def check(self) -> None:
        """Refuse combinations that are not built.

        Raises:
            UnsupportedFeatureError: names the field.
        """
        self.check_response_format()
        if self.best_of is not None and self.best_of > self.n:
            raise UnsupportedFeatureError(
                f"`best_of` {self.best_of} is larger than n={self.n}: ranking is not supported. "
                "Leave it away and raise n."
            )
        if self.echo and self.logprobs is not None:
            raise UnsupportedFeatureError(
                "`echo` together with `logprobs` is not supported: logprobs of prompt tokens are "
                "not returned. Leave one of them away."
            )


class ChatBody(_CommonBody):
    """POST /v1/chat/completions."""

    messages: Items[JsonObject] = []
    input_ids: Items[int] = []
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    tools: Items[JsonObject] = []
    tool_choice: str | JsonObject = "auto"
    reasoning_effort: str | None = None
    separate_reasoning: bool = True
    stream_reasoning: bool = True
    chat_template_kwargs: JsonObject = {}
    continue_final_message: bool = False

    @property
    def max_new_tokens(self) -> int | None:
        """The limit asked for; None is "to the end of the context"."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def has_implicit_limit(self) -> bool:
        """Never: without a limit there is none to shorten."""
        return False

    @property
    def template_kwargs(self) -> JsonObject:
        """What the chat template is given beside the messages."""
        if self.reasoning_effort is None:
            return self.chat_template_kwargs
        return {"reasoning_effort": self.reasoning_effort} | self.chat_template_kwargs

    def check(self, context_len: int) -> None:
        """Refuse what is not built, and a limit that no prompt could have.

        Raises:
            UnsupportedFeatureError: names the field.
            InvalidRequestError: contradictory or too large values.
        """
        self._check_tools()
        self.check_response_format()
        limit = self.max_new_tokens
        if limit is not None and limit > context_len:
            raise InvalidRequestError(
                f"max_completion_tokens is too large: {limit}."
                f"This model supports at most {context_len} completion tokens."
            )

    def _check_tools(self) -> None:
        if self.tool_choice == "none":
            return
        if self.tools:
            raise UnsupportedFeatureError(
                "`tools` is not supported: the model's tool calls are not parsed. Leave it away "
                'or send tool_choice "none".'
            )
        if self.tool_choice == "required":
            raise InvalidRequestError("Tools cannot be empty if tool choice is set to required.")
        if isinstance(self.tool_choice, dict):
            raise InvalidRequestError(
                "Tools cannot be empty if tool choice is set to a specific tool."
            )

    def rendered_messages(self) -> list[dict[str, object]]:
        """The messages as a text-only chat template takes them: contents are strings.

        Raises:
            InvalidRequestError: no message, an unknown role, a content that is no text.
        """
        if not self.messages:
            raise InvalidRequestError("Messages cannot be empty.")
        return [_message(i, message) for i, message in enumerate(self.messages)]


def _message(i: int, message: JsonObject) -> dict[str, object]:
    role = message.get("role")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise InvalidRequestError(
            f"messages[{i}].role must be one of {', '.join(ROLES)}, got {role!r}."
        )
    role = role.lower()
    content = message.get("content")
    if content is None and role != "assistant":
        raise InvalidRequestError(f"messages[{i}].content is missing.")
    rest = {k: v for k, v in message.items() if v is not None and k not in ("role", "content")}
    return {"role": role, "content": _content(i, content), **rest}


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
