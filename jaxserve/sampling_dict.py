"""The native API's ``sampling_params`` object as ``SamplingParams`` and ``n``.

``null`` means the default everywhere.  A name that is not the API's is an error, and so is a value
that asks for something not built.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.request import SamplingParams

WHOLE_VOCABULARY = 2**30  # what SGLang's clients send for "no top_k"
_INT64 = range(-(2**63), 2**63)
_INT32 = range(-(2**31), 2**31)
_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")


class SamplingFieldError(InvalidRequestError):
    """An unknown name or a wrong type; ``/generate`` answers it as a bare string."""


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
        raise _wrong_type(given, "struct SamplingParams")
    for name in given:
        if name not in _FIELDS:
            expected = ", ".join(f"`{known}`" for known in _FIELDS)
            raise SamplingFieldError(f"unknown field `{name}`, expected one of {expected}")
    values = {
        name: _FIELDS[name](name, value) for name, value in given.items() if value is not None
    }
    _check_unsupported(values)
    if "max_new_tokens" in given and given["max_new_tokens"] is None:
        values["max_new_tokens"] = None
    n = values.pop("n", 1)
    if n < 1:
        raise InvalidRequestError(f"n must be at least 1, got {n}.")
    if "sampling_seed" in values:
        values["seed"] = values.pop("sampling_seed")
    return SamplingParams(**values), n


def _check_unsupported(values: dict[str, Any]) -> None:
    """Take out the known names that have no field of ours; refuse those that ask for something."""
    grammars = [name for name in _GRAMMARS if values.get(name)]
    if len(grammars) > 1:
        raise InvalidRequestError(
            "Only one of json_schema, regex, ebnf, or structural_tag can be set."
        )
    for name, is_neutral in _NEUTRAL.items():
        if name in values and not is_neutral(values.pop(name)):
            raise UnsupportedFeatureError(
                f"sampling_params.{name} is not supported by this server; leave it out"
            )


def _wrong_type(value: object, expected: str) -> SamplingFieldError:
    """Worded as Rust's serde does, which SGLang's clients match."""
    if isinstance(value, bool):
        what = f"boolean `{str(value).lower()}`"
    elif isinstance(value, int):
        what = f"integer `{value}`"
    elif isinstance(value, float):
        what = f"floating point `{value}`"
    elif isinstance(value, str):
        text = value.replace("\\", "\\\\").replace('"', '\\"')
        what = f'string "{text}"'
    elif isinstance(value, Mapping):
        what = "map"
    elif value is None:
        what = "null"
    else:
        what = "sequence" if isinstance(value, (list, tuple)) else type(value).__name__
    return SamplingFieldError(f"invalid type: {what}, expected {expected}")


def _int(name: str, value: object, allowed: range = _INT64, kind: str = "i64") -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(value, kind)
    if value not in allowed:
        raise SamplingFieldError(f"invalid value: integer `{value}`, expected {kind}")
    return value


def _int32(name: str, value: object) -> int:
    return _int(name, value, _INT32, "i32")


def _float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong_type(value, "f64")
    try:
        return float(value)
    except OverflowError as error:
        raise SamplingFieldError("invalid value: integer out of range, expected f64") from error


def _bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(value, "a boolean")
    return value


def _seed(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SamplingFieldError(f"{name} must be an integer, got {type(value).__name__}.")
    return value


def _top_k(name: str, value: object) -> int:
    top_k = _int(name, value)
    if top_k == -1 or top_k >= WHOLE_VOCABULARY:
        return 0
    if top_k < 1:
        raise InvalidRequestError(f"top_k must be -1 (disable) or at least 1, got {top_k}.")
    return top_k


def _strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(value, "a string or a sequence of strings")
    for item in value:
        if not isinstance(item, str):
            raise _wrong_type(item, "a string")
    return tuple(item for item in value if item)


def _ints(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(value, "a sequence")
    return tuple(_int(name, item) for item in value)


def _logit_bias(name: str, value: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, Mapping):
        raise _wrong_type(value, "a map")
    return tuple((_token_id(key), _float(name, bias)) for key, bias in value.items())


def _token_id(key: object) -> int:
    try:
        return int(str(key))
    except ValueError as error:
        raise SamplingFieldError(
            f"logit_bias maps token ids to numbers; {key!r} is not a token id"
        ) from error


def _anything(name: str, value: object) -> object:
    return value


# In the order of the API's table: unknown names are answered with this list.
_FIELDS: dict[str, Callable[[str, object], Any]] = {
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
    "json_schema": _anything,
    "regex": _anything,
    "ebnf": _anything,
    "structural_tag": _anything,
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
    **{name: lambda value: not value for name in (*_GRAMMARS, "stop_regex", "custom_params")},
    "beam_width": lambda value: value in (0, 1),
    "spaces_between_special_tokens": lambda value: value is True,
    "stream_interval": lambda value: value == 1,
}
