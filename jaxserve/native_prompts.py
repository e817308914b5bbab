"""The prompts of a body of /generate: text, input_ids or input_embeds, one or a batch."""

from typing import Any

import numpy as np

from jaxserve.errors import InvalidRequestError
from jaxserve.native_fields import Fields, string, wrong_type
from jaxserve.request import InputEmbeds

Prompt = str | tuple[int, ...] | InputEmbeds
PROMPT_FIELDS = ("text", "input_ids", "input_embeds")


def prompts_of(body: Fields) -> tuple[list[Prompt], bool]:
    """The prompts, and whether they are a batch.

    Raises:
        SamplingFieldError: a wrong type.
        InvalidRequestError: no prompt, or more than one field of them.
    """
    given = [name for name in PROMPT_FIELDS if body.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequestError(
            "Either text, input_ids or input_embeds should be provided."
            + (f" {', '.join(given)} were given; send one of them." if given else "")
        )
    value = body[given[0]]
    match given[0]:
        case "text":
            return _texts(value)
        case "input_ids":
            return _ids(value)
        case _:
            return embeds_prompts(value)


def embeds_prompts(value: object) -> tuple[list[Prompt], bool]:
    """The prompts of ``input_embeds``, and whether they are a batch; rows are not looked at.

    Raises:
        InvalidRequestError: it is not [[float]] or [[[float]]], or nothing.
    """
    rows = _sequence("input_embeds", value)
    first = rows[0]
    if _is_sequence(first) and len(first) and _is_sequence(first[0]):
        return [InputEmbeds(_sequence("input_embeds", prompt)) for prompt in rows], True
    return [InputEmbeds(rows)], False


def _texts(value: object) -> tuple[list[Prompt], bool]:
    if isinstance(value, str):
        return [value], False
    if not isinstance(value, list):
        raise wrong_type(value, "a string or a sequence of strings", "text")
    return [string("text", item) for item in _sequence("text", value)], True


def _ids(value: object) -> tuple[list[Prompt], bool]:
    if isinstance(_sequence("input_ids", value)[0], list):
        return [_token_ids(item) for item in _sequence("input_ids", value)], True
    return [_token_ids(value)], False


def _token_ids(value: object) -> tuple[int, ...]:
    ids = _sequence("input_ids", value)
    for item in ids:
        if type(item) is not int:  # bool is an int to isinstance
            raise wrong_type(item, "i64", "input_ids")
    return tuple(ids)


def _sequence(name: str, value: Any) -> Any:
    """``value`` if it is a sequence of something."""
    if not _is_sequence(value):
        raise wrong_type(value, "a sequence", name)
    if not len(value):
        raise InvalidRequestError(f"{name} cannot be empty.")
    return value


def _is_sequence(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim > 0)
