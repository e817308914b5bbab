"""Tool calls out of the text of an answer, in pieces as it comes or at once."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxserve.parsers.calls import CallSink, ToolCall, ToolIncrement, read_tools
from jaxserve.parsers.json_calls import JsonCalls
from jaxserve.parsers.source import Steps, TextSource
from jaxserve.parsers.tool_formats import CallEngine, tool_format


class ParsedCalls(NamedTuple):
    """A whole answer: the text outside the calls, and the calls."""

    content: str
    calls: tuple[ToolCall, ...]


class ToolCallParser:
    """Splits one answer into content and calls.  Not thread-safe; one per answer.

    Laws, for every format:
    - the pieces joined do not depend on how the text was cut;
    - a call's ``arguments`` joined are a prefix of a valid JSON text, and a whole one unless the
      markup broke off inside them;
    - a call is announced when its name is known and its arguments begin; markup that breaks off
      before that, and a call of a function that was not declared, come out as content, verbatim;
    - nothing is lost but the markup of calls that were announced and blanks beside it.

    Args:
        format: a name of TOOL_FORMATS.
        tools: the request's tools; without any, everything is content.
        first_index: the number of calls in the conversation so far (for Kimi K2's ids).

    Raises:
        InvalidRequestError: an unknown format, or a tool without a name.
    """

    def __init__(
        self, format: str, tools: Sequence[Mapping[str, object]], *, first_index: int = 0
    ) -> None:
        self._start(tool_format(format).engine, format, tools, first_index)

    def _start(
        self,
        engine: CallEngine,
        format: str | None,
        tools: Sequence[Mapping[str, object]],
        first_index: int,
    ) -> None:
        self._source = TextSource()
        self._tools = read_tools(tools)
        self._sink = CallSink(format, self._tools, self._source, first_index)
        self._steps = self._run(engine)

    def _run(self, engine: CallEngine) -> Steps[None]:
        if self._tools:
            yield from engine.run(self._source, self._sink)
        yield from self._source.rest(self._sink.content)

    @property
    def has_calls(self) -> bool:
        """Whether a call was announced."""
        return self._sink.num_calls > 0

    def push(self, text: str, is_last: bool = False) -> ToolIncrement:
        """The next piece of the answer; ``is_last`` gives out what was held back.

        Raises:
            ValueError: a push after the last one.
        """
        self._source.push(text, is_last)
        next(self._steps, None)
        if is_last:
            self._sink.reject()
        return self._sink.take(is_last)

    def parse(self, text: str) -> ParsedCalls:
        """Read a whole answer at once."""
        content, deltas = self.push(text, is_last=True)
        arguments: dict[int, list[str]] = {}
        for delta in deltas:
            arguments.setdefault(delta.index, []).append(delta.arguments)
        calls = tuple(
            ToolCall(
                index=delta.index,
                id=delta.id,
                name=delta.name,
                arguments="".join(arguments[delta.index]),
                tool_index=self._tools[delta.name].index,
            )
            for delta in deltas
            if delta.id is not None and delta.name is not None
        )
        return ParsedCalls(content, calls)


class JsonArrayToolParser(ToolCallParser):
    """Reads what ``tool_choice_grammar`` forces: ``[{"name": …, "parameters": {…}}, …]``.

    ``format`` decides how the calls' ids look.
    """

    def __init__(
        self,
        tools: Sequence[Mapping[str, object]],
        *,
        format: str | None = None,
        first_index: int = 0,
    ) -> None:
        self._start(JsonCalls(is_bare=True), format, tools, first_index)
