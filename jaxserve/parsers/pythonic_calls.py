"""Calls written as Python: ``[name(key="value"), …]``."""

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass

from jaxserve.parsers.calls import CallSink
from jaxserve.parsers.json_calls import JsonCalls, close_block
from jaxserve.parsers.source import Emit, Markers, Steps, TextSource

MAX_DEPTH = 60  # Python's own parser refuses 100 and more

_OPEN = {"(": ")", "[": "]", "{": "}"}
_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, kw_only=True)
class PythonicCalls:
    """A list of calls of declared functions, each with keyword arguments that are literals.

    Args:
        start: a marker before the list, and ``end`` one after it.
        is_bare: the list may stand anywhere without a marker.
        allows_json: a list of JSON objects may stand in its place.
    """

    start: str
    end: str
    is_bare: bool = False
    allows_json: bool = False

    def run(self, source: TextSource, sink: CallSink) -> Steps[None]:
        """Read a whole text."""
        starts = Markers((self.start, "[") if self.is_bare else (self.start,))
        while (marker := (yield from source.until(starts, sink.content))) is not None:
            source.start_record(marker)
            yield from source.skip_space()
            in_list = marker == "[" or (yield from source.literal("[")) is not None
            yield from source.skip_space()
            if self.allows_json and (yield from source.next_char()) == "{":
                json_calls = JsonCalls()
                read = json_calls.list_items if in_list else json_calls.objects
                is_whole = yield from read(source, sink)
            else:
                is_whole = yield from self._calls(source, sink, in_list)
            yield from close_block(source, sink, is_whole, self.end)

    def _calls(self, source: TextSource, sink: CallSink, in_list: bool) -> Steps[bool]:
        heads = {f"{name}(": name for name in sink.tools}
        while True:
            yield from source.skip_space()
            head = yield from source.literal(*heads)
            if head is None:
                return False
            pieces: list[str] = []
            is_closed = yield from _bracketed(source, pieces.append)
            arguments = _arguments("".join(pieces)) if is_closed else None
            if arguments is None:
                return False
            sink.announce(heads[head])
            sink.arguments(arguments)
            sink.end_call()
            if not in_list:
                return True
            yield from source.skip_space()
            separator = yield from source.literal(",", "]")
            if separator != ",":
                return separator == "]"


class PythonScanner:
    """Finds the bracket that closes the one before the text, over pieces of Python."""

    def __init__(self) -> None:
        self.is_done = False
        self.is_broken = False
        self._closers = [")"]
        self._quote = ""

    def feed(self, text: str, position: int, emit: Emit, is_last: bool) -> int:
        """Read from ``position`` on and return where the reading stopped."""
        step: Callable[[str, int, Emit, bool], int]
        while position < len(text) and not (self.is_done or self.is_broken):
            step = self._in_string if self._quote else self._outside
            end = step(text, position, emit, is_last)
            if end == position:
                break
            position = end
        return position

    def _outside(self, text: str, position: int, emit: Emit, is_last: bool) -> int:
        char = text[position]
        if char in "'\"":
            if len(text) - position < 3 and not is_last:
                return position
            self._quote = char * 3 if text.startswith(char * 3, position) else char
            emit(self._quote)
            return position + len(self._quote)
        if char in _OPEN:
            self._closers.append(_OPEN[char])
            self.is_broken = len(self._closers) > MAX_DEPTH
        elif char in ")]}":
            self.is_broken = self._closers.pop() != char
            self.is_done = not self._closers and not self.is_broken
        emit(char)
        return position + 1

    def _in_string(self, text: str, position: int, emit: Emit, is_last: bool) -> int:
        char = text[position]
        if char == "\\":
            if position + 1 == len(text) and not is_last:
                return position
            emit(text[position : position + 2])
            return min(len(text), position + 2)
        if char == self._quote[0]:
            if len(text) - position < len(self._quote) and not is_last:
                return position
            if text.startswith(self._quote, position):
                end = position + len(self._quote)
                emit(self._quote)
                self._quote = ""
                return end
        # A line end inside a plain string: models write it raw, Python wants it escaped.
        emit("\\n" if char == "\n" and len(self._quote) == 1 else char)
        return position + 1


def _bracketed(source: TextSource, emit: Emit) -> Steps[bool]:
    """Read what is left of a bracketed text, and its closing bracket."""
    scanner = PythonScanner()
    while True:
        source.read(scanner.feed(source.window, source.position, emit, source.is_last))
        if scanner.is_done or scanner.is_broken or source.is_last:
            return scanner.is_done
        yield


def _arguments(text: str) -> str | None:
    """The JSON object of ``key=literal, …)``; None if it is anything else."""
    try:
        call = ast.parse(f"f({text}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        values = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
        if None in values:
            return None
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Constant) and not isinstance(node.value, (bytes, complex)):
        if node.value is not ...:
            return node.value
    elif isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(element) for element in node.elts]
    elif isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_key(key): _literal(value) for key, value in pairs}
    elif isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _literal(node.operand)
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return -number
    raise ValueError("an argument is not a literal")


def _key(node: ast.expr | None) -> object:
    key = None if node is None else _literal(node)
    if not isinstance(key, (str, int, float)):
        raise ValueError("a key is neither a string nor a number")
    return key
