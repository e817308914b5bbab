"""Rewriting of JSON Schema keywords that llguidance lacks into those that it has.

Each rule takes one schema object whose subschemas are done already and returns it rewritten.  The
result never allows more than the original; where it allows less, the docstring says so.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from math import comb
from typing import Any

from jaxserve.constrained.problems import Path, refuse

Schema = dict[str, Any]

KIND = "json_schema"
MAX_ALTERNATIVES = 64  # that one keyword may be written out to

NATIVE_FORMATS = frozenset(
    [
        "date",
        "time",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uuid",
        "unknown",
    ]
)
# Every text of the format on the right is one of that on the left.
NARROWER_FORMATS = {
    "idn-email": "email",
    "idn-hostname": "hostname",
    "iri": "uri",
    "iri-reference": "uri",
    "uri-reference": "uri",
    "uri-template": "uri",
}
_POINTER = "(/([^~/]|~[01])*)*"
FORMAT_PATTERNS = {
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": f"^(0|[1-9][0-9]*)(#|{_POINTER})$",
    "byte": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    "base64": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    "base64url": "^[A-Za-z0-9_-]*$",
}
NAME_RULES = ("pattern", "enum", "const", "minLength", "maxLength")
NAME_HINTS = {"type", "title", "description", "$comment", "examples", "default"}
# OpenAPI's and pydantic's hints that say nothing about the text.
ANY_TEXT_FORMATS = frozenset(["binary", "password", "path", "file-path", "directory-path"])
INTEGER_FORMATS = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
NUMBER_FORMATS = frozenset(("float", "double", *INTEGER_FORMATS))


def without_void(schema: Schema) -> Schema:
    """Leave out keywords that say nothing as they stand, such as ``then`` without ``if``."""
    void = {name for name in ("unevaluatedProperties", "unevaluatedItems")
            if schema.get(name) in (True, {})}  # fmt: skip
    most = schema.get("maxItems")
    if schema.get("uniqueItems") is False or (isinstance(most, int) and most <= 1):
        void.add("uniqueItems")
    if "if" not in schema:
        void |= {"then", "else"}
    elif "then" not in schema and "else" not in schema:
        void.add("if")
    if "contains" not in schema:
        void |= {"minContains", "maxContains"}
    return {name: value for name, value in schema.items() if name not in void}


def unevaluated(schema: Schema, path: Path) -> Schema:
    """``unevaluated…: false`` beside no combinator means ``additional…: false``."""
    for name, plain in (("unevaluatedProperties", "additionalProperties"),
                        ("unevaluatedItems", "items")):  # fmt: skip
        if name not in schema:
            continue
        combined = {"$ref", "allOf", "anyOf", "oneOf"} & schema.keys()
        if combined or schema[name] is not False:
            refuse(KIND, (*path, name), f"{name} can only be enforced as false and without "
                   f"$ref, allOf, anyOf and oneOf beside it; use {plain}")  # fmt: skip
        schema = {key: value for key, value in schema.items() if key != name}
        schema.setdefault(plain, False)
    return schema


def formats(schema: Schema, path: Path) -> Schema:
    """Formats as patterns or bounds.

    Narrower than asked: iri, uri-reference, uri-template, idn-email and idn-hostname are written
    as their plain ASCII, absolute forms.
    """
    name = schema.get("format")
    if name is None or name in NATIVE_FORMATS:
        return schema
    rest = {key: value for key, value in schema.items() if key != "format"}
    is_text = "string" in schema.get("type", "string")
    if not is_text and name not in INTEGER_FORMATS:
        return rest
    if name in ANY_TEXT_FORMATS or (name in NUMBER_FORMATS and name not in INTEGER_FORMATS):
        return rest
    if name in INTEGER_FORMATS:
        least, most = INTEGER_FORMATS[name]
        return _all_of(rest, [{"minimum": least, "maximum": most}])
    if name in NARROWER_FORMATS:
        return {**rest, "format": NARROWER_FORMATS[name]}
    if name in FORMAT_PATTERNS:
        return _all_of(rest, [{"pattern": FORMAT_PATTERNS[name]}])
    allowed = sorted(
        NATIVE_FORMATS.union(NARROWER_FORMATS, FORMAT_PATTERNS, ANY_TEXT_FORMATS, NUMBER_FORMATS)
    )
    refuse(KIND, (*path, "format"), f"format {name!r} cannot be enforced; use a pattern, or one "
           f"of {', '.join(allowed)}")  # fmt: skip


def dependents(schema: Schema, path: Path) -> Schema:
    """``dependentRequired`` and ``dependentSchemas`` as alternatives with and without the name."""
    wanted: list[tuple[str, Schema]] = []
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, needs in schema.get(keyword, {}).items():
            then = {"required": [name, *needs]} if isinstance(needs, list) else None
            wanted.append((name, then or {"required": [name], "allOf": [needs]}))
    if not wanted:
        return schema
    if 2 ** len(wanted) > MAX_ALTERNATIVES:
        refuse(KIND, path, f"{len(wanted)} dependent names cannot be enforced together; at most "
               f"{MAX_ALTERNATIVES.bit_length() - 1} are allowed")  # fmt: skip
    gone = {"dependentRequired", "dependentSchemas", "dependencies"}
    rest = {key: value for key, value in schema.items() if key not in gone}
    return _all_of(
        rest, [{"anyOf": [{"properties": {name: False}}, then]} for name, then in wanted]
    )


def property_names(schema: Schema, path: Path) -> Schema:
    """``propertyNames`` as ``properties`` that are left and a pattern for the others."""
    names = schema.get("propertyNames")
    rest = {key: value for key, value in schema.items() if key != "propertyNames"}
    if names is None or names is True or names == {} or names == {"type": "string"}:
        return rest
    where = (*path, "propertyNames")
    if schema.get("patternProperties"):
        refuse(KIND, where, "propertyNames cannot be enforced beside patternProperties")
    matches, pattern = _name_rule(names, where)
    properties = {name: value if matches(name) else False
                  for name, value in schema.get("properties", {}).items()}  # fmt: skip
    others = schema.get("additionalProperties", True)
    if others is False:
        return {**rest, "properties": properties}
    if isinstance(pattern, list):
        added = {name: others for name in pattern if name not in properties}
        return {**rest, "properties": properties | added, "additionalProperties": False}
    if properties and others not in (True, {}):
        refuse(KIND, where, "propertyNames with a pattern cannot be enforced beside properties "
               "and an additionalProperties schema")  # fmt: skip
    patterned = {pattern: others}
    return {**rest, "properties": properties, "patternProperties": patterned,
            "additionalProperties": False}  # fmt: skip


def _name_rule(names: Any, where: Path) -> tuple[Callable[[str], bool], str | list[str]]:
    """A test for names, and all of them: as a list, or as a pattern."""
    if names is False:
        return (lambda _: False), []
    rules = {key: value for key, value in names.items() if key in NAME_RULES}
    unknown = names.keys() - rules.keys() - NAME_HINTS
    is_length = rules.keys() <= {"minLength", "maxLength"}
    if unknown or names.get("type", "string") != "string" or not (is_length or len(rules) == 1):
        refuse(
            KIND,
            where,
            f"propertyNames can be enforced with one of {', '.join(NAME_RULES[:3])}, or with "
            f"minLength and maxLength; got {', '.join(names)}",
        )
    if "pattern" in rules:
        return _search(rules["pattern"], (*where, "pattern")), rules["pattern"]
    if not is_length:
        allowed = [name for name in rules.get("enum", [rules.get("const")]) if name is not None]
        return allowed.__contains__, [name for name in allowed if isinstance(name, str)]
    least, most = rules.get("minLength", 0), rules.get("maxLength")
    return (
        lambda name: least <= len(name) and (most is None or len(name) <= most),
        f"^(?s:.){{{least},{'' if most is None else most}}}$",
    )


def _search(pattern: str, where: Path) -> Callable[[str], bool]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        refuse(KIND, where, f"{error}")
    return lambda name: compiled.search(name) is not None


def counts(schema: Schema, path: Path) -> Schema:
    """``minProperties`` and ``maxProperties`` over optional names, as alternatives.

    Narrower than asked: names that are not listed do not count towards ``minProperties``.
    """
    schema = _at_least(schema, path)
    properties = schema.get("properties", {})
    optional = [n for n, s in properties.items()
                if n not in schema.get("required", ()) and s is not False]  # fmt: skip
    most = schema.get("maxProperties")
    is_closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if most is None or not optional or not is_closed:
        return schema
    room = most - len(set(schema.get("required", ())))
    if room >= len(optional):
        return {key: value for key, value in schema.items() if key != "maxProperties"}
    left_out = len(optional) - max(room, 0)
    if comb(len(optional), left_out) > MAX_ALTERNATIVES or room < 0:
        _refuse_count("maxProperties", most, path)
    rest = {key: value for key, value in schema.items() if key != "maxProperties"}
    forms = [{"properties": dict.fromkeys(names, False)}
             for names in combinations(optional, left_out)]  # fmt: skip
    return _all_of(rest, [{"anyOf": forms}])


def _at_least(schema: Schema, path: Path) -> Schema:
    least = schema.get("minProperties", 0)
    required = set(schema.get("required", ()))
    missing = least - len(required)
    rest = {key: value for key, value in schema.items() if key != "minProperties"}
    if missing <= 0:
        return rest
    optional = [n for n, s in schema.get("properties", {}).items()
                if n not in required and s is not False]  # fmt: skip
    if not optional and missing == 1:
        return schema  # one more name of any kind: llguidance counts it
    # Two free names might be the same one, which counts once.
    if missing > len(optional) or comb(len(optional), missing) > MAX_ALTERNATIVES:
        _refuse_count("minProperties", least, path)
    forms = [{"required": list(names)} for names in combinations(optional, missing)]
    return _all_of(rest, [{"anyOf": forms}])


def _refuse_count(keyword: str, value: int, path: Path) -> None:
    refuse(KIND, (*path, keyword), f"{keyword} {value} cannot be enforced here: names that are "
           "not listed may repeat, and too many choices of listed ones are left; use required "
           "and additionalProperties")  # fmt: skip


def _all_of(schema: Mapping[str, Any], more: Iterable[Schema]) -> Schema:
    return {**schema, "allOf": [*schema.get("allOf", ()), *more]}


RULES: tuple[Callable[[Schema, Path], Schema], ...] = (
    unevaluated, formats, dependents, property_names, counts,
)  # fmt: skip
