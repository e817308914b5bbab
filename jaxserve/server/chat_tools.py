"""The tools of a chat request: what the model is shown, what it must write, how it is read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.parsers import (
    JsonArrayToolParser,
    ToolCallParser,
    tool_choice_grammar,
    tool_choice_name,
    tool_format,
)
from jaxserve.request import Grammar
from jaxserve.server.json_body import JsonObject

CHOICES = ("auto", "none", "required")
JSON_TYPES = frozenset(("string", "number", "integer", "object", "array", "boolean", "null"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """How the tools of one request are used.

    ``format`` is the model's own way to write calls; ``is_array``: they come as a JSON array.
    ``grammar`` is what the whole answer must match, None for an answer that may be a text.
    ``max_calls`` is 1 where calls are not to come in parallel.
    """

    tools: tuple[JsonObject, ...] = ()  # those that the chat template is shown
    is_read: bool = False
    format: str | None = None
    is_array: bool = False
    grammar: Grammar | None = None
    max_calls: int | None = None
    first_index: int = 0  # calls in the conversation so far

    def or_calls(self, grammar: Grammar) -> Grammar:
        """``grammar`` for an answer that is a text, the model's own format for one that calls.

        Raises:
            InvalidRequestError: the two cannot be told apart.
        """
        text = _as_format(grammar)
        frame = None if self.format is None or self.is_array else tool_format(self.format)
        if text is None or frame is None or frame.begin is None:
            raise InvalidRequestError(
                f"a {grammar.kind} that the output must match cannot be combined with these tools: "
                'leave one of them away, or send tool_choice "none".'
            )
        calls = {
            "type": "tags_with_separator",
            "tags": [_tag(frame.begin, frame.end, tool) for tool in self.tools],
            "separator": "\n",
            "at_least_one": True,
            "stop_after_first": self.max_calls == 1,
        }
        either = {"type": "or", "elements": [text, calls]}
        tag = {"type": "structural_tag", "format": either}
        return Grammar("structural_tag", orjson.dumps(tag).decode())

    @property
    def needs_special_tokens(self) -> bool:
        """The markers of calls are special tokens, which must stay in the text."""
        return (
            self.is_read
            and self.format is not None
            and tool_format(self.format).needs_special_tokens
        )

    def new_parser(self) -> ToolCallParser | None:
        """What reads one answer's calls; None if there can be none."""
        if not self.is_read:
            return None
        if self.format is None or self.is_array:
            return JsonArrayToolParser(self.tools, format=self.format, first_index=self.first_index)
        return ToolCallParser(self.format, self.tools, first_index=self.first_index)


def tool_use(
    tools: Sequence[JsonObject],
    choice: str | Mapping[str, object],
    *,
    parallel: bool,
    parser: str | None,
    messages: Sequence[Mapping[str, object]],
) -> ToolUse:
    """What ``tools`` and ``tool_choice`` ask for.

    Args:
        parallel: more than one call may come.
        parser: the server's --tool-call-parser.
        messages: the conversation so far.

    Raises:
        InvalidRequestError: tools or a choice that are none.
        UnsupportedFeatureError: a choice that needs a parser, and the server has none.
    """
    _check_choice(choice, has_tools=bool(tools))
    for i, tool in enumerate(tools if choice != "none" else ()):
        _check_tool(i, tool)
    tools, choice = _chosen(tools, choice)
    parallel = parallel and isinstance(choice, str)  # a tool that is named is called once
    if not tools or choice == "none":
        return ToolUse()
    found = tool_choice_grammar(parser, tools, choice, parallel=parallel)
    is_array = found is not None and found.kind == "json_schema"
    if not is_array and parser is None:
        raise UnsupportedFeatureError(
            '`tools` with tool_choice "auto" is not supported by this server: it does not know how '
            "the model writes calls. Start it with --tool-call-parser NAME (auto, if the chat "
            'template tells), or send tool_choice "required" or "none".'
        )
    return ToolUse(
        tools=tuple(tools),
        is_read=True,
        format=parser,
        is_array=is_array,
        grammar=None if found is None else Grammar(found.kind, found.source),
        max_calls=None if parallel else 1,
        first_index=sum(_num_calls(message) for message in messages),
    )


def _check_choice(choice: str | Mapping[str, object], *, has_tools: bool) -> None:
    if isinstance(choice, str):
        if choice not in CHOICES:
            raise InvalidRequestError(
                f"tool_choice must be one of {', '.join(CHOICES)} or "
                f'{{"type": "function", "function": {{"name": …}}}}, got {choice!r}.'
            )
        if choice == "required" and not has_tools:
            raise InvalidRequestError("Tools cannot be empty if tool choice is set to required.")
    elif not has_tools:
        raise InvalidRequestError("Tools cannot be empty if tool choice is set to a specific tool.")


def _chosen(
    tools: Sequence[JsonObject], choice: str | Mapping[str, object]
) -> tuple[Sequence[JsonObject], str | Mapping[str, object]]:
    """The tools that may be called, which are those the model is shown, and the choice of them."""
    if isinstance(choice, str):
        return tools, choice
    if choice.get("type") != "allowed_tools":
        return _with_names(tools, [tool_choice_name(choice)]), choice
    allowed = choice.get("allowed_tools")
    named = allowed.get("tools") if isinstance(allowed, Mapping) else None
    mode = allowed.get("mode", "auto") if isinstance(allowed, Mapping) else None
    is_list = isinstance(named, list) and all(isinstance(tool, Mapping) for tool in named)
    if not is_list or mode not in ("auto", "required"):
        raise InvalidRequestError(
            'tool_choice of type allowed_tools takes {"mode": "auto" or "required", "tools": '
            '[{"type": "function", "function": {"name": …}}]} in `allowed_tools`.'
        )
    assert isinstance(named, list)
    found = _with_names(tools, [tool_choice_name(tool) for tool in named])
    _check_choice(mode, has_tools=bool(found))
    return found, mode


def _with_names(tools: Sequence[JsonObject], names: Sequence[str]) -> list[JsonObject]:
    declared = [_name(tool) for tool in tools]
    for name in names:
        if name not in declared:
            raise InvalidRequestError(f"Tool '{name}' not found in tools list.")
    return [tool for tool, name in zip(tools, declared, strict=True) if name in names]


def _name(tool: JsonObject) -> object:
    function = tool["function"]
    assert isinstance(function, Mapping)  # checked by _check_tool
    return function.get("name")


def _check_tool(i: int, tool: JsonObject) -> None:
    kind = tool.get("type", "function")
    if kind != "function":
        raise UnsupportedFeatureError(
            f"`tools[{i}]` of type {kind!r} is not supported: tools are of type 'function'."
        )
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequestError(
            f'tools[{i}].function must be an object such as {{"name": …, "parameters": {{…}}}}.'
        )
    problem = next(_schema_problems(function.get("parameters")), None)
    if problem is not None:
        raise InvalidRequestError(f"Tool {i} function has invalid 'parameters' schema: {problem}")


def _schema_problems(schema: object, where: str = "parameters") -> Iterator[str]:
    """What is wrong at a glance; a grammar made of the schema looks closer."""
    if schema is None or isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        yield f"{where} must be an object, got {type(schema).__name__}."
        return
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in JSON_TYPES:
            yield f"{where}.type must be one of {', '.join(sorted(JSON_TYPES))}, got {kind!r}."
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        yield f"{where}.properties must be an object, got {type(properties).__name__}."
        return
    for name, inner in properties.items():
        yield from _schema_problems(inner, f"{where}.properties.{name}")


def _as_format(grammar: Grammar) -> JsonObject | None:
    """``grammar`` as a part of a structural tag; None for one that is a tag itself."""
    match grammar.kind:
        case "json_schema":
            try:
                return {"type": "json_schema", "json_schema": orjson.loads(grammar.source)}
            except orjson.JSONDecodeError as error:
                raise InvalidRequestError(f"json_schema is not JSON: {error}") from None
        case "regex":
            return {"type": "regex", "pattern": grammar.source}
        case "ebnf":
            return {"type": "grammar", "grammar": grammar.source}
    return None


def _tag(begin: str, end: str, tool: JsonObject) -> JsonObject:
    function = tool["function"]
    assert isinstance(function, Mapping)
    is_strict = function.get("strict") is True
    schema = function.get("parameters") if is_strict else None
    return {
        "type": "tag",
        "begin": begin.format(name=function["name"]),
        "content": {"type": "json_schema", "json_schema": schema or {"type": "object"}},
        "end": end,
    }


def _num_calls(message: Mapping[str, object]) -> int:
    calls = message.get("tool_calls")
    return len(calls) if isinstance(calls, list) else 0
