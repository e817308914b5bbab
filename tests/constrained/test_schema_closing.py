"""Which objects are closed to properties that they do not list."""

from typing import Any

import pytest

from jaxserve.constrained.schema import check_schema

A = {"type": "object", "properties": {"a": {"type": "integer"}}}
B = {"type": "object", "properties": {"b": {"type": "integer"}}}


def is_closed(schema: Any, *path: str | int) -> bool:
    found = check_schema(schema).schema
    for part in path:
        found = found[part]
    return found.get("additionalProperties") is False


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        (A, ()),
        ({"type": "object", "properties": {"x": A}}, ("properties", "x")),
        ({"type": "array", "items": A}, ("items",)),
        ({"anyOf": [A, B]}, ("anyOf", 1)),
        ({"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": A}}, ("$defs", "a")),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": A}}, ("$defs", "a")),
        ({"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": A}}, ("$defs", "a")),
        ({**A, "dependentRequired": {"a": ["a"]}}, ()),
    ],
)
def test_closed(schema: Any, path: tuple[str | int, ...]) -> None:
    assert is_closed(schema, *path)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({**A, "additionalProperties": True}, ()),
        ({**A, "additionalProperties": {"type": "null"}}, ()),
        ({**A, "patternProperties": {"^x": {}}}, ()),
        ({"type": "object"}, ()),
        ({**A, "required": ["z"]}, ()),
        ({**A, "anyOf": [B]}, ()),
        ({**A, "anyOf": [B]}, ("anyOf", 0)),
        ({"allOf": [A, B]}, ("allOf", 0)),
        ({"allOf": [{"$ref": "#/$defs/a"}, B], "$defs": {"a": A}}, ("$defs", "a")),
        ({"allOf": [{"allOf": [A]}, B]}, ("allOf", 0, "allOf", 0)),
        ({"$ref": "#/$defs/a", "properties": {"b": {}}, "$defs": {"a": A}}, ("$defs", "a")),
        ({**A, "minProperties": 2, "required": ["a"]}, ()),
    ],
)
def test_open(schema: Any, path: tuple[str | int, ...]) -> None:
    assert not is_closed(schema, *path)


def test_what_a_merged_object_holds_is_closed() -> None:
    inner = {"type": "object", "properties": {"x": A}}
    assert is_closed({"allOf": [inner, B]}, "allOf", 0, "properties", "x")


def test_a_schema_that_refers_to_itself_is_read_once() -> None:
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}
    assert is_closed(tree)
    assert not is_closed({**tree, "allOf": [{"$ref": "#"}, B]})
