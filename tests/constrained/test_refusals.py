"""Every bad grammar is refused, and the message says where."""

import asyncio
import json
from typing import Any

import pytest
from grammar_harness import byte_level, takes

from jaxserve.constrained import GrammarCompiler
from jaxserve.errors import InvalidRequestError
from jaxserve.request import Grammar, GrammarKind

STRING = {"type": "string"}
DEEP: dict[str, Any] = {}
for _ in range(130):
    DEEP = {"items": DEEP}


def problem(compiler: GrammarCompiler, kind: GrammarKind, source: str) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        asyncio.run(compiler.compile(Grammar(kind, source)))
    assert caught.value.status == 400
    return str(caught.value)


def inside(schema: Any) -> Any:
    """``schema`` three levels down, at #/properties/a~1b/items."""
    items = {"type": "array", "items": schema, "minItems": 1}
    return {"type": "object", "properties": {"a/b": items}, "required": ["a/b"]}


# schema -> what the message says, beginning with the place below #/properties/a~1b/items
SCHEMAS: list[tuple[Any, str]] = [
    ({"not": STRING}, "/not: 'not' cannot be enforced; say what is allowed instead"),
    ({"if": STRING, "then": STRING}, "/if: 'if' cannot be enforced"),
    ({"type": "array", "contains": STRING}, "/contains: 'contains' cannot be enforced"),
    ({"type": "array", "uniqueItems": True}, "/uniqueItems: 'uniqueItems' cannot be enforced"),
    ({"$dynamicRef": "#x"}, "/$dynamicRef: '$dynamicRef' cannot be enforced; use $ref"),
    ({"$recursiveRef": "#"}, "/$recursiveRef"),
    ({"extends": STRING}, "/extends: 'extends' cannot be enforced; that is draft 3"),
    ({"disallow": "string"}, "/disallow"),
    ({"divisibleBy": 2}, "/divisibleBy"),
    ({"type": "strin"}, "/type: type must be one of string, number"),
    ({"type": []}, "/type: type must be one of"),
    ({"type": 5}, "/type"),
    ({"type": "string", "minLength": -1}, "/minLength: minLength must be a whole number"),
    ({"type": "string", "minLength": 1.5}, "/minLength"),
    ({"type": "string", "maxLength": "3"}, "/maxLength: maxLength must be a whole number"),
    ({"type": "string", "minLength": 10**12}, "/minLength: minLength may be at most 2147483647"),
    ({"type": "integer", "minimum": "3"}, "/minimum: minimum must be a number; got '3'"),
    ({"type": "integer", "multipleOf": 0}, ": "),
    ({"type": "object", "required": "a"}, "/required: required must be a list of strings"),
    ({"enum": []}, "/enum: enum must be a list with at least one value"),
    ({"enum": {}}, "/enum"),
    ({"type": "string", "pattern": 3}, "/pattern: pattern must be a string"),
    ({"type": "string", "pattern": "a("}, ": unclosed group (position 1 of the pattern a()"),
    ({"type": "string", "pattern": "^(?!a)b"}, ": look-around, including look-ahead"),
    ({"type": "string", "pattern": "(a)\\1"}, ": backreferences are not supported"),
    (
        {"type": "string", "format": "foo"},
        "/format: format 'foo' cannot be enforced; use a pattern",
    ),
    ({"type": "string", "pattern": "^a$", "minLength": 3}, ": Unsatisfiable schema"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, ": Unsatisfiable schema: minimum (3)"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, ": Unsatisfiable schema: minItems (3)"),
    ({"allOf": [False]}, ": Unsatisfiable schema: schema is false"),
    (5, ": a schema is an object, true or false; got 5"),
    ({"anyOf": {}}, "/anyOf: anyOf must be a list of schemas"),
    ({"anyOf": []}, ": Unsatisfiable schema: anyOf is empty"),
    ({"anyOf": [STRING, 3]}, "/anyOf/1: a schema is an object, true or false"),
    ({"properties": [1]}, "/properties: properties must be an object of schemas"),
    ({"items": "x"}, "/items: a schema is an object, true or false; got 'x'"),
    ({"$ref": "#/$defs/nope"}, "/$ref: there is nothing at '#/$defs/nope'"),
    ({"$ref": "https://example.com/s.json"}, "/$ref: 'https://example.com/s.json' is not fetched"),
    ({"$ref": 3}, "/$ref: $ref must be a string"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ": oneOf constraints are not supported"),
    ({"patternProperties": {"^a": STRING, "z$": {"type": "null"}}}, ": patternProperty regexes"),
    (
        {"$schema": "http://json-schema.org/draft-03/schema#"},
        "/$schema: 'http://json-schema.org/dr",
    ),
    ({"$schema": 4}, "/$schema: $schema must be a string"),
    ({"allOf": [STRING], "unevaluatedProperties": False}, "/unevaluatedProperties: unevaluatedPr"),
    ({"propertyNames": {"type": "integer"}}, "/propertyNames: propertyNames can be enforced with"),
    ({"propertyNames": {"pattern": "a", "maxLength": 3}}, "/propertyNames: propertyNames can be"),
    ({"propertyNames": {"pattern": "("}}, "/propertyNames/pattern: missing ), unterminated"),
    (
        {"propertyNames": {"pattern": "^a"}, "patternProperties": {"^b": True}},
        "/propertyNames: propertyNames cannot be enforced beside patternProperties",
    ),
    (
        {
            "propertyNames": {"pattern": "^a"},
            "properties": {"ab": {}},
            "additionalProperties": STRING,
        },
        "/propertyNames: propertyNames with a pattern cannot be enforced beside properties",
    ),
    ({"type": "object", "minProperties": 3}, "/minProperties: minProperties 3 cannot be enforced"),
    (
        {
            "properties": {f"p{i}": {} for i in range(30)},
            "additionalProperties": False,
            "maxProperties": 15,
        },
        "/maxProperties: maxProperties 15 cannot be enforced here",
    ),
    (
        {"dependentRequired": {f"p{i}": ["x"] for i in range(9)}},
        ": 9 dependent names cannot be enforced together; at most 6",
    ),
    ({"dependentRequired": {"a": "b"}}, "/dependentRequired: dependentRequired must be an object"),
    ({"dependencies": {"a": 3}}, "/dependencies: dependencies must be an object"),
    (DEEP, ": schemas may be nested 64 deep; use $defs and $ref"),
]


@pytest.mark.parametrize(("schema", "expected"), SCHEMAS, ids=lambda v: str(v)[:60])
def test_a_schema_is_refused_with_its_place(
    compiler: GrammarCompiler, schema: Any, expected: str
) -> None:
    message = problem(compiler, "json_schema", json.dumps(inside(schema)))
    place, found, text = expected.partition(": ")
    prefix = "invalid json_schema at #/properties/a~1b/items"
    assert message.startswith(prefix + (place if schema is not DEEP else "/items"))
    assert not found or f": {text}" in message


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", "line 1, column 1: not JSON"),
        ("{", "line 1, column 2: not JSON: Expecting property name"),
        ('{"type": 5}{"type": 5}', "line 1, column 12: not JSON: Extra data"),
        ('{\n  "type": oops}', "line 2, column 11: not JSON"),
        ("NaN", "at #: NaN is not a JSON value"),
        ('{"minimum": Infinity}', "at #: Infinity is not a JSON value"),
        ('{"const": ' + "9" * 5000 + "}", "at #: Exceeds the limit"),
        ('{"const": "\\ud800"}', "at #: it holds a lone surrogate"),
        ("[" * 100_000, "at #: nested too deeply"),
        ("3", "at #: a schema is an object, true or false; got 3"),
        ("null", "at #: a schema is an object, true or false; got None"),
    ],
)
def test_a_schema_that_is_not_json(compiler: GrammarCompiler, source: str, expected: str) -> None:
    assert f"invalid json_schema {expected}" in problem(
        compiler, "json_schema", source
    ) or f"invalid json_schema at {expected}" in problem(compiler, "json_schema", source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a(b", "invalid regex: unclosed group (position 1 of the pattern a(b)"),
        ("[z-a]", "invalid character class range"),
        ("a{3,1}", "invalid repetition count range"),
        ("(?=a)", "look-around, including look-ahead and look-behind, is not supported"),
        (r"(a)\1", "backreferences are not supported"),
        (r"\bword\b", "lookarounds not supported yet; WordUnicode"),
        ("ab\\", "invalid regex at position 2: nothing follows the backslash"),
        ("[a&&b]", "invalid regex: "),
    ],
)
def test_a_regex_is_refused(compiler: GrammarCompiler, source: str, expected: str) -> None:
    assert expected in problem(compiler, "regex", source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", "line 1, column 1: there is no rule 'root'"),
        ('item ::= "a"', "there is no rule 'root'; the grammar begins with it"),
        ('root ::= "a', "line 1, column 10: '\"a' is not understood"),
        ('root ::= "a"\n  | item', "line 2, column 5: rule 'item' is not defined"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: rule 'root' is defined twice"),
        ('root ::= "a" )', "line 1, column 14: expected 'name ::=', got ')'"),
        ('root ::= ("a" | "b"', "line 1, column 10: this '(' is never closed"),
        ("root ::= * ", "line 1, column 10: nothing to repeat before '*'"),
        ('root ::= "\\q"', "line 1, column 11: escape '\\\\q' is not known; allowed are"),
        ('root ::= "\\ud800"', "line 1, column 11: escape"),
        ("root ::= [z-a]", "line 1, column 10: range z-a is the wrong way round"),
        ("root ::= []", "line 1, column 10: a character class needs at least one character"),
        ('root ::= "a"{3,1}', "line 1, column 13: {3,1} must be {n,m} with n <= m"),
        ('root ::= "a"{99999999999}', "line 1, column 13: {99999999999} must be {n,m}"),
        ("root ::= " + "(" * 101, "groups may be nested 100 deep; use rules"),
        ('root ::= TagDispatch(("a", b))', "line 1, column 26: "),
        ("\0", "line 1, column 1: '\\x00' is not understood"),
        ('root ::= root "a"', "invalid ebnf: "),
        ("start: item", 'unknown name: "item" (line 1, column 8)'),
        ('start: "a', "lexer error (line 1, column 10)"),
        ("start: %json {", "invalid ebnf: "),
    ],
)
def test_an_ebnf_grammar_is_refused(compiler: GrammarCompiler, source: str, expected: str) -> None:
    message = problem(compiler, "ebnf", source)
    assert message.startswith("invalid ebnf")
    assert expected in message


def tag(**fields: Any) -> str:
    return json.dumps({"type": "structural_tag", "format": fields})


ONE_TAG = {"begin": "<a>", "content": {"type": "any_text"}, "end": "</a>"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{", "line 1, column 2: not JSON"),
        ("[]", "at #: it must be an object; got []"),
        ("{}", "at #: it needs either format, or structures and triggers"),
        ('{"format": 3}', "at #/format: it must be an object; got 3"),
        ('{"format": {}}', "at #/format/type: type must be a string; it is missing"),
        (tag(type="qwen_xml_parameter"), "at #/format: format 'qwen_xml_parameter' cannot be enf"),
        (tag(type="const_string", value=3), "at #/format/value: value must be a string; got 3"),
        (tag(type="or", elements=[]), "at #/format/elements: elements must hold at least one"),
        (tag(type="sequence"), "at #/format/elements: elements must be a list; it is missing"),
        (tag(type="regex", pattern="("), "invalid regex at #/format/pattern: unclosed group"),
        (tag(type="grammar", grammar="x"), "invalid ebnf at line 1, column 1: expected"),
        (tag(type="json_schema", json_schema={"not": {}}), "at #/format/json_schema/not: 'not'"),
        (tag(type="json_schema", json_schema={}, style="xml"), "at #/format/style: style 'xml'"),
        (tag(type="any_text", excludes=[3]), "#/format/excludes: excludes must be a list of str"),
        (
            tag(type="sequence", elements=[{"type": "any_text"}, {"type": "any_text"}]),
            "at #/format/elements/0: any_text must come last or before a const_string",
        ),
        (
            tag(type="tag", begin="<a>", content={"type": "any_text"}, end=[3]),
            "at #/format/end: end must be a string or a list of strings; got [3]",
        ),
        (
            tag(type="triggered_tags", triggers=[""], tags=[ONE_TAG]),
            "at #/format/triggers: triggers must be a list of non-empty strings",
        ),
        (
            tag(type="triggered_tags", triggers=["<"], tags=[]),
            "at #/format/tags: tags must hold at least one tag",
        ),
        (
            tag(type="triggered_tags", triggers=["<b"], tags=[ONE_TAG]),
            "'<a>' must begin with exactly one of the triggers; 0 match",
        ),
        (
            tag(type="triggered_tags", triggers=["<", "<a"], tags=[ONE_TAG]),
            "at #/format/tags/0/begin: '<a>' must begin with exactly one of the triggers; 2 match",
        ),
        (
            tag(type="tags_with_separator", separator=",", tags=[]),
            "at #/format/tags: tags must hold at least one tag",
        ),
        (
            '{"structures": [{"begin": "<a>"}], "triggers": ["<"]}',
            "at #/structures/0: a structure has begin, schema and end",
        ),
        (
            '{"structures": [{"begin": "<a>", "schema": {"type": "x"}, "end": ""}],'
            ' "triggers": ["<"]}',
            "at #/structures/0/schema/type: type must be one of",
        ),
        ('{"structures": [3], "triggers": ["<"]}', "at #/structures/0"),
        ('{"structures": [], "triggers": ["<"]}', "tags must hold at least one tag"),
    ],
)
def test_a_structural_tag_is_refused(compiler: GrammarCompiler, source: str, expected: str) -> None:
    assert expected in problem(compiler, "structural_tag", source)


def test_formats_may_be_nested_30_deep(compiler: GrammarCompiler) -> None:
    source: dict[str, Any] = {"type": "any_text"}
    for _ in range(40):
        source = {"type": "or", "elements": [source]}
    assert "formats may be nested 30 deep" in problem(compiler, "structural_tag", tag(**source))


def test_a_grammar_may_have_half_a_mebibyte(compiler: GrammarCompiler) -> None:
    message = problem(compiler, "regex", "ä" * (1 << 18) + "b")
    assert message == "the regex has 524289 bytes; at most 524288 are allowed"


def test_any_object_is_what_json_object_asks_for(compiler: GrammarCompiler) -> None:
    grammar = asyncio.run(compiler.compile(Grammar("json_schema", "$$ANY$$")))
    assert takes(grammar, '{"a": [1]}', byte_level()) and not takes(grammar, "[]", byte_level())
