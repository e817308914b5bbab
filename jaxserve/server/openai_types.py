"""What the bodies of OpenAI's endpoints share, and that of /v1/completions.

Unknown fields are ignored; null is absent; a known field that is not built is refused by name.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from jaxserve.errors import InvalidRequestError
from jaxserve.native_request import MAX_N, cache_namespace, session_params
from jaxserve.request import HiddenStates, SamplingParams, SessionParams
from jaxserve.sampling_dict import sampling_params_from_dict
from jaxserve.server.json_body import JsonObject
from jaxserve.server.output_grammar import grammar_of

T = TypeVar("T")
# The first wrong item refuses a list: naming a million of them takes a minute and 100 MB.
Items = Annotated[list[T], Field(fail_fast=True)]

DEFAULT_COMPLETION_TOKENS = 16
MAX_MODEL_CHARS = 4096  # every chunk of every choice has a copy

NOT_CARRIED = "the answer cannot carry it yet"
_PROCESSOR = "there are no custom logit processors"
_DISAGGREGATION = "prefill and decode are not disaggregated"
_ONE_ENGINE = "there is one engine, of rank 0"
COMMON_UNSUPPORTED = {
    "lora_path": "there are no LoRA adapters",
    "custom_logit_processor": _PROCESSOR,
    "custom_params": _PROCESSOR,
    "watermark": "texts are not watermarked",
    "return_routed_experts": NOT_CARRIED,
    "bootstrap_host": _DISAGGREGATION,
    "bootstrap_port": _DISAGGREGATION,
    "bootstrap_room": _DISAGGREGATION,
    "data_parallel_rank": _ONE_ENGINE,
    "routed_dp_rank": _ONE_ENGINE,
    "disagg_prefill_dp_rank": _DISAGGREGATION,
}
COMPLETION_UNSUPPORTED = COMMON_UNSUPPORTED | {"suffix": "the model does not fill in the middle"}


class StreamOptions(BaseModel):
    """What a stream tells about token counts."""

    model_config = ConfigDict(frozen=True)  # as a default it is not copied

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class CommonBody(BaseModel):
    """Fields of /v1/completions and /v1/chat/completions alike."""

    model_config = ConfigDict(extra="ignore")

    model: Annotated[
        str, Field(max_length=MAX_MODEL_CHARS, description="Any name; echoed in the answer.")
    ] = "default"
    n: Annotated[int, Field(ge=1, le=MAX_N, description="Samples per prompt.")] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    stop: str | Items[str] = Field(default_factory=list)
    seed: Annotated[int | None, Field(description="Always honoured.")] = None
    logit_bias: JsonObject = Field(
        default_factory=dict
    )  # its items are checked with the sampling fields
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int = 0
    stop_token_ids: Items[int] = Field(default_factory=list)
    stop_regex: str | Items[str] = Field(default_factory=list)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: Annotated[
        bool, Field(description="No tokenizer.json's decoder puts any; without effect.")
    ] = True
    no_stop_trim: bool = False
    rid: str | None = None
    priority: Annotated[
        int, Field(description="With --enable-priority-scheduling or --schedule-policy priority.")
    ] = 0
    cache_salt: Annotated[
        str, Field(description="Prefixes are shared only among equal cache_salt and extra_key.")
    ] = ""
    extra_key: str = ""
    session_params: JsonObject = Field(
        default_factory=dict, description="Continues a request of an open session."
    )
    response_format: JsonObject = Field(
        default_factory=dict,
        description="Of type `text`, `json_object`, `json_schema` or `structural_tag`. With a "
        "reasoning parser the output is held to it from the end of the reasoning on.",
    )
    regex: Annotated[
        str, Field(description="What the output must match; one of these four at most.")
    ] = ""
    ebnf: Annotated[str, Field(description="GBNF, SGLang's EBNF or Lark.")] = ""
    json_schema: Annotated[str | JsonObject, Field(description="The schema or its text.")] = ""
    structural_tag: str | JsonObject = ""
    return_token_ids: Annotated[
        bool, Field(description="Adds `token_ids` and `prompt_token_ids` to every choice.")
    ] = False
    return_hidden_states: Annotated[
        bool | Literal["last"],
        Field(
            description="Adds `hidden_states` to every choice: the one that its last token was "
            "made of. Needs --enable-return-hidden-states."
        ),
    ] = False
    return_cached_tokens_details: Annotated[
        bool, Field(description="Adds `sglext.cached_tokens_details` to the answer.")
    ] = False

    @property
    def cache_namespace(self) -> str:
        """Prefixes computed in one are never used in another."""
        return cache_namespace(extra_key=self.extra_key, cache_salt=self.cache_salt)

    @property
    def session(self) -> SessionParams | None:
        """The session whose request the prompt continues.

        Raises:
            InvalidRequestError: it names none.
        """
        if not self.session_params:
            return None
        return session_params("session_params", self.session_params)

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
            "stop_regex": self.stop_regex,
            "ignore_eos": self.ignore_eos,
            "logit_bias": self.logit_bias,
            "sampling_seed": self.seed,
            "skip_special_tokens": self.skip_special_tokens,
            "spaces_between_special_tokens": self.spaces_between_special_tokens,
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
        grammar = grammar_of(
            self.response_format,
            json_schema=self.json_schema,
            regex=self.regex,
            ebnf=self.ebnf,
            structural_tag=self.structural_tag,
        )
        hidden_states: HiddenStates | None = "last" if self.return_hidden_states else None
        if num_logprobs is None and grammar is None and hidden_states is None:
            return params  # a copy costs a validation
        return replace(
            params, num_logprobs=num_logprobs, grammar=grammar, hidden_states=hidden_states
        )


def sampling_defaults(mode: str, of_model: Mapping[str, object]) -> JsonObject:
    """What a request that is silent on it samples with.

    Args:
        mode: ``--sampling-defaults``; "openai" takes nothing from the model.
        of_model: the sampling fields of the model's generation_config.json.
    """
    if mode != "model":
        return {}
    defaults = dict(of_model)
    if defaults.get("top_k") == 0:
        del defaults["top_k"]  # what Hugging Face writes for "off"
    return defaults


class CompletionBody(CommonBody):
    """POST /v1/completions."""

    prompt: str | Items[int] | Items[str] | Items[Items[int]]
    max_tokens: int | None = None
    logprobs: Annotated[
        int | None,
        Field(description="How many of the likeliest tokens, at most 20. No text_offset: -1 each."),
    ] = None
    echo: Annotated[
        bool, Field(description="Puts the prompt in front, with `logprobs` also its logprobs.")
    ] = False
    best_of: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_N,
            description="Above n: so many samples, of which the n are told whose tokens are the "
            "likeliest on average; not with `stream`.",
        ),
    ] = None

    @property
    def num_samples(self) -> int:
        """Sequences to generate per prompt."""
        return max(self.n, self.best_of or 0)

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

    def completion_params(self, defaults: Mapping[str, object]) -> SamplingParams:
        """How to sample, with the prompt's logprobs where an echo shows them.

        Raises:
            InvalidRequestError: a value out of its range, or a ranking in a stream.
        """
        is_ranked = self.num_samples > self.n
        if is_ranked and self.stream:
            raise InvalidRequestError(
                f"best_of={self.best_of} above n={self.n} cannot be streamed: the best samples are "
                "known at the end. Send stream=false, or leave best_of away."
            )
        num_logprobs = 0 if is_ranked and self.logprobs is None else self.logprobs
        params = self.sampling_params(self.max_new_tokens, num_logprobs, defaults)
        if self.echo and self.logprobs is not None:
            return replace(params, prompt_logprobs_start=0)
        return params
