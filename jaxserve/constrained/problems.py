"""How a grammar's mistakes are reported."""

from collections.abc import Sequence
from typing import NoReturn

from jaxserve.errors import InvalidRequestError

Path = tuple[str | int, ...]


def pointer(path: Sequence[str | int]) -> str:
    """RFC 6901, as a URI fragment without percent signs: ``#/properties/a~1b/items/0``."""
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return "/".join(("#", *parts))


def refuse(kind: str, path: Sequence[str | int], problem: str) -> NoReturn:
    """Raise the error for what stands at ``path`` of a JSON document.

    Raises:
        InvalidRequestError: always.
    """
    raise InvalidRequestError(f"invalid {kind} at {pointer(path)}: {problem}")


def refuse_text(kind: str, text: str, position: int, problem: str) -> NoReturn:
    """Raise the error for the character at ``position`` of a grammar's text.

    Raises:
        InvalidRequestError: always.
    """
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    raise InvalidRequestError(f"invalid {kind} at line {line}, column {column}: {problem}")
