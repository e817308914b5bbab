"""The reasoning and the content of an answer, in pieces as it comes or at once."""

from typing import NamedTuple

from jaxserve.parsers.harmony import split_messages
from jaxserve.parsers.reasoning_formats import ReasoningFormat, reasoning_format
from jaxserve.parsers.source import WHITESPACE, Markers, Steps, TextSource


class ReasoningIncrement(NamedTuple):
    """What one push brought."""

    reasoning: str
    content: str


class ReasoningParser:
    """Splits one answer into reasoning and content.  Not thread-safe; one per answer.

    The reasoning stands at the beginning of an answer: a start marker further on is a word of the
    content.  Blanks and line ends beside the markers are layout and dropped.  Without an end
    marker everything is reasoning.  The pieces joined do not depend on how the text was cut.

    Args:
        format: a name of REASONING_FORMATS.
        starts_inside: the prompt has already begun the reasoning (``format.starts_inside(prompt)``
            tells); None: as the format usually does.  With False a start marker still begins it.
        ends_at_tool_call: a tool call's marker ends the reasoning too, if the format says so.

    Raises:
        InvalidRequestError: an unknown format.
    """

    def __init__(
        self, format: str, *, starts_inside: bool | None = None, ends_at_tool_call: bool = True
    ) -> None:
        self.format: ReasoningFormat = reasoning_format(format)
        inside = self.format.always_starts_inside if starts_inside is None else starts_inside
        self.is_reasoning = inside
        tool_start = self.format.tool_start if ends_at_tool_call else None
        self._source = TextSource()
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._space: list[str] = []
        run = self._run_harmony if self.format.is_harmony else self._run
        self._steps = run(inside, tool_start)

    def push(self, text: str, is_last: bool = False) -> ReasoningIncrement:
        """The next piece of the answer; ``is_last`` gives out what was held back.

        Raises:
            ValueError: a push after the last one.
        """
        self._source.push(text, is_last)
        next(self._steps, None)
        increment = ReasoningIncrement("".join(self._reasoning), "".join(self._content))
        self._reasoning, self._content = [], []
        return increment

    def _run(self, inside: bool, tool_start: str | None) -> Steps[None]:
        source, format = self._source, self.format
        source.start_record()
        yield from source.skip_space()
        begins = (yield from source.literal(format.think_start)) is not None
        blanks = source.end_record()
        if begins or inside:
            self.is_reasoning = True
            yield from source.skip_space()
            ends = (format.think_end,) if tool_start is None else (format.think_end, tool_start)
            end = yield from source.until(Markers(ends), self._add_reasoning)
            self.is_reasoning = False
            if end == tool_start:
                self._content.append(end or "")
            else:
                yield from source.skip_space()
        else:
            self._content.append(blanks)
        yield from source.rest(self._emit_content)

    def _run_harmony(self, inside: bool, _: str | None) -> Steps[None]:
        yield from split_messages(
            self._source, self._emit_reasoning, self._emit_content, starts_inside=inside
        )

    def _emit_reasoning(self, text: str) -> None:
        if text:
            self.is_reasoning = True
            self._reasoning.append(text)

    def _emit_content(self, text: str) -> None:
        if text:
            self.is_reasoning = False
            self._content.append(text)

    def _add_reasoning(self, text: str) -> None:
        inked = text.rstrip(WHITESPACE)
        if inked:
            self._reasoning.extend(self._space)
            self._reasoning.append(inked)
            self._space = []
        self._space.append(text[len(inked) :])
