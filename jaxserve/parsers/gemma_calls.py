"""The calls of Gemma 4: ``<|tool_call>call:name{key:<|"|>text<|"|>,other:3}<tool_call|>``."""

import json
from dataclasses import dataclass

from jaxserve.parsers.calls import MAX_NAME_LENGTH, CallSink
from jaxserve.parsers.source import Markers, Steps, TextSource
from jaxserve.parsers.values import json_of

MAX_DEPTH = 60

QUOTE = '<|"|>'
_QUOTE = Markers((QUOTE,))
_NAME_END = Markers("{")
_KEY_END = Markers(":{}[],")
_BARE_END = Markers(",]}")


@dataclass(frozen=True, kw_only=True)
class GemmaCalls:
    """Keys and words stand bare; strings between special quotes; the nesting is that of JSON."""

    start: str = "<|tool_call>"
    end: str = "<tool_call|>"

    def run(self, source: TextSource, sink: CallSink) -> Steps[None]:
        """Read a whole text."""
        starts = Markers((self.start,))
        while (yield from source.until(starts, sink.content)) is not None:
            source.start_record(self.start)
            if (yield from source.literals(("call:",))):
                name = yield from source.name(_NAME_END, MAX_NAME_LENGTH)
                name = "" if name is None else name.strip()
                if name in sink.tools:
                    sink.announce(name)
                    if (yield from _group(source, sink, MAX_DEPTH)):
                        yield from source.skip_space()
                        yield from source.literal(self.end)
            sink.reject()


def _value(source: TextSource, sink: CallSink, depth: int) -> Steps[bool]:
    """Read one value and write it as JSON; False: it breaks off."""
    yield from source.skip_space()
    if (yield from source.literal(QUOTE)) is not None:
        sink.arguments('"')
        if (yield from source.until(_QUOTE, sink.string_piece)) is None:
            return False
        sink.arguments('"')
        return True
    if (yield from source.next_char()) in ("{", "["):
        return depth > 0 and (yield from _group(source, sink, depth - 1))
    word = yield from source.name(_BARE_END, MAX_NAME_LENGTH)
    if word is None:
        return False
    sink.arguments(json_of(word.strip(), frozenset()))
    return True


def _group(source: TextSource, sink: CallSink, depth: int) -> Steps[bool]:
    """Read an object or an array, whose opening bracket is next."""
    opening = (yield from source.literal("{", "[")) or "{"
    closing = "}" if opening == "{" else "]"
    sink.arguments(opening)
    is_first = True
    while True:
        source.start_record()
        yield from source.skip_space()
        if (yield from source.literal(closing)) is not None:
            source.end_record()
            sink.arguments(closing)
            return True
        if not is_first:
            if (yield from source.literal(",")) is None:
                return False
            yield from source.skip_space()
        key: str | None = ""
        if opening == "{":
            key = yield from _key(source)
        if key is None:
            return False
        source.end_record()
        sink.arguments(("" if is_first else ", ") + key)
        is_first = False
        if not (yield from _value(source, sink, depth)):
            return False


def _key(source: TextSource) -> Steps[str | None]:
    """Read a key and its colon and return them as JSON."""
    is_quoted = (yield from source.literal(QUOTE)) is not None
    key = yield from source.name(_QUOTE if is_quoted else _KEY_END, MAX_NAME_LENGTH)
    if key is None or (is_quoted and (yield from source.literal(QUOTE)) is None):
        return None
    yield from source.skip_space()
    if (yield from source.literal(":")) is None:
        return None
    return json.dumps(key.strip(), ensure_ascii=False) + ": "
