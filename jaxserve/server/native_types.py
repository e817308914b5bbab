"""The body of /generate: JSON → the sequences it asks for.

Decoding is strict and by hand, because clients know its messages: a wrong type is
``invalid type: string "a", expected i64``.  Keys that nobody knows are ignored, null is absent.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import orjson

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.request import SamplingParams
from jaxserve.sampling_dict import sampling_params_from_dict
from jaxserve.server.http_errors import FieldError
from jaxserve.server.json_body import refuse_unsupported

MAX_N = 1024
MAX_SEQUENCES = 65_536  # of one request: each costs a few kB and 20 µs before it is queued
Prompt = str | tuple[int, ...]
T = TypeVar("T")

_OUTPUT = "the answer cannot carry it yet"
_MULTIMODAL = "the model takes text only"
UNSUPPORTED = {
    "input_embeds": "prompts are text or input_ids",
    "image_data": _MULTIMODAL,
    "video_data": _MULTIMODAL,
    "audio_data": _MULTIMODAL,
    "token_ids_logprob": "only logprobs of output tokens are returned",
    "return_hidden_states": _OUTPUT,
    "return_routed_experts": _OUTPUT,
    "return_indexer_topk": _OUTPUT,
    "return_entropy": _OUTPUT,
    "return_bytes": _OUTPUT,
    "return_prompt_token_ids": _OUTPUT,
    "return_sampling_mask": _OUTPUT,
    "sampling_logprobs_mode": _OUTPUT,
    "session_params": "there are no sessions",
    "lora_path": "there are no LoRA adapters",
    "custom_logit_processor": "there are no custom logit processors",
    "require_reasoning": "there is no reasoning parser",
    "max_thinking_tokens": "there is no reasoning parser",
    "extra_key": "the prefix cache has one namespace",
    "cache_salt": "the prefix cache has one namespace",
}


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt to submit.  ``rid`` None lets the LLM draw one.

    ``clamps``: nobody asked for max_new_tokens, so it may be shortened to what fits.
    """

    prompt: Prompt
    params: SamplingParams
    rid: str | None
    clamps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateBody:
    """A decoded body.  Lists have one item per prompt."""

    prompts: list[Prompt]
    is_batch: bool
    sampling: list[Mapping[str, object]]
    rids: list[str | None]
    return_logprob: list[bool]
    top_logprobs_num: list[int]
    text_in_logprobs: bool
    stream: bool
    priority: int

    def calls(self) -> tuple[list[Call], int]:
        """The sequences to submit, and n, how often each is sampled.

        Raises:
            FieldError: sampling_params cannot be decoded.
            InvalidRequestError: a value is out of its range.
        """
        _, n = sampling_params_from_dict(self.sampling[0])
        check_num_sequences(len(self.prompts), n)
        pairs = [sampling_params_from_dict(fields) for fields in self.sampling]
        if any(other != n for _, other in pairs):
            raise InvalidRequestError(
                "The parallel_sample_num should be the same for all samples in sample params."
            )
        counts = Counter(rid for rid in self.rids if rid is not None)
        twice = [rid for rid, count in counts.items() if count > 1]
        if twice:
            raise InvalidRequestError(
                f"Duplicate request IDs detected within the request: {', '.join(twice)}"
            )
        return [self._call(i, params) for i, (params, _) in enumerate(pairs)], n

    def _call(self, i: int, params: SamplingParams) -> Call:
        if self.return_logprob[i]:
            params = replace(params, num_logprobs=self.top_logprobs_num[i])
        clamps = "max_new_tokens" not in self.sampling[i]
        return Call(self.prompts[i], params, self.rids[i], clamps)


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


def parse_generate(body: Mapping[str, object]) -> GenerateBody:
    """Decode the body of /generate.

    Raises:
        FieldError: a field of the wrong type.
        UnsupportedFeatureError: a field that is not built, named.
        InvalidRequestError: no prompt, or lists whose lengths disagree.
    """
    refuse_unsupported(body, UNSUPPORTED)
    prompts, is_batch = _prompts(body)
    count = len(prompts)
    nothing: Mapping[str, object] = {}
    sampling = _per_prompt(body, "sampling_params", nothing, _object, count)
    return_logprob = _per_prompt(body, "return_logprob", False, _bool, count)
    starts = _per_prompt(body, "logprob_start_len", -1, _int, count)
    for wanted, start in zip(return_logprob, starts, strict=True):
        if wanted and start != -1:
            raise UnsupportedFeatureError(
                f"`logprob_start_len` must be -1, got {start}: logprobs of prompt tokens are not "
                "supported. Leave it away for the logprobs of output tokens."
            )
    return GenerateBody(
        prompts=prompts,
        is_batch=is_batch,
        sampling=sampling,
        rids=_rids(body, is_batch, count),
        return_logprob=return_logprob,
        top_logprobs_num=_per_prompt(body, "top_logprobs_num", 0, _int, count),
        text_in_logprobs=_scalar(body, "return_text_in_logprobs", False, _bool),
        stream=_scalar(body, "stream", False, _bool),
        priority=_scalar(body, "priority", 0, _int),
    )


def _prompts(body: Mapping[str, object]) -> tuple[list[Prompt], bool]:
    text, ids = body.get("text"), body.get("input_ids")
    if (text is None) == (ids is None):
        raise InvalidRequestError(
            "Either text, input_ids or input_embeds should be provided."
            + ("" if text is None else " Both text and input_ids were given.")
        )
    if isinstance(text, str):
        return [text], False
    if text is not None:
        if not isinstance(text, list):
            raise _wrong("text", text, "a string or a sequence of strings")
        return [_string("text", item) for item in _filled("text", text)], True
    if not isinstance(ids, list):
        raise _wrong("input_ids", ids, "a sequence")
    if isinstance(_filled("input_ids", ids)[0], list):
        return [_token_ids(item) for item in ids], True
    return [_token_ids(ids)], False


def _token_ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _wrong("input_ids", value, "a sequence")
    for item in _filled("input_ids", value):
        if type(item) is not int:  # bool is an int to isinstance
            raise _wrong("input_ids", item, "i64")
    return tuple(value)


def _filled(name: str, value: list[object]) -> list[object]:
    if not value:
        raise InvalidRequestError(f"{name} cannot be empty.")
    return value


def _rids(body: Mapping[str, object], is_batch: bool, count: int) -> list[str | None]:
    value = body.get("rid")
    if value is None or value == "":
        return [None] * count
    if isinstance(value, list):
        if len(value) != count:
            raise _wrong_length("rid", len(value), count)
        return [None if item is None else _string("rid", item) for item in value]
    rid = _string("rid", value)
    return [f"{rid}_{i}" for i in range(count)] if is_batch else [rid]


def _per_prompt(
    body: Mapping[str, object],
    name: str,
    default: T,
    decode: Callable[[str, object], T],
    count: int,
) -> list[T]:
    value = body.get(name)
    if not isinstance(value, list):
        return [default if value is None else decode(name, value)] * count
    if len(value) != count:
        raise _wrong_length(name, len(value), count)
    return [default if item is None else decode(name, item) for item in value]


def _scalar(
    body: Mapping[str, object], name: str, default: T, decode: Callable[[str, object], T]
) -> T:
    value = body.get(name)
    return default if value is None else decode(name, value)


def _string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "a string")
    return value


def _bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "a boolean")
    return value


def _int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, value, "i64")
    return value


def _object(name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _wrong(name, value, "a map")
    return value


def _wrong(name: str, value: object, expected: str) -> FieldError:
    shown = orjson.dumps(value).decode()
    shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
    match value:
        case bool():
            given = f"boolean `{shown}`"
        case int():
            given = f"integer `{shown}`"
        case float():
            given = f"floating point `{shown}`"
        case str():
            given = f"string {shown}"
        case list():
            given = "sequence"
        case dict():
            given = "map"
        case _:
            given = "null"
    return FieldError(f"{name}: invalid type: {given}, expected {expected}")


def _wrong_length(name: str, given: int, count: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"{name} has {given} items, the request has {count} prompts; send one item per prompt "
        "or a single value for all."
    )
