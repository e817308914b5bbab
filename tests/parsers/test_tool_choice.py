"""The grammars that tool_choice and strict tools ask for."""

import json

import pytest
from parsers.parser_samples import TOOLS

from jaxserve.errors import InvalidRequestError
from jaxserve.parsers import TOOL_FORMATS, ToolCallParser, tool_choice_grammar

STRICT = [
    {"type": "function", "function": {**TOOLS[0]["function"], "strict": True}},
    *TOOLS[1:],
]


def schema_of(grammar):
    assert grammar.kind == "json_schema"
    return json.loads(grammar.source)


def test_required_is_an_array_of_any_calls():
    schema = schema_of(tool_choice_grammar("hermes", TOOLS, "required"))
    assert (schema["type"], schema["minItems"]) == ("array", 1) and "maxItems" not in schema
    names = [call["properties"]["name"]["enum"] for call in schema["items"]["anyOf"]]
    assert names == [["get_weather"], ["now"], ["run-code.v2"]]
    assert schema["$defs"] == {"options": {"type": "object"}}
    parameters = schema["items"]["anyOf"][0]["properties"]["parameters"]
    assert parameters["properties"]["days"] == {"type": "integer"} and "$defs" not in parameters


@pytest.mark.parametrize("choice", ["now", {"type": "function", "function": {"name": "now"}}])
def test_a_named_function_is_the_only_one(choice):
    schema = schema_of(tool_choice_grammar(None, TOOLS, choice, parallel=False))
    assert schema["maxItems"] == 1
    assert schema["items"]["properties"]["name"]["enum"] == ["now"]
    assert schema["items"]["required"] == ["name", "parameters"]


def test_tools_without_parameters_take_an_object():
    tools = [{"type": "function", "function": {"name": "f"}}]
    schema = schema_of(tool_choice_grammar(None, tools, "required"))
    assert schema["items"]["properties"]["parameters"] == {"type": "object", "properties": {}}


def test_auto_and_none_force_nothing():
    assert tool_choice_grammar("hermes", TOOLS, "none") is None
    assert tool_choice_grammar("hermes", TOOLS, "auto") is None
    assert tool_choice_grammar("hermes", [], "auto") is None
    assert tool_choice_grammar(None, STRICT, "auto") is None
    assert tool_choice_grammar("pythonic", STRICT, "auto") is None


@pytest.mark.parametrize("name", sorted(n for n, f in TOOL_FORMATS.items() if f.begin))
def test_a_strict_tool_gives_a_structural_tag_that_the_parser_reads(name):
    grammar = tool_choice_grammar(name, STRICT, "auto")
    assert grammar.kind == "structural_tag"
    tag = json.loads(grammar.source)
    weather, now, _ = tag["structures"]
    assert weather["schema"]["properties"]["city"] == {"type": "string"} and now["schema"] == {}
    assert all(structure["begin"].startswith(tag["triggers"][0]) for structure in (weather, now))
    answer = f'Well: {weather["begin"]}{{"city": "X"}}{weather["end"]}'
    whole = ToolCallParser(name, STRICT).parse(answer)
    assert whole.content == "Well:"
    assert [(call.name, json.loads(call.arguments)) for call in whole.calls] == [
        ("get_weather", {"city": "X"})
    ]


@pytest.mark.parametrize(
    ("tools", "choice", "text"),
    [
        ([], "required", "Tools cannot be empty if tool choice is set to required."),
        ([], "now", "Tools cannot be empty if tool choice is set to a specific tool."),
        (TOOLS, "x", "Tool 'x' not found in tools list."),
        (TOOLS, {"type": "function"}, "names no function"),
        (
            [
                {"function": {"name": n, "parameters": {"$defs": {"d": {"const": n}}}}}
                for n in ("f", "g")
            ],
            "required",
            "Tool definition 'd' has multiple schemas, which is not supported",
        ),
    ],
)
def test_errors(tools, choice, text):
    with pytest.raises(InvalidRequestError, match=text):
        tool_choice_grammar("hermes", tools, choice)
