"""What /generate, and ``LLM.generate``, are asked for: JSON → the sequences to generate.

Keys that nobody knows are ignored, null is absent.
"""

import hashlib
import json
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.native_fields import (
    Fields,
    boolean,
    integer,
    integers,
    mapping,
    per_prompt,
    scalar,
    string,
    unsigned,
    wrong_length,
)
from jaxserve.native_prompts import Prompt, prompts_of
from jaxserve.native_refusals import check_supported
from jaxserve.request import (
    HiddenStates,
    InputEmbeds,
    SamplingParams,
    SessionParams,
    check_rid,
)
from jaxserve.sampling_dict import beam_width, sampling_params_from_dict

MAX_N = 1024
MAX_NAMESPACE_CHARS = 256
MAX_SEQUENCES = 65_536  # of one request: each costs a few kB and 20 µs before it is queued
NO_PROMPT_LOGPROBS = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """What is said of one prompt beside how it is sampled.

    ``rid`` None lets the LLM draw one.  ``num_logprobs`` None: no logprobs at all.
    ``logprob_start_len`` None: not given.
    """

    rid: str | None = None
    num_logprobs: int | None = None
    logprob_start_len: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    hidden_states: HiddenStates | None = None
    cache_namespace: str = ""
    session: SessionParams | None = None

    def applied_to(self, params: SamplingParams) -> SamplingParams:
        """``params`` with the logprobs and hidden states that are asked for."""
        if self.hidden_states is not None:
            params = replace(params, hidden_states=self.hidden_states)
        if self.num_logprobs is None:
            return params
        start = self.logprob_start_len
        if start is None and params.max_new_tokens == 0:
            start = 0  # else such a request would return nothing at all
        return replace(
            params,
            num_logprobs=self.num_logprobs,
            logprob_token_ids=self.logprob_token_ids,
            prompt_logprobs_start=None if start == NO_PROMPT_LOGPROBS else start,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What is said of the whole request: what its answers hold."""

    text_in_logprobs: bool = False
    prompt_token_ids: bool = False
    reasoning: bool = False  # the output begins with reasoning: see require_reasoning
    max_thinking_tokens: int | None = None  # of the reasoning, before its end is forced
    stream: bool = False
    priority: int = 0
    no_logs: bool = False  # nothing of it is written to the request log


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt to submit.

    ``clamps``: nobody asked for max_new_tokens, so it may be shortened to what fits.
    ``beam_width``: above 1, n is how many of the beams are returned.
    """

    prompt: Prompt
    params: SamplingParams
    options: PromptOptions
    clamps: bool
    beam_width: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """A decoded body.  Lists have one item per prompt."""

    prompts: list[Prompt]
    is_batch: bool
    sampling: list[Fields]
    has_limit: list[bool]  # whether the prompt's own sampling_params name max_new_tokens
    options: list[PromptOptions]
    shown: Shown

    @property
    def beam_width(self) -> int:
        """How many beams each prompt is searched with; see ``sampling_dict.beam_width``."""
        return beam_width(self.sampling)

    def calls(self) -> tuple[list[Call], int]:
        """The sequences to submit, and n, how often each is sampled.

        Raises:
            SamplingFieldError: sampling_params cannot be decoded.
            InvalidRequestError: a value is out of its range.
        """
        width = self.beam_width
        sampling = [
            {name: value for name, value in fields.items() if name != "beam_width"}
            for fields in self.sampling
        ]
        _, n = sampling_params_from_dict(sampling[0])
        check_num_sequences(len(self.prompts), max(n, min(width, MAX_N)))  # width has its own limit
        pairs = [sampling_params_from_dict(fields) for fields in sampling]
        if any(other != n for _, other in pairs):
            raise InvalidRequestError(
                "The parallel_sample_num should be the same for all samples in sample params."
            )
        return [
            Call(
                self.prompts[i],
                self.options[i].applied_to(params),
                self.options[i],
                not self.has_limit[i],
                width,
            )
            for i, (params, _) in enumerate(pairs)
        ], n


def check_num_sequences(num_prompts: int, n: int) -> None:
    """Refuse a request that would keep the event loop to itself for minutes.

    Raises:
        InvalidRequestError: ``n`` is too large, or is together with the prompts.
    """
    if not 1 <= n <= MAX_N:
        raise InvalidRequestError(f"n must be in [1, {MAX_N}], got {n}.")
    if num_prompts * n > MAX_SEQUENCES:
        raise InvalidRequestError(
            f"{num_prompts} prompts with n={n} are {num_prompts * n} sequences, a request may have "
            f"{MAX_SEQUENCES}; send them in several requests."
        )


def cache_namespace(extra_key: str | None, cache_salt: str | None) -> str:
    """The name under which prefixes are cached; "" for what names nothing."""
    if not extra_key and not cache_salt:
        return ""
    name = json.dumps([cache_salt or "", extra_key or ""])  # a separator cannot be forged
    if len(name) <= MAX_NAMESPACE_CHARS:
        return name
    return hashlib.sha256(name.encode()).hexdigest()  # the cache keeps it as long as the prefixes


def parse_generate(body: Fields, preferred: Fields | None = None) -> GenerateRequest:
    """Decode the body of /generate.

    Args:
        preferred: sampling_params where the body gives none.

    Raises:
        SamplingFieldError: a field of the wrong type.
        UnsupportedFeatureError: a field that is not built, named.
        InvalidRequestError: no prompt, or lists whose lengths disagree.
    """
    check_supported(body)
    prompts, is_batch = prompts_of(body)
    count = len(prompts)
    whole = shown(body)
    refuse_without_ids(prompts, whole)
    nothing: Fields = {}
    sampling = per_prompt(body, "sampling_params", nothing, mapping, count)
    return GenerateRequest(
        prompts=prompts,
        is_batch=is_batch,
        sampling=[{**(preferred or nothing), **given} for given in sampling],
        has_limit=["max_new_tokens" in given for given in sampling],
        options=prompt_options(body, count, is_batch=is_batch),
        shown=whole,
    )


def shown(body: Fields) -> Shown:
    """The fields that are for the request as a whole."""
    return Shown(
        text_in_logprobs=scalar(body, "return_text_in_logprobs", False, boolean),
        prompt_token_ids=scalar(body, "return_prompt_token_ids", False, boolean),
        reasoning=scalar(body, "require_reasoning", False, boolean),
        max_thinking_tokens=scalar(body, "max_thinking_tokens", None, unsigned),
        stream=scalar(body, "stream", False, boolean),
        priority=scalar(body, "priority", 0, integer),
        no_logs=scalar(body, "no_logs", False, boolean),
    )


def refuse_without_ids(prompts: Sequence[object], wanted: Shown) -> None:
    """Refuse what prompts of embeddings cannot have.

    Raises:
        UnsupportedFeatureError: names the field.
    """
    if not any(isinstance(prompt, InputEmbeds) for prompt in prompts):
        return
    for name, is_wanted in (
        ("return_prompt_token_ids", wanted.prompt_token_ids),
        ("require_reasoning", wanted.reasoning),
    ):
        if is_wanted:
            raise UnsupportedFeatureError(
                f"`{name}` is not supported with input_embeds: they have no token ids. Leave it "
                "away or send false."
            )


def prompt_options(body: Fields, count: int, *, is_batch: bool) -> list[PromptOptions]:
    """The fields that are for each of ``count`` prompts."""
    wants = per_prompt(body, "return_logprob", False, boolean, count)
    tops = per_prompt(body, "top_logprobs_num", 0, integer, count)
    starts: list[int | None] = per_prompt(body, "logprob_start_len", None, _start, count)
    token_ids = _logprob_token_ids(body, count, is_batch)
    hidden: list[HiddenStates | None] = per_prompt(
        body, "return_hidden_states", None, hidden_states, count
    )
    keys: list[str | None] = per_prompt(body, "extra_key", None, string, count)
    salts: list[str | None] = per_prompt(body, "cache_salt", None, string, count)
    sessions: list[SessionParams | None] = per_prompt(
        body, "session_params", None, session_params, count
    )
    return [
        PromptOptions(
            rid=rid,
            num_logprobs=tops[i] if wants[i] else None,
            logprob_start_len=starts[i],
            logprob_token_ids=token_ids[i],
            hidden_states=hidden[i],
            cache_namespace=cache_namespace(keys[i], salts[i]),
            session=sessions[i],
        )
        for i, rid in enumerate(_rids(body, is_batch, count))
    ]


def hidden_states(name: str, value: object) -> HiddenStates | None:
    """Which hidden states ``value`` asks for: true, "last", or none with false.

    Raises:
        InvalidRequestError: it is something else.
    """
    if value is True:
        return "all"
    if value is False:
        return None
    if value == "last":
        return "last"
    raise InvalidRequestError(
        f"{name} must be a boolean or the string literal 'last', got {reprlib.repr(value)}."
    )


def _rids(body: Fields, is_batch: bool, count: int) -> Sequence[str | None]:
    value = body.get("rid")
    if value is None or value == "":
        return [None] * count
    if not isinstance(value, list):
        rid = string("rid", value)
        check_rid(rid)
        return [f"{rid}_{i}" for i in range(count)] if is_batch else [rid]
    if len(value) != count:
        raise wrong_length("rid", len(value), count)
    rids = [None if item is None else string("rid", item) for item in value]
    twice = [rid for rid, times in Counter(rids).items() if rid is not None and times > 1]
    if twice:
        raise InvalidRequestError(
            f"Duplicate request IDs detected within the request: {', '.join(twice)}"
        )
    return rids


def _start(name: str, value: object) -> int:
    start = integer(name, value)
    if start < NO_PROMPT_LOGPROBS:
        raise InvalidRequestError(
            f"{name} must be -1 (no logprobs of the prompt) or at least 0, got {start}."
        )
    return start


def _logprob_token_ids(body: Fields, count: int, is_batch: bool) -> list[tuple[int, ...]]:
    """One list for all prompts, or a list of lists."""
    name = "token_ids_logprob"
    value = body.get(name)
    if is_batch and isinstance(value, list) and any(isinstance(item, list) for item in value):
        return per_prompt(body, name, (), integers, count)
    return [() if value is None else integers(name, value)] * count


def session_params(name: str, value: object) -> SessionParams:
    """The object that a client sends under ``name``.

    Raises:
        SamplingFieldError: a field of the wrong type.
        InvalidRequestError: no session is named.
    """
    fields = mapping(name, value)
    if fields.get("id") is None:
        raise InvalidRequestError(
            "session_params needs the `id` of an open session; open one with /open_session."
        )
    return SessionParams(
        id=string("session_params.id", fields["id"]),
        rid=scalar(fields, "rid", "", string) or None,
        offset=scalar(fields, "offset", 0, integer),
        replace=scalar(fields, "replace", False, boolean),
        drop_previous_output=scalar(fields, "drop_previous_output", False, boolean),
    )
