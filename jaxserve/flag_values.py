"""The text of a flag → its value.  What cannot be read is an ``ArgumentTypeError``."""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence

from jaxserve.errors import InvalidRequestError
from jaxserve.sampling_dict import sampling_params_from_dict

BUCKET_RULES = "default | tse MIDDLE BASE COUNT | custom BOUND…"


def between(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    """A reader of ``kind`` (int or float) that takes what is in [low, high]."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be in [{low}, {high}], got {text}")
        return value

    return read


def labels(text: str) -> Mapping[str, str]:
    """A JSON object of strings."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise argparse.ArgumentTypeError(
            f"""must be a JSON object of strings such as '{{"zone": "a"}}', got {text}"""
        )
    return value


def json_object(text: str) -> Mapping[str, object]:
    """A JSON object.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text}")
    return value


def sampling_params(text: str) -> Mapping[str, object]:
    """A JSON object that /generate would take as sampling_params.

    Raises:
        argparse.ArgumentTypeError: it is none; says why.
    """
    given = json_object(text)
    try:
        sampling_params_from_dict(given)
    except InvalidRequestError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error
    return given


def bucket_bounds(rule: Sequence[str]) -> tuple[float, ...] | None:
    """The bounds that a rule of SGLang's asks for; None for ``default``.

    ``tse MIDDLE BASE COUNT`` is MIDDLE and, on both sides of it, COUNT/2 bounds (rounded up) at
    distances of BASE, BASE², …, those below zero being zero.
    """
    name, *rest = rule
    try:
        numbers = [float(text) for text in rest]
    except ValueError:
        numbers = []
    match name, numbers:
        case "default", []:
            return None
        case "tse", [middle, base, count] if base > 1 and 1 <= count <= 200 and middle >= 0:
            distances = [base ** (i + 1) for i in range(math.ceil(count / 2))]
            bounds = {middle, *(middle + d for d in distances)}
            return tuple(sorted(bounds | {max(0.0, middle - d) for d in distances}))
        case "custom", [_, *_]:
            return tuple(sorted(set(numbers)))
    raise argparse.ArgumentTypeError(f"must be {BUCKET_RULES}; got {' '.join(rule)}")
