"""Calls written as JSON: ``{"name": …, "arguments": {…}}``, alone or in a list, behind a marker;
and calls whose name stands in the markup and only the arguments are JSON.
"""

import json
from dataclasses import dataclass

from jaxserve.parsers.calls import MAX_NAME_LENGTH, CallSink
from jaxserve.parsers.json_scan import json_string, json_value
from jaxserve.parsers.source import Emit, Markers, Steps, TextSource
from jaxserve.parsers.values import read_json

MAX_KEY_LENGTH = 64
DROPPED_KEYS = ("id", "type", "index", "call_id", "tool_call_id")


@dataclass(frozen=True, kw_only=True)
class JsonCalls:
    """A call is a JSON object with a name and arguments.

    ``starts`` begin a block: one object or a list of them.  ``end`` closes it, if there is one.
    ``separator`` stands between objects outside a list.  ``is_bare``: the text may begin with a
    block without any marker.
    """

    starts: tuple[str, ...] = ()
    end: str | None = None
    name_keys: tuple[str, ...] = ("name",)
    arguments_keys: tuple[str, ...] = ("arguments", "parameters")
    separator: str | None = None
    is_bare: bool = False

    def run(self, source: TextSource, sink: CallSink) -> Steps[None]:
        """Read a whole text."""
        if self.is_bare:
            source.start_record()
            yield from source.skip_space()
            yield from self.block(source, sink)
        if not self.starts:
            yield from source.rest(sink.content)
            return
        markers = Markers(self.starts)
        while (marker := (yield from source.until(markers, sink.content))) is not None:
            source.start_record(marker)
            yield from source.skip_space()
            yield from self.block(source, sink)

    def block(self, source: TextSource, sink: CallSink) -> Steps[None]:
        """Read one object or list of objects and the end marker; the record is running."""
        if (yield from source.next_char()) == "[":
            source.read(source.position + 1)
            is_whole = yield from self.list_items(source, sink)
        else:
            is_whole = yield from self.objects(source, sink)
        yield from close_block(source, sink, is_whole, self.end)

    def list_items(self, source: TextSource, sink: CallSink) -> Steps[bool]:
        while True:
            yield from source.skip_space()
            if not (yield from self._object(source, sink)):
                return False
            yield from source.skip_space()
            separator = yield from source.literal(",", "]")
            if separator != ",":
                return separator == "]"

    def objects(self, source: TextSource, sink: CallSink) -> Steps[bool]:
        while True:
            if not (yield from self._object(source, sink)):
                return False
            if self.separator is None:
                return True
            yield from source.skip_space()
            if (yield from source.literal(self.separator)) is None:
                return True
            yield from source.skip_space()

    def _object(self, source: TextSource, sink: CallSink) -> Steps[bool]:
        """Read one call; False: what is recorded is no call, or not the rest of one."""
        if (yield from source.literal("{")) is None:
            return False
        call = _OpenCall(source, sink)
        while True:
            yield from source.skip_space()
            key = yield from json_string(source, MAX_KEY_LENGTH)
            yield from source.skip_space()
            if key is None or (yield from source.literal(":")) is None:
                return False
            yield from source.skip_space()
            if not (yield from self._field(source, call, key)):
                return False
            yield from source.skip_space()
            separator = yield from source.literal(",", "}")
            if separator == "}":
                return call.close()
            if separator is None:
                return False

    def _field(self, source: TextSource, call: "_OpenCall", key: str) -> Steps[bool]:
        if key in self.name_keys and call.name is None:
            name = yield from json_string(source, MAX_NAME_LENGTH)
            return call.set_name(name)
        if key in self.arguments_keys and not call.has_arguments:
            return (yield from call.read_arguments())
        pieces: list[str] = []
        is_whole = yield from json_value(source, pieces.append)
        if is_whole and key not in DROPPED_KEYS:
            call.add_remark(f"{json.dumps(key, ensure_ascii=False)}: {''.join(pieces)}")
        return is_whole


class _OpenCall:
    """One JSON object that may become a call: it is announced when its arguments begin."""

    def __init__(self, source: TextSource, sink: CallSink) -> None:
        self.name: str | None = None
        self.has_arguments = False
        self._is_announced = False
        self._source = source
        self._sink = sink
        self._early: list[str] = []  # arguments that came before the name
        self._remarks: list[str] = []  # what else the object says: text for the reader

    def set_name(self, name: str | None) -> bool:
        if name is None or name not in self._sink.tools:
            return False
        self.name = name
        if self.has_arguments:
            self._announce(name, "".join(self._early))
        return True

    def add_remark(self, text: str) -> None:
        if self._is_announced:
            self._sink.content(text)
            self._source.start_record()
        else:
            self._remarks.append(text)

    def read_arguments(self) -> Steps[bool]:
        self.has_arguments = True
        if self.name is None:
            return (yield from arguments_value(self._source, self._early.append))
        remarks = "".join(self._remarks)
        self._is_announced = yield from announced_arguments(
            self._source, self._sink, self.name, remarks
        )
        return self._is_announced

    def close(self) -> bool:
        """The object is complete; a call without arguments is a call all the same."""
        if self.name is None or (self._remarks and not self._is_announced):
            return False
        if not self._is_announced:
            self._announce(self.name, "{}")
        self._source.start_record()
        return True

    def _announce(self, name: str, arguments: str) -> None:
        self._is_announced = True
        self._sink.announce(name, "".join(self._remarks))
        self._sink.arguments(arguments)
        self._sink.end_call()


def announced_arguments(
    source: TextSource, sink: CallSink, name: str, remarks: str = ""
) -> Steps[bool]:
    """Read the arguments of a call of ``name``, which is announced as soon as they begin.

    ``remarks`` is text that stood beside the name in the call's markup.
    """
    if (yield from source.next_char()) in ("{", "["):
        sink.announce(name, remarks)
        is_whole = yield from json_value(source, sink.arguments)
    else:
        pieces: list[str] = []
        is_whole = yield from arguments_value(source, pieces.append)
        if is_whole:
            sink.announce(name, remarks)
            sink.arguments("".join(pieces))
    if is_whole:
        sink.end_call()
    return is_whole


def arguments_value(source: TextSource, emit: Emit) -> Steps[bool]:
    """Read a call's arguments.  An object that was written as a string is unpacked; null is {}."""
    if (yield from source.next_char()) in ("{", "["):
        return (yield from json_value(source, emit))
    pieces: list[str] = []
    if not (yield from json_value(source, pieces.append)):
        return False
    emit(_unpacked("".join(pieces)))
    return True


def _unpacked(written: str) -> str:
    value = json.loads(written)
    if value is None:
        return "{}"
    inner = read_json(value) if isinstance(value, str) else None
    return inner[1] if inner is not None and isinstance(inner[0], dict) else written


def close_block(source: TextSource, sink: CallSink, is_whole: bool, end: str | None) -> Steps[None]:
    """Read the end marker behind the last call, if it is there.

    ``is_whole`` says that what was recorded since then belongs to the call.  Otherwise it is
    text, unless it is blank: models forget a closing brace before the end marker.
    """
    if is_whole:
        source.start_record()
    elif source.has_recorded_ink:
        sink.reject()
        return
    yield from source.skip_space()
    if end is not None and (yield from source.literal(end)) is not None:
        source.end_record()
    else:
        sink.reject()
