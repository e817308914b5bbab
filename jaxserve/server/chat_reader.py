"""From the chunks of one choice to its deltas: reasoning, content and tool calls apart."""

from jaxserve.parsers import ToolCallDelta
from jaxserve.request import FinishReason, TextChunk
from jaxserve.server.chat_delta import Delta, TurnFinish
from jaxserve.server.chat_reasoning import ReasoningReader, ReasoningUse
from jaxserve.server.chat_tools import ToolUse


class ChoiceReader:
    """Reads one choice, chunk by chunk."""

    def __init__(self, choice: int, reasoning: ReasoningUse, tools: ToolUse) -> None:
        self._choice = choice
        self._reasoning = (
            None if reasoning.format is None else ReasoningReader(reasoning, reasoning.format)
        )
        self._is_separate = reasoning.is_separate
        self._tools = tools.new_parser()
        self._max_calls = tools.max_calls
        self._has_calls = False
        self._is_parsed = not (self._reasoning is None and self._tools is None)

    def push(self, chunk: TextChunk) -> Delta:
        """What ``chunk`` brings."""
        if self._is_parsed:
            return self._parsed(chunk)
        finish = None if chunk.finish is None else _finish(chunk.finish, has_calls=False)
        return Delta(self._choice, "", chunk.text, (), finish, chunk, 0)

    def _parsed(self, chunk: TextChunk) -> Delta:
        reasoning, content, num_tokens = "", chunk.text, 0
        marked = ""
        if self._reasoning is not None:
            reasoning, marked, content, num_tokens = self._reasoning.push(chunk)
        calls: tuple[ToolCallDelta, ...] = ()
        if self._tools is not None:
            content, calls = self._tools.push(content, chunk.finish is not None)
            if self._max_calls is not None:
                calls = tuple(call for call in calls if call.index < self._max_calls)
            self._has_calls = self._has_calls or bool(calls)
        if not self._is_separate:
            reasoning = ""
            content = chunk.text if self._tools is None else marked + content
        finish = None if chunk.finish is None else _finish(chunk.finish, has_calls=self._has_calls)
        return Delta(self._choice, reasoning, content, calls, finish, chunk, num_tokens)


def _finish(finish: FinishReason, *, has_calls: bool) -> TurnFinish:
    if has_calls and finish.type == "stop":
        return TurnFinish("tool_calls", None)
    return TurnFinish(finish.type, finish.matched)
