"""Objects that list their properties get no others.

Without ``additionalProperties`` JSON Schema allows any, and a small model invents names until its
tokens are spent; SGLang's default (xgrammar's strict mode) closes such objects too.  Whoever wants
them open says ``"additionalProperties": true``.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from jaxserve.constrained.problems import Path

Schema = dict[str, Any]

# Beside these another schema may add properties to the same object.
_COMBINING = frozenset(("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "dependentSchemas",
                        "dependencies"))  # fmt: skip
_ABOUT_NAMES = frozenset(("additionalProperties", "patternProperties", "propertyNames",
                          "unevaluatedProperties"))  # fmt: skip
_ABOUT_OBJECTS = _COMBINING | _ABOUT_NAMES | {"properties", "required", "dependentRequired",
                                              "minProperties", "maxProperties"}  # fmt: skip


def closed(schema: Schema) -> Schema:
    """``schema`` with ``additionalProperties: false`` if it lists all that it speaks of."""
    properties = schema.get("properties")
    if not properties or schema.keys() & (_COMBINING | _ABOUT_NAMES):
        return schema
    names = set(schema.get("required", ()))
    names.update(*schema.get("dependentRequired", {}).values())
    if not names <= properties.keys() or schema.get("minProperties", 0) > len(properties):
        return schema
    return {**schema, "additionalProperties": False}


def open_places(root: Any) -> set[Path]:
    """Where a schema stands that is merged with others: closing it would forbid theirs."""
    found: set[Path] = set()
    seen: set[tuple[Path, bool]] = set()
    waiting: list[tuple[Any, Path, bool]] = [(root, (), False)]
    while waiting:
        node, path, is_merged = waiting.pop()
        if not isinstance(node, dict | list) or (path, is_merged) in seen:
            continue
        seen.add((path, is_merged))
        if isinstance(node, list):
            waiting += [(item, (*path, i), is_merged) for i, item in enumerate(node)]
            continue
        if is_merged:
            found.add(path)
        waiting += _below(root, node, path, is_merged)
    return found


def target(root: Any, reference: str) -> tuple[Any, Path] | None:
    """The schema that ``#/…`` names, and its place; None if there is none."""
    path: Path = ()
    for part in reference.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(root, list) and name.isdecimal() and int(name) < len(root):
            root, path = root[int(name)], (*path, int(name))
        elif isinstance(root, dict) and name in root:
            root, path = root[name], (*path, name)
        else:
            return None
    return root, path


def _below(
    root: Any, node: Schema, path: Path, is_merged: bool
) -> Iterator[tuple[Any, Path, bool]]:
    for keyword, value in node.items():
        if keyword in ("const", "enum", "default", "examples"):
            continue
        merges = is_merged or bool(node.keys() & _ABOUT_OBJECTS - {keyword})
        if keyword == "$ref" and isinstance(value, str) and value.startswith("#"):
            found = target(root, value)
            if merges and found is not None:
                yield *found, True
        elif keyword == "allOf" and isinstance(value, list):
            yield value, (*path, keyword), merges or len(value) > 1
        else:
            yield value, (*path, keyword), merges if keyword in _COMBINING else False
