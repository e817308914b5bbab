"""Reasoning and tool calls in the text of an answer: one table of formats, a few engines.

Reading order: source (text in pieces), json_scan, calls (what comes out), json_calls and the
other engines, tool_formats (the table), tool_parser, reasoning_formats, reasoning, tool_choice,
detection.

An answer's text goes through the ReasoningParser first; its content through the ToolCallParser.
"""

from jaxserve.parsers.calls import ToolCall, ToolCallDelta, ToolIncrement, new_call_id
from jaxserve.parsers.detection import detect
from jaxserve.parsers.reasoning import ReasoningIncrement, ReasoningParser
from jaxserve.parsers.reasoning_formats import (
    REASONING_FORMATS,
    ReasoningFormat,
    reasoning_format,
)
from jaxserve.parsers.tool_choice import ToolGrammar, tool_choice_grammar, tool_choice_name
from jaxserve.parsers.tool_formats import TOOL_FORMATS, ToolFormat, tool_format
from jaxserve.parsers.tool_parser import JsonArrayToolParser, ParsedCalls, ToolCallParser

__all__ = [
    "REASONING_FORMATS",
    "TOOL_FORMATS",
    "JsonArrayToolParser",
    "ParsedCalls",
    "ReasoningFormat",
    "ReasoningIncrement",
    "ReasoningParser",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallParser",
    "ToolFormat",
    "ToolGrammar",
    "ToolIncrement",
    "detect",
    "new_call_id",
    "reasoning_format",
    "tool_choice_grammar",
    "tool_choice_name",
    "tool_format",
]
