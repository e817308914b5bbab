"""The table of tool call formats: how each model family writes a call.  Data only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from jaxserve.errors import InvalidRequestError
from jaxserve.parsers.calls import CallSink
from jaxserve.parsers.gemma_calls import GemmaCalls
from jaxserve.parsers.harmony import HarmonyCalls
from jaxserve.parsers.json_calls import JsonCalls
from jaxserve.parsers.named_calls import MistralCalls, NamedJsonCalls
from jaxserve.parsers.pythonic_calls import PythonicCalls
from jaxserve.parsers.source import Steps, TextSource
from jaxserve.parsers.xml_calls import XmlCalls


class CallEngine(Protocol):
    """One way of writing calls."""

    def run(self, source: TextSource, sink: CallSink) -> Steps[None]:
        """Read a whole answer: content and calls go to ``sink``."""


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """One format.

    ``begin`` (with ``{name}`` for the function), ``end`` and ``trigger`` frame the JSON arguments
    in a structural tag; None where the arguments are not JSON.
    ``needs_special_tokens``: the markers are special tokens, which the detokenizer must keep.
    """

    engine: CallEngine
    needs_special_tokens: bool = True
    begin: str | None = None
    end: str = ""
    trigger: str = ""


def _dsml(block: str, invoke: str = "invoke", parameter: str = "parameter") -> ToolFormat:
    """DeepSeek's tags from V3.2 on; only the name of the outer one changes."""
    name = "｜DSML｜"
    return ToolFormat(
        engine=XmlCalls(
            section=(f"<{name}{block}>", f"</{name}{block}>"),
            call_start=(f'<{name}{invoke} name="',),
            name_ends=('"',),
            name_close='">',
            parameter_start=f'<{name}{parameter} name="',
            parameter_name_ends={
                '" string="true">': "string",
                '" string="false">': "json",
            },
            value_end=f"</{name}{parameter}>",
            call_end=(f"</{name}{invoke}>",),
            allows_json=True,
        ),
    )


def _attributes(
    section: tuple[str, str] | None,
    call: str,
    parameter: str,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
) -> XmlCalls:
    """Elements whose names stand in a ``name`` attribute, with the values as their text."""
    return XmlCalls(
        section=section,
        call_start=(*before, f'<{call} name="'),
        name_ends=('"',),
        name_close='">',
        parameter_start=f'<{parameter} name="',
        parameter_name_ends={'">': "schema"},
        value_end=f"</{parameter}>",
        call_end=(f"</{call}>", *after),
        undeclared="string",
    )


_HERMES = ToolFormat(
    engine=JsonCalls(starts=("<tool_call>",), end="</tool_call>"),
    begin='<tool_call>\n{{"name":"{name}", "arguments":',
    end="}\n</tool_call>",
    trigger="<tool_call>",
)
_ARGUMENT_PAIRS = XmlCalls(
    call_start=("<tool_call>",),
    name_ends=("\n", "<arg_key>", "</tool_call>"),
    parameter_start="<arg_key>",
    parameter_name_ends={"</arg_key>": "schema"},
    value_start="<arg_value>",
    value_end="</arg_value>",
    call_end=("</tool_call>",),
)
_GLM = ToolFormat(engine=_ARGUMENT_PAIRS)
_QWEN3_CODER_TAGS = XmlCalls(
    section=("<tool_call>", "</tool_call>"),
    is_section_optional=True,
    call_start=("<function=",),
    name_ends=(">",),
    name_close=">",
    parameter_start="<parameter=",
    parameter_name_ends={">": "schema"},
    value_end="</parameter>",
    is_value_end_optional=True,
    call_end=("</function>",),
    trims_line_ends=True,
    undeclared="string",
)
_QWEN3_CODER = ToolFormat(engine=_QWEN3_CODER_TAGS)
_DEEPSEEK_SECTION = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_CALL = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")

# Sources: the chat templates of the model families, and SGLang 0.5.23's table for the names.
TOOL_FORMATS: Mapping[str, ToolFormat] = {
    "deepseekv3": ToolFormat(
        engine=NamedJsonCalls(
            section=_DEEPSEEK_SECTION,
            call_start=_DEEPSEEK_CALL[0],
            header_end="```json",
            name=re.compile("function<｜tool▁sep｜>(?P<name>.+)"),
            call_end=("```", _DEEPSEEK_CALL[1]),
        ),
        begin="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
        end="\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        trigger=_DEEPSEEK_SECTION[0],
    ),
    "deepseekv31": ToolFormat(
        engine=NamedJsonCalls(
            section=_DEEPSEEK_SECTION,
            call_start=_DEEPSEEK_CALL[0],
            header_end="<｜tool▁sep｜>",
            name=re.compile("(?P<name>.+)"),
            call_end=_DEEPSEEK_CALL[1:],
        ),
        begin="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",
        end="<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        trigger=_DEEPSEEK_SECTION[0],
    ),
    "deepseekv32": _dsml("function_calls"),
    "deepseekv4": _dsml("tool_calls"),
    "deepseekv41": _dsml(" calls", " invoke", " parameter"),
    "dots": ToolFormat(
        engine=_attributes(("<dots_function_call>", "</dots_function_call>"), "invoke", "parameter")
    ),
    "gemma4": ToolFormat(engine=GemmaCalls()),
    "glm": _GLM,
    "glm45": _GLM,
    "glm47": _GLM,
    "gpt-oss": ToolFormat(engine=HarmonyCalls()),
    "hermes": _HERMES,
    "hunyuan": ToolFormat(
        engine=replace(
            _ARGUMENT_PAIRS,
            section=("<tool_calls>", "</tool_calls>"),
            name_ends=("<tool_sep>", "\n", "<arg_key>", "</tool_call>"),
            name_close="<tool_sep>",
            undeclared="string",
        )
    ),
    "interns1": ToolFormat(
        engine=JsonCalls(starts=("<|action_start|> <|plugin|>",), end="<|action_end|>"),
        begin='<|action_start|> <|plugin|>\n{{"name": "{name}", "parameters": ',
        end="}<|action_end|>",
        trigger="<|action_start|> <|plugin|>",
    ),
    "kimi_k2": ToolFormat(
        engine=NamedJsonCalls(
            section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
            call_start="<|tool_call_begin|>",
            header_end="<|tool_call_argument_begin|>",
            name=re.compile(r"(?:functions\.)?(?P<name>.+):[0-9]+"),
            call_end=("<|tool_call_end|>",),
        ),
        begin="<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0"
        "<|tool_call_argument_begin|>",
        end="<|tool_call_end|><|tool_calls_section_end|>",
        trigger="<|tool_calls_section_begin|>",
    ),
    "lfm2": ToolFormat(
        engine=PythonicCalls(start="<|tool_call_start|>", end="<|tool_call_end|>", allows_json=True)
    ),
    "ling3": _GLM,
    "llama3": ToolFormat(
        engine=JsonCalls(starts=("<|python_tag|>",), separator=";", is_bare=True),
        begin='<|python_tag|>{{"name":"{name}", "arguments":',
        end="}",
        trigger="<|python_tag|>",
    ),
    "mimo": ToolFormat(engine=replace(_QWEN3_CODER_TAGS, trims_line_ends=False)),
    "minimax-m2": ToolFormat(
        engine=_attributes(("<minimax:tool_call>", "</minimax:tool_call>"), "invoke", "parameter")
    ),
    "mistral": ToolFormat(
        engine=MistralCalls(),
        begin='[TOOL_CALLS] [{{"name":"{name}", "arguments":',
        end="}]",
        trigger="[TOOL_CALLS]",
    ),
    "nanbeige": _QWEN3_CODER,
    "poolside_v1": _GLM,
    "pythonic": ToolFormat(
        engine=PythonicCalls(start="<|python_start|>", end="<|python_end|>", is_bare=True)
    ),
    "qwen": _HERMES,
    "qwen25": _HERMES,
    "qwen3_coder": _QWEN3_CODER,
    "spark25": _GLM,
    "step3": ToolFormat(
        engine=_attributes(
            ("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"),
            "steptml:invoke",
            "steptml:parameter",
            before=("<｜tool_call_begin｜>", "function", "<｜tool_sep｜>"),
            after=("<｜tool_call_end｜>",),
        )
    ),
    "step3p5": _QWEN3_CODER,
    "trinity": _HERMES,
}


def tool_format(name: str) -> ToolFormat:
    """The format called ``name``.

    Raises:
        InvalidRequestError: no such format; the message lists those there are.
    """
    if name not in TOOL_FORMATS:
        raise InvalidRequestError(
            f"tool_call_parser '{name}' is not supported: choose one of "
            f"{', '.join(sorted(TOOL_FORMATS))}, or auto."
        )
    return TOOL_FORMATS[name]
