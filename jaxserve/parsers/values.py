"""A parameter's value written as plain text: its JSON, by what the function's schema says of it."""

import ast
import json
import re
from collections.abc import Mapping

_CONTROL = re.compile(r"[\x00-\x1f]")
_WORDS: dict[str, tuple[object, str]] = {
    "true": (True, "true"), "false": (False, "false"), "none": (None, "null"),
    "null": (None, "null"),
}  # fmt: skip
_COMBINATIONS = ("anyOf", "oneOf", "allOf")
_OTHER_NAMES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean",
                "list": "array", "dict": "object"}  # fmt: skip


def parameter_types(parameters: Mapping[str, object], name: str) -> frozenset[str]:
    """The JSON types that parameter ``name`` may have; empty: the schema does not say."""
    properties = parameters.get("properties")
    if not isinstance(properties, Mapping):
        return frozenset()
    types: set[str] = set()
    waiting, seen = [properties.get(name)], set()
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, Mapping) or id(schema) in seen:
            continue  # references may go round in circles
        seen.add(id(schema))
        named, parts = _types_and_parts(schema, parameters)
        types |= named
        waiting += parts
    return frozenset(types)


def _types_and_parts(
    schema: Mapping[str, object], root: Mapping[str, object]
) -> tuple[set[str], list[object]]:
    """The types that one schema names, or the schemas that name them."""
    named = schema.get("type")
    if isinstance(named, str):
        return {_OTHER_NAMES.get(named, named)}, []
    if isinstance(named, list):
        return {str(entry) for entry in named}, []
    for key in _COMBINATIONS:
        parts = schema.get(key)
        if isinstance(parts, list) and parts:
            return set(), parts
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return set(), [_resolve(reference, root)]
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return {_type_of(value) for value in values}, []
    if "properties" in schema:
        return {"object"}, []
    return ({"array"} if "items" in schema else set()), []


def _resolve(reference: str, root: Mapping[str, object]) -> object:
    found: object = root
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    for python, name in ((str, "string"), (int, "integer"), (float, "number"), (dict, "object")):
        if isinstance(value, python):
            return name
    return "null" if value is None else "array"


def json_of(text: str, types: frozenset[str]) -> str:
    """``text`` as JSON: as one of ``types`` (empty: whatever it looks like), else as a string."""
    read = read_json(text.strip()) or _as_python(text.strip())
    if read is None or not _fits(read[0], types):
        return json.dumps(text, ensure_ascii=False)
    return read[1]


def read_json(text: str) -> tuple[object, str] | None:
    """The value of a JSON text, and the text, mended where control characters stand raw in it;
    None if it is not JSON."""
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse)
        if _CONTROL.search(text):
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return value, text


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _as_python(text: str) -> tuple[object, str] | None:
    """As ``read_json``, for the Python literals that models write instead."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if text[:1] not in ("[", "{", "("):
        return None
    try:
        value = ast.literal_eval(text)
        return value, json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _fits(value: object, types: frozenset[str]) -> bool:
    """Whether to write ``value`` as it is: not where a string is wanted and it is none of the
    other types that would do."""
    if not types:
        return True
    kind = _type_of(value)
    if kind == "string":
        return "string" not in types  # the quotes are part of the string that was meant
    return "string" not in types or kind in types or (kind == "integer" and "number" in types)
