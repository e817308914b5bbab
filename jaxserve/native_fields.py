"""Reading the native API's fields: strict, and worded as SGLang words it.

A wrong type is ``invalid type: string "a", expected i64``, as Rust's serde says it: clients know
these messages.  A null is the same as an absent field.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jaxserve.errors import InvalidRequestError

T = TypeVar("T")
Fields = Mapping[str, Any]
INT64 = range(-(2**63), 2**63)
INT32 = range(-(2**31), 2**31)
UINT64 = range(2**64)
MAX_SHOWN = 80  # characters of a value in a message


class SamplingFieldError(InvalidRequestError):
    """An unknown name or a wrong type; ``/generate`` answers it as a bare string."""


def wrong_type(value: object, expected: str, name: str = "") -> SamplingFieldError:
    """The error of ``value`` where something else is ``expected``."""
    if isinstance(value, bool):
        what = f"boolean `{str(value).lower()}`"
    elif isinstance(value, int):
        what = f"integer `{_shortened(str(value))}`"
    elif isinstance(value, float):
        what = f"floating point `{value}`"
    elif isinstance(value, str):
        text = _shortened(value).replace("\\", "\\\\").replace('"', '\\"')
        what = f'string "{text}"'
    elif isinstance(value, Mapping):
        what = "map"
    elif value is None:
        what = "null"
    else:
        what = "sequence" if isinstance(value, (list, tuple)) else type(value).__name__
    where = f"{name}: " if name else ""
    return SamplingFieldError(f"{where}invalid type: {what}, expected {expected}")


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def integer(name: str, value: object, allowed: range = INT64, kind: str = "i64") -> int:
    """An integer that a signed type of that width holds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(value, kind, name)
    if value not in allowed:
        where = f"{name}: " if name else ""
        raise SamplingFieldError(
            f"{where}invalid value: integer `{_shortened(str(value))}`, expected {kind}"
        )
    return value


def unsigned(name: str, value: object) -> int | None:
    """An integer that is not negative."""
    return integer(name, value, UINT64, "u64")


def string(name: str, value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise wrong_type(value, "a string", name)
    return value


def boolean(name: str, value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise wrong_type(value, "a boolean", name)
    return value


def mapping(name: str, value: object) -> Fields:
    """A JSON object."""
    if not isinstance(value, Mapping):
        raise wrong_type(value, "a map", name)
    return value


def integers(name: str, value: object) -> tuple[int, ...]:
    """A list of integers."""
    if not isinstance(value, (list, tuple)):
        raise wrong_type(value, "a sequence", name)
    return tuple(integer(name, item) for item in value)


def scalar(fields: Fields, name: str, default: T, decode: Callable[[str, object], T]) -> T:
    """One field, or its default."""
    value = fields.get(name)
    return default if value is None else decode(name, value)


def per_prompt(
    fields: Fields,
    name: str,
    default: T,
    decode: Callable[[str, object], T],
    count: int,
) -> list[T]:
    """One value per prompt, from one for all or a list of ``count``.

    Raises:
        InvalidRequestError: a list of another length.
    """
    value = fields.get(name)
    if not isinstance(value, list):
        return [default if value is None else decode(name, value)] * count
    if len(value) != count:
        raise wrong_length(name, len(value), count)
    return [default if item is None else decode(name, item) for item in value]


def wrong_length(name: str, given: int, count: int) -> InvalidRequestError:
    """The error of a list that has not one item per prompt."""
    return InvalidRequestError(
        f"{name} has {given} items, the request has {count} prompts; send one item per prompt "
        "or a single value for all."
    )


def asks_for_something(value: object) -> bool:
    """False for a value that is the same as an absent field, such as null, false or []."""
    if isinstance(value, list):
        return any(asks_for_something(item) or item == 0 for item in value)  # 0: a token id
    return bool(value)
