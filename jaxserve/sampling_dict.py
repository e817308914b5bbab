"""The native API's ``sampling_params`` object as ``SamplingParams`` and ``n``.

``null`` means the default everywhere.  A name that is not the API's is an error, and so is a value
that asks for something not built.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.native_fields import (
    INT32,
    SamplingFieldError,
    boolean,
    integer,
    integers,
    mapping,
    string,
    wrong_type,
)
from jaxserve.request import Grammar, GrammarKind, SamplingParams

__all__ = ["SamplingFieldError", "sampling_params_from_dict"]

WHOLE_VOCABULARY = 2**30  # what SGLang's clients send for "no top_k"
GRAMMAR_KINDS: tuple[GrammarKind, ...] = ("json_schema", "regex", "ebnf", "structural_tag")


def sampling_params_from_dict(given: Mapping[str, Any] | None) -> tuple[SamplingParams, int]:
    """Translate, and return the parameters and ``n``, the number of samples per prompt.

    Raises:
        SamplingFieldError: an unknown name or a wrong type.
        UnsupportedFeatureError: a known name whose value needs what is not built.
        InvalidRequestError: a value out of its range.
    """
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise wrong_type(given, "struct SamplingParams")
    for name in given:
        if name not in FIELDS:
            expected = ", ".join(f"`{known}`" for known in FIELDS)
            raise SamplingFieldError(f"unknown field `{name}`, expected one of {expected}")
    values = {name: FIELDS[name](value) for name, value in given.items() if value is not None}
    _check_unsupported(values)
    values["grammar"] = _grammar(values)
    if "max_new_tokens" in given and given["max_new_tokens"] is None:
        values["max_new_tokens"] = None
    n = values.pop("n", 1)
    if n < 1:
        raise InvalidRequestError(f"n must be at least 1, got {n}.")
    if "sampling_seed" in values:
        values["seed"] = values.pop("sampling_seed")
    return SamplingParams(**values), n


def beam_width(sampling: Iterable[Mapping[str, Any]]) -> int:
    """How many beams the prompts of a request are searched with; 1: they are sampled.

    Raises:
        SamplingFieldError: it is no integer.
        InvalidRequestError: it is not above 0, or not the same for all prompts.
    """
    given = (fields.get("beam_width") for fields in sampling)
    widths = {1 if value is None else _int(value) for value in given}
    if len(widths) > 1:
        raise InvalidRequestError(
            "The beam_width should be the same for all samples in sample params."
        )
    width = widths.pop()
    if width < 1:
        raise InvalidRequestError(f"beam_width must be at least 1, got {width}.")
    return width


def _check_unsupported(values: dict[str, Any]) -> None:
    """Take out the known names that have no field of ours; refuse those that ask for something."""
    for name, is_neutral in _NEUTRAL.items():
        if name in values and not is_neutral(values.pop(name)):
            raise UnsupportedFeatureError(f"sampling_params.{name} {_REFUSED[name]}; leave it out")


def _grammar(values: dict[str, Any]) -> Grammar | None:
    """Take out the grammar fields; an empty one is the same as none."""
    found = [Grammar(kind, source) for kind in GRAMMAR_KINDS if (source := values.pop(kind, ""))]
    if len(found) > 1:
        raise InvalidRequestError(
            "Only one of json_schema, regex, ebnf, or structural_tag can be set."
        )
    return found[0] if found else None


# These messages do not name their field: SGLang's do not.


def _int32(value: object) -> int:
    return integer("", value, INT32, "i32")


def _int(value: object) -> int:
    return integer("", value)


def _ints(value: object) -> tuple[int, ...]:
    return integers("", value)


def _bool(value: object) -> bool:
    return boolean("", value)


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(value, "f64")
    try:
        return float(value)
    except OverflowError as error:
        raise SamplingFieldError("invalid value: integer out of range, expected f64") from error


def _seed(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SamplingFieldError(f"sampling_seed must be an integer, got {type(value).__name__}.")
    return value


def _top_k(value: object) -> int:
    top_k = _int(value)
    if top_k == -1 or top_k >= WHOLE_VOCABULARY:
        return 0
    if top_k < 1:
        raise InvalidRequestError(f"top_k must be -1 (disable) or at least 1, got {top_k}.")
    return top_k


def _strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise wrong_type(value, "a string or a sequence of strings")
    return tuple(text for item in value if (text := string("", item)))


def _source(value: object) -> str:
    return string("", value)


def _json_source(value: object) -> str:
    """A schema or tag as JSON text, or as the object itself."""
    if not isinstance(value, Mapping):
        return string("", value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise SamplingFieldError(f"a JSON object is needed: {error}") from error


def _logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    return tuple((_token_id(key), _float(bias)) for key, bias in mapping("", value).items())


def _token_id(key: object) -> int:
    try:
        return int(str(key))
    except ValueError as error:
        raise SamplingFieldError(
            f"logit_bias maps token ids to numbers; {key!r} is not a token id"
        ) from error


def _anything(value: object) -> object:
    return value


# In the order of the API's table: unknown names are answered with this list.
FIELDS: dict[str, Callable[[object], Any]] = {
    "max_new_tokens": _int32,
    "min_new_tokens": _int32,
    "temperature": _float,
    "top_p": _float,
    "top_k": _top_k,
    "min_p": _float,
    "frequency_penalty": _float,
    "presence_penalty": _float,
    "repetition_penalty": _float,
    "stop": _strings,
    "stop_token_ids": _ints,
    "stop_regex": _strings,
    "n": _int32,
    "beam_width": _int,
    "json_schema": _json_source,
    "regex": _source,
    "ebnf": _source,
    "structural_tag": _json_source,
    "ignore_eos": _bool,
    "skip_special_tokens": _bool,
    "spaces_between_special_tokens": _bool,
    "no_stop_trim": _bool,
    "logit_bias": _logit_bias,
    "stream_interval": _int32,
    "sampling_seed": _seed,
    "custom_params": _anything,
}

# Known names without a field of ours, and the values that ask for nothing.
_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "custom_params": lambda value: not value,  # for custom logit processors
    "beam_width": lambda value: value == 1,
    # Vocabularies of a tokenizer.json put spaces where their decoder says, whatever this is.
    "spaces_between_special_tokens": lambda value: True,
}
_REFUSED: dict[str, str] = {
    "custom_params": "is not supported by this server",
    "beam_width": "above 1 is for /generate only",
}
