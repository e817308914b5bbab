"""tool_choice "required" or a named function, and strict tools, as a grammar for the output."""

import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from jaxserve.errors import InvalidRequestError
from jaxserve.parsers.calls import Tool, read_tools
from jaxserve.parsers.tool_formats import tool_format


class ToolGrammar(NamedTuple):
    """What request.Grammar takes."""

    kind: Literal["json_schema", "structural_tag"]
    source: str


def tool_choice_grammar(
    format: str | None,
    tools: Sequence[Mapping[str, object]],
    choice: str | Mapping[str, object],
    *,
    parallel: bool = True,
) -> ToolGrammar | None:
    """The grammar that ``tool_choice`` asks for.

    "required" and a named function force a JSON array ``[{"name", "parameters"}]``, of one call
    if not ``parallel``, which JsonArrayToolParser reads.  "auto" with a strict tool gives a
    structural tag in the model's own format, for ToolCallParser, where the arguments of
    ``format`` are JSON.  None: no grammar.

    Args:
        format: a name of TOOL_FORMATS or None.
        choice: "auto", "none", "required", or a function's name: bare or as
            ``{"type": "function", "function": {"name": …}}``.

    Raises:
        InvalidRequestError: no tools to choose from, an unknown name, or contradicting $defs.
    """
    name = None if choice in ("auto", "none", "required") else tool_choice_name(choice)
    declared = read_tools(tools)
    if name is None and choice in ("auto", "none"):
        return _strict_grammar(format, declared) if choice == "auto" else None
    if not declared:
        asked = "set to required" if name is None else "set to a specific tool"
        raise InvalidRequestError(f"Tools cannot be empty if tool choice is {asked}.")
    if name is not None and name not in declared:
        raise InvalidRequestError(f"Tool '{name}' not found in tools list.")
    wanted = list(declared.values()) if name is None else [declared[name]]
    return ToolGrammar("json_schema", json.dumps(_array_schema(wanted, parallel)))


def tool_choice_name(choice: str | Mapping[str, object]) -> str:
    """The function that ``choice`` names.

    Raises:
        InvalidRequestError: it names none.
    """
    if isinstance(choice, str):
        return choice
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    if not isinstance(name, str):
        raise InvalidRequestError(
            f"tool_choice {json.dumps(choice, default=str)} names no function: give auto, none, "
            'required or {"type": "function", "function": {"name": …}}.'
        )
    return name


def _array_schema(tools: Sequence[Tool], parallel: bool) -> dict[str, object]:
    calls = [_call_schema(tool) for tool in tools]
    schema: dict[str, object] = {
        "type": "array",
        "minItems": 1,
        "items": calls[0] if len(calls) == 1 else {"type": "object", "anyOf": calls},
    }
    if not parallel:
        schema["maxItems"] = 1
    definitions = _definitions(tools)
    if definitions:
        schema["$defs"] = definitions
    return schema


def _call_schema(tool: Tool) -> dict[str, object]:
    parameters = {key: value for key, value in tool.parameters.items() if key != "$defs"}
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": [tool.name]},
            "parameters": parameters or {"type": "object", "properties": {}},
        },
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _definitions(tools: Sequence[Tool]) -> dict[str, object]:
    """All tools' $defs in one: references are written from the root of the schema."""
    merged: dict[str, object] = {}
    for tool in tools:
        definitions = tool.parameters.get("$defs", {})
        for name, schema in definitions.items() if isinstance(definitions, Mapping) else ():
            if merged.setdefault(name, schema) != schema:
                raise InvalidRequestError(
                    f"Tool definition '{name}' has multiple schemas, which is not supported: "
                    "rename it in one of the tools."
                )
    return merged


def _strict_grammar(format: str | None, tools: Mapping[str, Tool]) -> ToolGrammar | None:
    if format is None or not any(tool.is_strict for tool in tools.values()):
        return None
    frame = tool_format(format)
    if frame.begin is None:
        return None
    structures = [
        {
            "begin": frame.begin.format(name=tool.name),
            "schema": dict(tool.parameters) if tool.is_strict else {},
            "end": frame.end,
        }
        for tool in tools.values()
    ]
    tag = {"type": "structural_tag", "structures": structures, "triggers": [frame.trigger]}
    return ToolGrammar("structural_tag", json.dumps(tag))
