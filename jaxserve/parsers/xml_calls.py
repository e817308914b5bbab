"""Calls written as tags: a name, and one element per parameter with plain text in it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxserve.parsers.calls import MAX_NAME_LENGTH, CallSink, Tool
from jaxserve.parsers.json_calls import announced_arguments
from jaxserve.parsers.source import Emit, Markers, Steps, TextSource
from jaxserve.parsers.values import json_of, parameter_types

ValueKind = Literal["string", "json", "schema"]
STRING = frozenset({"string"})


@dataclass(frozen=True, kw_only=True)
class XmlCalls:
    """The tags of one format.

    Args:
        section: around a group of calls; ``is_section_optional`` if a call may stand without.
        call_start: what stands before the name, with blanks between the parts.
        name_ends: where the name ends; ``name_close`` is read away after it, if it is there.
        parameter_start: before a parameter's name; ``parameter_name_ends`` after it, each with
            how the value is to be read: as a string, as JSON, or by the function's schema.
        value_start: before the value, if that is a tag of its own.
        value_end: after it.
        is_value_end_optional: the next tag ends a value too.
        call_end: the first part ends the parameters; the others may be missing.
        trims_line_ends: a value is written on lines of its own.
        undeclared: how to read a value for which the function's schema names no type.
        allows_json: the arguments may be one JSON object instead.
    """

    section: tuple[str, str] | None = None
    is_section_optional: bool = False
    call_start: tuple[str, ...]
    name_ends: tuple[str, ...]
    name_close: str | None = None
    parameter_start: str
    parameter_name_ends: Mapping[str, ValueKind]
    value_start: str | None = None
    value_end: str
    is_value_end_optional: bool = False
    call_end: tuple[str, ...]
    trims_line_ends: bool = False
    undeclared: ValueKind = "schema"
    allows_json: bool = False

    def run(self, source: TextSource, sink: CallSink) -> Steps[None]:
        """Read a whole text."""
        start = self.call_start[0]
        starts = [start] if self.section is None else [self.section[0]]
        if self.is_section_optional:
            starts.append(start)
        markers = Markers(starts)
        while (marker := (yield from source.until(markers, sink.content))) is not None:
            source.start_record(marker)
            if marker == start or (yield from source.literals((start,))):
                yield from self._calls(source, sink)
            sink.reject()

    def _calls(self, source: TextSource, sink: CallSink) -> Steps[None]:
        """Read the calls of one section; the first part of the first one's start is read."""
        while (yield from self._call(source, sink)):
            if self.section is None:
                source.end_record()
                return
            yield from source.skip_space()
            marker = yield from source.literal(self.section[1], self.call_start[0])
            if marker != self.call_start[0]:
                source.end_record()
                return

    def _call(self, source: TextSource, sink: CallSink) -> Steps[bool]:
        if not (yield from source.literals(self.call_start[1:])):
            return False
        yield from source.skip_space()
        written = yield from source.name(Markers(self.name_ends), MAX_NAME_LENGTH)
        tool = sink.tools.get("" if written is None else written.strip())
        if tool is None:
            return False
        if self.name_close is not None:
            yield from source.literal(self.name_close)
        if self.allows_json:
            yield from source.skip_space()
            if (yield from source.next_char()) == "{":
                return (yield from self._json_body(source, sink, tool))
        sink.announce(tool.name)
        body = _Body(self, source, sink, tool)
        return (yield from body.read()) and (yield from self._end(source))

    def _json_body(self, source: TextSource, sink: CallSink, tool: Tool) -> Steps[bool]:
        if not (yield from announced_arguments(source, sink, tool.name)):
            return False
        yield from source.skip_space()
        if (yield from source.literal(self.call_end[0])) is None:
            return False
        return (yield from self._end(source))

    def _end(self, source: TextSource) -> Steps[bool]:
        for part in self.call_end[1:]:
            source.start_record()
            yield from source.skip_space()
            yield from source.literal(part)
        source.start_record()
        return True


class _Body:
    """Reading the parameters of one announced call."""

    def __init__(self, format: XmlCalls, source: TextSource, sink: CallSink, tool: Tool) -> None:
        self._format = format
        self._source = source
        self._sink = sink
        self._tool = tool
        self._separator = "{"
        ends = (*format.call_end, format.call_start[0], *(format.section or ()))
        self._tags = Markers((format.parameter_start, *ends))
        value_ends = (format.value_end, *(self._tags.all if format.is_value_end_optional else ()))
        self._value_ends = Markers(value_ends)

    def read(self) -> Steps[bool]:
        """Read to the end of the call, which may also be the next tag outside; False: the text
        ended first."""
        while True:
            tag = yield from self._source.until(self._tags, self._sink.content)
            if tag is None:
                return False
            if tag == self._format.parameter_start:
                yield from self._parameter()
                continue
            self._sink.arguments("}" if self._separator == ", " else "{}")
            if tag != self._format.call_end[0]:
                self._source.unread(tag)
            return True

    def _parameter(self) -> Steps[None]:
        format, source = self._format, self._source
        source.start_record(format.parameter_start)
        name_ends = tuple(format.parameter_name_ends)
        name = yield from source.name(Markers(name_ends), MAX_NAME_LENGTH)
        end = yield from source.literal(*name_ends)
        begins = name is not None and end is not None
        if begins and format.value_start is not None:
            begins = yield from source.literals((format.value_start,))
        if name is None or end is None or not begins:
            self._sink.reject()
            return
        source.end_record()
        self._sink.arguments(f"{self._separator}{json.dumps(name.strip(), ensure_ascii=False)}: ")
        self._separator = ", "
        yield from self._value(self._types(name.strip(), format.parameter_name_ends[end]))

    def _types(self, name: str, kind: ValueKind) -> frozenset[str]:
        declared = parameter_types(self._tool.parameters, name)
        if kind == "schema" and declared:
            return declared
        if kind == "schema":
            kind = self._format.undeclared
        return STRING if kind == "string" else frozenset()

    def _value(self, types: frozenset[str]) -> Steps[None]:
        pieces: list[str] = []
        is_string = types == STRING
        if is_string:
            self._sink.arguments('"')
        value = _Lines(self._sink.string_piece if is_string else pieces.append)
        emit = value.add if self._format.trims_line_ends else value.emit
        tag = yield from self._source.until(self._value_ends, emit)
        if tag is None:
            value.end(is_whole=False)
            self._sink.content("".join(pieces))
            return
        value.end(is_whole=True)
        self._sink.arguments('"' if is_string else json_of("".join(pieces), types))
        if tag != self._format.value_end:
            self._source.unread(tag)


class _Lines:
    """A value on lines of its own: the line end before it and the one behind it are not of it."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self._is_first = True
        self._held = ""

    def add(self, text: str) -> None:
        """The next piece."""
        if not text:
            return
        if self._is_first:
            self._is_first = False
            text = text.removeprefix("\n")
        text = self._held + text
        self._held = "\n" if text.endswith("\n") else ""
        self.emit(text.removesuffix("\n"))

    def end(self, is_whole: bool) -> None:
        """Give out the held line end, unless it is the one behind the value."""
        if not is_whole:
            self.emit(self._held)
