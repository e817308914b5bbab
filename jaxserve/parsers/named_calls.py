"""Calls whose name stands in the markup and whose arguments are JSON."""

import re
from dataclasses import dataclass

from jaxserve.parsers.calls import MAX_NAME_LENGTH, CallSink
from jaxserve.parsers.json_calls import JsonCalls, announced_arguments, close_block
from jaxserve.parsers.source import Markers, Steps, TextSource


@dataclass(frozen=True, kw_only=True)
class NamedJsonCalls:
    """``call_start``, a header, ``header_end``, JSON arguments, ``call_end``.

    ``section`` are the markers around a group of calls; a call may stand without them.
    ``name`` finds the function's name in the header, as its group "name".
    Of ``call_end`` every part may be missing.
    """

    call_start: str
    header_end: str
    name: re.Pattern[str]
    call_end: tuple[str, ...]
    section: tuple[str, str] | None = None

    def run(self, source: TextSource, sink: CallSink) -> Steps[None]:
        """Read a whole text."""
        starts = Markers((self.call_start, *(self.section or ())[:1]))
        while (marker := (yield from source.until(starts, sink.content))) is not None:
            source.start_record(marker)
            if marker == self.call_start or (yield from source.literals((self.call_start,))):
                yield from self._calls(source, sink)
            sink.reject()

    def _calls(self, source: TextSource, sink: CallSink) -> Steps[None]:
        after = (self.call_start, self.section[1]) if self.section else (self.call_start,)
        while (yield from self._call(source, sink)):
            yield from source.skip_space()
            marker = yield from source.literal(*after)
            if marker != self.call_start:
                source.end_record()
                return

    def _call(self, source: TextSource, sink: CallSink) -> Steps[bool]:
        header = yield from source.name(Markers((self.header_end,)), MAX_NAME_LENGTH)
        match = None if header is None else self.name.fullmatch(header.strip())
        name = "" if match is None else match["name"].strip()
        if name not in sink.tools or not (yield from source.literals((self.header_end,))):
            return False
        yield from source.skip_space()
        if not (yield from announced_arguments(source, sink, name)):
            return False
        for part in self.call_end:
            yield from source.skip_space()
            yield from source.literal(part)
        source.start_record()
        return True


@dataclass(frozen=True, kw_only=True)
class MistralCalls:
    """``[TOOL_CALLS]`` and a list of objects (tokenizer v3 to v7), or a name, ``[ARGS]`` and the
    arguments (v13), with ``[CALL_ID]`` and an id between them in v11."""

    marker: str = "[TOOL_CALLS]"
    call_id: str = "[CALL_ID]"
    arguments: str = "[ARGS]"

    def run(self, source: TextSource, sink: CallSink) -> Steps[None]:
        """Read a whole text."""
        objects = JsonCalls(starts=(self.marker,))
        markers = Markers((self.marker,))
        while (yield from source.until(markers, sink.content)) is not None:
            source.start_record(self.marker)
            yield from source.skip_space()
            if (yield from source.next_char()) in ("[", "{"):
                yield from objects.block(source, sink)
            else:
                is_whole = yield from self._call(source, sink)
                yield from close_block(source, sink, is_whole, None)

    def _call(self, source: TextSource, sink: CallSink) -> Steps[bool]:
        ends = Markers((self.call_id, self.arguments, "{"))
        name = yield from source.name(ends, MAX_NAME_LENGTH)
        name = "" if name is None else name.strip()
        if name not in sink.tools:
            return False
        if (yield from source.literal(self.call_id)) is not None:
            call_id = yield from source.name(Markers((self.arguments,)), MAX_NAME_LENGTH)
            if call_id is None:
                return False
        yield from source.literal(self.arguments)
        yield from source.skip_space()
        return (yield from announced_arguments(source, sink, name))
