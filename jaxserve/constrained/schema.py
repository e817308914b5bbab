"""JSON Schemas: checked keyword by keyword, so that none is ignored in silence."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxserve.constrained.problems import Path, refuse, refuse_text
from jaxserve.constrained.schema_closing import closed, open_places, target
from jaxserve.constrained.schema_rules import KIND, RULES, without_void

MAX_DEPTH = 64  # llguidance's JSON reader stops at 128 levels, of which a schema takes two
MAX_LOCATING_S = 1.0
MAX_COUNT = 2**31 - 1
UNSATISFIABLE = "Unsatisfiable schema"
_TRACE = "\n  while processing"  # llguidance adds the references that led to the mistake

TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
ONE_SCHEMA = frozenset(
    [
        "additionalProperties",
        "additionalItems",
        "propertyNames",
        "unevaluatedProperties",
        "unevaluatedItems",
    ]
)
SCHEMA_LISTS = frozenset(("anyOf", "oneOf", "allOf", "prefixItems"))
SCHEMA_MAPS = frozenset(
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"]
)
UNSUPPORTED = {
    "not": "say what is allowed instead",
    "if": "write the cases as anyOf",
    "contains": "describe every item with items or prefixItems",
    "uniqueItems": "a repeated item cannot be prevented; leave it out and check the answer",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "extends": "that is draft 3; use allOf",
    "disallow": "that is draft 3; say what is allowed instead",
    "divisibleBy": "that is draft 3; use multipleOf",
}
_COUNTS = ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"]
_NUMBERS = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]
_KNOWN_DRAFTS = ("draft-04", "draft-06", "draft-07", "draft/2019-09", "draft/2020-12")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_number(value) and value == int(value) and value >= 0  # type: ignore[call-overload,operator]


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_type(value: object) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(name in TYPES for name in names)


def _is_dependencies(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(needs, dict | bool) or _is_names(needs) for needs in value.values()
    )


# keyword -> (is its value well-formed?, what it must be)
SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one of {', '.join(TYPES)}, or a list of these"),
    "required": (_is_names, "a list of strings"),
    "enum": (lambda v: isinstance(v, list) and bool(v), "a list with at least one value"),
    "pattern": (lambda v: isinstance(v, str), "a string"),
    "format": (lambda v: isinstance(v, str), "a string"),
    "$ref": (lambda v: isinstance(v, str), "a string"),
    "$schema": (lambda v: isinstance(v, str), "a string"),
    "uniqueItems": (lambda v: isinstance(v, bool), "true or false"),
    "dependentRequired": (
        lambda v: isinstance(v, dict) and all(map(_is_names, v.values())),
        "an object whose values are lists of strings",
    ),
    "dependencies": (_is_dependencies, "an object whose values are lists of strings or schemas"),
    **dict.fromkeys(_COUNTS, (_is_count, "a whole number of at least 0")),
    **dict.fromkeys(_NUMBERS, (lambda v: _is_number(v) or v in (True, False), "a number")),
}


def parse_json(kind: str, source: str) -> Any:
    """``source`` as JSON.

    Raises:
        InvalidRequestError: it is not JSON; says where.
    """
    try:
        value = json.loads(source, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        refuse_text(kind, source, error.pos, f"not JSON: {error.msg}")
    except RecursionError:
        refuse(kind, (), "nested too deeply")
    except UnicodeEncodeError:
        refuse(kind, (), "it holds a lone surrogate (such as \\ud800), which is not valid Unicode")
    except ValueError as error:  # a number of thousands of digits, NaN
        refuse(kind, (), f"{error}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


@dataclass(frozen=True)
class CheckedSchema:
    """A schema that llguidance may be given.

    ``children`` are the places of the subschemas right below each subschema.
    """

    schema: Any
    children: dict[Path, list[Path]]

    def locate(self, error: str, error_of: Callable[[Any], str]) -> tuple[Path, str]:
        """The deepest subschema that is wrong in the same way on its own, and its error.

        ``error_of`` compiles a schema and returns what is wrong with it, "" for nothing.
        """
        deadline_s = time.monotonic() + MAX_LOCATING_S
        moved = _move_refs(self.schema)
        found: Path = ()
        candidates = list(self.children.get(found, ()))
        while candidates and time.monotonic() < deadline_s:
            path = candidates.pop(0)
            at = "/".join(str(p).replace("~", "~0").replace("/", "~1") for p in path)
            probe = {"$ref": f"#/$defs/root/{at}", "$defs": {"root": moved}}
            own_error = error_of(probe)
            if own_error and _essence(own_error) == _essence(error):
                found, error = path, own_error
                candidates = list(self.children.get(found, ()))
        return found, error


def _essence(error: str) -> str:
    """What stays the same of an error when it is seen from outside."""
    return UNSATISFIABLE if error.startswith(UNSATISFIABLE) else error.split(_TRACE)[0]


def _move_refs(value: Any) -> Any:
    """The same schema one level below: as ``#/$defs/root``."""
    if isinstance(value, list):
        return [_move_refs(item) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {key: _move_refs(item) for key, item in value.items() if key != "$schema"}
    target = value.get("$ref")
    if isinstance(target, str) and (target == "#" or target.startswith("#/")):
        moved["$ref"] = "#/$defs/root" + target[1:]
    return moved


def check_schema(schema: Any, at: Path = ()) -> CheckedSchema:
    """Check every keyword and rewrite those that llguidance lacks.

    Args:
        at: where the schema stands in the document, for the messages.

    Raises:
        InvalidRequestError: a keyword that cannot be enforced or has a wrong value, and where.
    """
    checker = _Checker(schema, at)
    return CheckedSchema(checker.rewritten(schema, ()), checker.children)


class _Checker:
    def __init__(self, root: Any, at: Path) -> None:
        self.children: dict[Path, list[Path]] = {}
        self._root = root
        self._at = at
        self._stays_open = open_places(root)

    def rewritten(self, schema: Any, path: Path, parent: Path | None = None) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            self._refuse(path, f"a schema is an object, true or false; got {schema!r:.80}")
        if len(path) > MAX_DEPTH * 2:
            self._refuse(path, f"schemas may be nested {MAX_DEPTH} deep; use $defs and $ref")
        if parent is not None:
            self.children.setdefault(parent, []).append(path)
        result: dict[str, Any] = {}
        for keyword, value in without_void(schema).items():
            self._check(keyword, value, (*path, keyword))
            if keyword in _COUNTS:
                result |= self._count(keyword, int(value), (*path, keyword))
                continue
            if keyword != "x-guidance" and (keyword != "$schema" or self._is_draft(value, path)):
                result[keyword] = self._with_subschemas(keyword, value, path)
        if path not in self._stays_open:
            result = closed(result)
        for rule in RULES:
            result = rule(result, (*self._at, *path))
        return result

    def _check(self, keyword: str, value: Any, path: Path) -> None:
        if keyword in UNSUPPORTED:
            self._refuse(path, f"{keyword!r} cannot be enforced; {UNSUPPORTED[keyword]}")
        is_good, expected = SHAPES.get(keyword, (None, ""))
        if is_good is not None and not is_good(value):
            self._refuse(path, f"{keyword} must be {expected}; got {value!r:.80}")
        if keyword == "$ref" and not value.startswith("#") and "://" in value:
            self._refuse(path, f"{value!r:.80} is not fetched; copy it into $defs")
        if keyword == "$ref" and value.startswith("#/") and target(self._root, value) is None:
            self._refuse(path, f"there is nothing at {value!r:.80}")

    def _count(self, keyword: str, value: int, path: Path) -> dict[str, int]:
        if value <= MAX_COUNT:
            return {keyword: value}
        if keyword.startswith("min"):
            self._refuse(path, f"{keyword} may be at most {MAX_COUNT}; got {value}")
        return {}  # no output is that long

    def _is_draft(self, name: str, path: Path) -> bool:
        if any(draft in name for draft in _KNOWN_DRAFTS):
            return True
        if "json-schema.org/schema" in name:  # "the latest"
            return False
        self._refuse((*path, "$schema"), f"{name!r:.80} is not a known draft; leave it out, or "
                     f"name one of {', '.join(_KNOWN_DRAFTS)}")  # fmt: skip

    def _with_subschemas(self, keyword: str, value: Any, path: Path) -> Any:
        at = (*path, keyword)
        if keyword in ONE_SCHEMA or (keyword == "items" and not isinstance(value, list)):
            return self.rewritten(value, at, path)
        if keyword in SCHEMA_LISTS or keyword == "items":
            if not isinstance(value, list):
                self._refuse(at, f"{keyword} must be a list of schemas; got {value!r:.80}")
            return [self.rewritten(item, (*at, i), path) for i, item in enumerate(value)]
        if keyword in SCHEMA_MAPS:
            if not isinstance(value, dict):
                self._refuse(at, f"{keyword} must be an object of schemas; got {value!r:.80}")
            return {name: self.rewritten(item, (*at, name), path) for name, item in value.items()}
        if keyword == "dependencies":
            return {
                name: needs if isinstance(needs, list) else self.rewritten(needs, (*at, name), path)
                for name, needs in value.items()
            }
        return value

    def _refuse(self, path: Path, problem: str) -> NoReturn:
        refuse(KIND, (*self._at, *path), problem)
