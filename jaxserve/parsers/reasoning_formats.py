"""The table of reasoning formats: where a model's thinking begins and ends.  Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from jaxserve.errors import InvalidRequestError

Toggle = Literal["enable_thinking", "thinking", "reasoning_effort"]


@dataclass(frozen=True, kw_only=True)
class ReasoningFormat:
    """One format.

    ``always_starts_inside``: the answer begins inside the reasoning even if nothing in the prompt
    says so.  ``toggle`` is the chat template's key (or the request's reasoning_effort) that turns
    thinking on or off, and ``toggle_default`` what it is when absent; None: it can not be turned.
    ``tool_start`` ends the reasoning too: the model calls a tool without closing it.
    ``needs_special_tokens``: the markers are special tokens, which the detokenizer must keep.
    ``is_harmony``: the answer is a row of messages on channels (harmony.py).
    ``answer_pattern``: a regex of what stands between the reasoning and the answer, where that is
    more than ``think_end``: a grammar for the answer starts after it.
    """

    think_start: str = "<think>"
    think_end: str = "</think>"
    always_starts_inside: bool = False
    toggle: Toggle | None = None
    toggle_default: bool = True
    tool_start: str | None = None
    needs_special_tokens: bool = False
    is_harmony: bool = False
    answer_pattern: str | None = None

    def is_enabled(
        self, chat_template_kwargs: Mapping[str, object], reasoning_effort: str | None = None
    ) -> bool:
        """Whether a request with these settings makes the model think."""
        if self.toggle is None:
            return True
        if self.toggle == "reasoning_effort":
            effort = chat_template_kwargs.get("reasoning_effort", reasoning_effort)
            return self.toggle_default if effort is None else effort not in ("none", "no_think")
        value = chat_template_kwargs.get(self.toggle)
        return self.toggle_default if value is None else value is not False

    def starts_inside(self, prompt: str) -> bool:
        """Whether the answer to ``prompt`` begins inside the reasoning: the chat template has
        already written the start marker, or the model never writes one itself."""
        tail = prompt.rstrip()
        if tail.endswith(self.think_start):
            return True
        return self.always_starts_inside and not tail.endswith(self.think_end)


_QWEN3 = ReasoningFormat(toggle="enable_thinking", tool_start="<tool_call>")
_DEEPSEEK_R1 = ReasoningFormat(always_starts_inside=True)
_OPT_IN = replace(_QWEN3, toggle_default=False)

# Sources: the chat templates of the model families, and SGLang 0.5.23's table for the names.
REASONING_FORMATS: Mapping[str, ReasoningFormat] = {
    "deepseek-r1": _DEEPSEEK_R1,
    "deepseek-v3": ReasoningFormat(toggle="thinking", toggle_default=False),
    "deepseek-v4": ReasoningFormat(toggle="thinking", toggle_default=False),
    "deepseek-v41": ReasoningFormat(toggle="thinking", toggle_default=False),
    "dots": _QWEN3,
    "gemma4": ReasoningFormat(
        think_start="<|channel>thought",
        think_end="<channel|>",
        toggle="enable_thinking",
        toggle_default=False,
        needs_special_tokens=True,
    ),
    "gigachat35": _DEEPSEEK_R1,
    "glm45": _QWEN3,
    "gpt-oss": ReasoningFormat(
        think_start="<|channel|>analysis<|message|>",
        think_end="<|end|>",
        answer_pattern=r"<\|channel\|>\s*final\b[^<]*(<\|constrain\|>[^<]*)?<\|message\|>",
        needs_special_tokens=True,
        is_harmony=True,
    ),
    "granite_thinking_parser": _QWEN3,
    "hunyuan": ReasoningFormat(
        toggle="reasoning_effort", toggle_default=False, tool_start="<tool_calls>"
    ),
    "interns1": _QWEN3,
    "kimi": ReasoningFormat(think_start="◁think▷", think_end="◁/think▷", needs_special_tokens=True),
    "kimi_k2": ReasoningFormat(toggle="thinking", tool_start="<|tool_calls_section_begin|>"),
    "ling3": _QWEN3,
    "mimo": _OPT_IN,
    "minimax": replace(_DEEPSEEK_R1, tool_start="<minimax:tool_call>"),
    "mistral": ReasoningFormat(
        think_start="[THINK]",
        think_end="[/THINK]",
        toggle="reasoning_effort",
        toggle_default=False,
        needs_special_tokens=True,
    ),
    "nanbeige": _QWEN3,
    "nemotron_3": _QWEN3,
    "poolside_v1": _OPT_IN,
    "qwen3": _QWEN3,
    "qwen3-thinking": replace(_QWEN3, toggle=None, always_starts_inside=True),
    "step3": _DEEPSEEK_R1,
    "step3p5": _DEEPSEEK_R1,
}


def reasoning_format(name: str) -> ReasoningFormat:
    """The format called ``name``.

    Raises:
        InvalidRequestError: no such format; the message lists those there are.
    """
    if name not in REASONING_FORMATS:
        raise InvalidRequestError(
            f"reasoning_parser '{name}' is not supported: choose one of "
            f"{', '.join(sorted(REASONING_FORMATS))}, or auto."
        )
    return REASONING_FORMATS[name]
