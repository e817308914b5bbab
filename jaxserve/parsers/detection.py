"""``auto``: which formats a model writes, read off its chat template."""

import re
from typing import NamedTuple


class _Rule(NamedTuple):
    """The template of a model with ``format`` has one of ``any_of`` and all of ``all_of``."""

    format: str
    any_of: tuple[str, ...]
    all_of: tuple[str, ...] = ()


# The first rule that fits counts: markers that only one family has come first.
_TOOL_RULES = (
    _Rule("kimi_k2", ("<|tool_calls_section_begin|>",)),
    _Rule("gpt-oss", ("<|channel|>",), ("<|message|>",)),
    _Rule("gemma4", ("<|tool_call>",)),
    _Rule("minimax-m2", ("<minimax:tool_call>",)),
    _Rule("deepseekv41", ("<｜DSML｜ calls>",)),
    _Rule("deepseekv4", ("<｜DSML｜tool_calls>",)),
    _Rule("deepseekv32", ("<｜DSML｜function_calls>",)),
    _Rule("deepseekv3", ("```json",), ("<｜tool▁calls▁begin｜>",)),
    _Rule("deepseekv31", ("<｜tool▁calls▁begin｜>",)),
    _Rule("step3", ("<steptml:invoke",)),
    _Rule("interns1", ("<|action_start|>",), ("<|plugin|>",)),
    _Rule("dots", ("<dots_function_call>",)),
    _Rule("hunyuan", ("<tool_sep>",), ("<tool_calls>",)),
    _Rule("glm45", ("<arg_key>",), ("<arg_value>",)),
    _Rule("qwen3_coder", ("<function=",), ("<parameter=",)),
    _Rule("mistral", ("[TOOL_CALLS]",)),
    _Rule("lfm2", ("<|tool_call_start|>", "<|tool_list_start|>")),
    _Rule("qwen25", ('"arguments"', "'arguments'", ".arguments"), ("<tool_call>",)),
    _Rule("pythonic", ("<|python_start|>", "[func_name1(")),
    _Rule("llama3", ("<|python_tag|>",)),
    _Rule("llama3", ('"parameters": ',), ("<|start_header_id|>",)),
)

_THINK = ("<think>", "</think>")
_REASONING_RULES = (
    _Rule("gpt-oss", ("<|channel|>",), ("<|message|>",)),
    _Rule("gemma4", ("<|channel>",)),
    _Rule("kimi", ("◁think▷",)),
    _Rule("mistral", ("[THINK]",)),
    _Rule("kimi_k2", _THINK, ("<|tool_calls_section_begin|>",)),
    _Rule("glm45", _THINK, ("[gMASK]",)),
    _Rule("minimax", _THINK, ("<minimax:tool_call>",)),
    _Rule("step3", _THINK, ("<steptml:invoke",)),
    _Rule("hunyuan", _THINK, ("<tool_sep>",)),
    _Rule("nemotron_3", _THINK, ("truncate_history_thinking",)),
    _Rule("interns1", _THINK, ("default_thinking_sys",)),
)

# It is false where the request does not say.
_ENABLE_THINKING_OFF = re.compile(
    r"set\s+enable_thinking\s*=\s*false\b|enable_thinking\s*\|\s*d(?:efault)?\(\s*false\b",
    re.IGNORECASE,
)
_OPENS_THINKING = re.compile(r"<think>(?!(?:\s|\\n)*</think>)")


def detect(chat_template: str | None) -> tuple[str | None, str | None]:
    """(reasoning format, tool call format) of the model with this template; None: has none.

    Only what the template itself writes counts.  A format that is not in the tables is None too.
    """
    if chat_template is None:
        return None, None
    reasoning = _first(_REASONING_RULES, chat_template) or _thinking(chat_template)
    return reasoning, _first(_TOOL_RULES, chat_template)


def _first(rules: tuple[_Rule, ...], template: str) -> str | None:
    for rule in rules:
        if any(text in template for text in rule.any_of) and all(
            text in template for text in rule.all_of
        ):
            return rule.format
    return None


def _thinking(template: str) -> str | None:
    """The format of a template with <think>, by how the thinking is turned on."""
    if not any(tag in template for tag in _THINK):
        return None
    if "<｜Assistant｜>" in template:
        return "deepseek-v3" if "thinking" in template else "deepseek-r1"
    if "enable_thinking" in template:
        return "mimo" if _ENABLE_THINKING_OFF.search(template) else "qwen3"
    _, found, end = template.rpartition("add_generation_prompt")
    opens = found and _OPENS_THINKING.search(end) is not None
    # Without a hint, the format that also reads an answer without any thinking.
    return "qwen3-thinking" if opens else "qwen3"
