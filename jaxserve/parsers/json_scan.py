"""Reading one JSON value that arrives in pieces: checked and passed on as it comes.

What is passed on is a prefix of a valid JSON text at every moment.  Slips that models make are
mended on the way: a raw control character in a string (a line end in a piece of code) is escaped,
a backslash that begins no escape is doubled, and Python's words and single quotes become JSON's.
"""

import json
import re

from jaxserve.parsers.source import Emit, Steps, TextSource

MAX_DEPTH = 200  # readers refuse about 1,000
MAX_SCALAR_LENGTH = 1024  # of a number; Python refuses more than 4,300 digits

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r"""[^"'\\\x00-\x1f]+""")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_BEGINS = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_SHORT_STRING = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""", re.DOTALL)
_SCALAR_CHARS = re.compile(r"[-+.0-9A-Za-z]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?\Z")
_NUMBER_BEGINS = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]*)?)?\Z")
_CLOSES = {"{": "}", "[": "]"}


_WORDS = {
    "true": "true", "false": "false", "null": "null",
    "True": "true", "False": "false", "None": "null",
}  # fmt: skip


def _beginning_of_scalar(text: str) -> str | None:
    """The JSON of a number or word that was cut off; None if it cannot become one."""
    if _NUMBER_BEGINS.match(text):
        return text
    return next((json[: len(text)] for word, json in _WORDS.items() if word.startswith(text)), None)


class JsonScanner:
    """The state between two pieces of one JSON value."""

    def __init__(self) -> None:
        self.is_done = False
        self.is_broken = False
        self._open: list[str] = []
        self._wanted = "value"  # value, value or ], key, key or }, :, or , (and the closing one)
        self._quote = ""  # the one that the string being read began with

    def feed(self, text: str, position: int, emit: Emit, is_last: bool) -> int:
        """Read from ``position`` on and return where the reading stopped.

        It stops behind the value (``is_done``), at what cannot belong to one (``is_broken``), or
        where only more text can tell.
        """
        while not (self.is_done or self.is_broken) and position < len(text):
            step = self._string if self._quote else self._token
            end = step(text, position, emit, is_last)
            if end == position:
                break
            position = end
        return position

    def _string(self, text: str, position: int, emit: Emit, is_last: bool) -> int:
        match = _PLAIN.match(text, position) or _ESCAPE.match(text, position)
        if match is not None:
            emit(match.group())
            return match.end()
        char = text[position]
        if char == self._quote:
            emit('"')
            self._quote = ""
            self._after_value(is_key=self._wanted == "key")
        elif char == "\\":
            if not is_last and _ESCAPE_BEGINS.match(text, position):
                return position
            if text.startswith("\\'", position):
                emit("'")
                return position + 2
            emit("\\\\")
        else:
            emit(json.dumps(char)[1:-1])
        return position + 1

    def _token(self, text: str, position: int, emit: Emit, is_last: bool) -> int:
        space = _SPACE.match(text, position)
        if space is not None and space.end() > position:
            emit(space.group())
            return space.end()
        char = text[position]
        if char in "\"'" and self._wanted in ("value", "value or ]", "key", "key or }"):
            self._wanted = "key" if self._wanted.startswith("key") else "value"
            self._quote = char
            emit('"')
            return position + 1
        elif char in "{[" and self._wanted in ("value", "value or ]"):
            self._open_one(char)
        elif char in "}]" and self._may_close(char):
            self._open.pop()
            self._after_value(is_key=False)
        elif char == self._wanted == ":":
            self._wanted = "value"
        elif char == self._wanted == ",":
            self._wanted = "key" if self._open[-1] == "{" else "value"
        elif self._wanted in ("value", "value or ]"):
            return self._scalar(text, position, emit, is_last)
        else:
            self.is_broken = True
        if self.is_broken:
            return position
        emit(char)
        return position + 1

    def _scalar(self, text: str, position: int, emit: Emit, is_last: bool) -> int:
        match = _SCALAR_CHARS.match(text, position)
        word = match.group() if match is not None else ""
        end = position + len(word)
        is_open = end == len(text) and len(word) <= MAX_SCALAR_LENGTH
        if is_open and not is_last:
            return position
        if len(word) <= MAX_SCALAR_LENGTH and (word in _WORDS or _NUMBER.match(word)):
            self._after_value(is_key=False)
            emit(_WORDS.get(word, word))
            return end
        beginning = _beginning_of_scalar(word) if is_open and word else None
        if beginning is None:
            self.is_broken = True
            return position
        emit(beginning)
        return end

    def _open_one(self, char: str) -> None:
        if len(self._open) == MAX_DEPTH:
            self.is_broken = True
            return
        self._open.append(char)
        self._wanted = "key or }" if char == "{" else "value or ]"

    def _may_close(self, char: str) -> bool:
        if not self._open or _CLOSES[self._open[-1]] != char:
            return False
        return self._wanted == "," or self._wanted.endswith(char)

    def _after_value(self, is_key: bool) -> None:
        if is_key:
            self._wanted = ":"
        elif self._open:
            self._wanted = ","
        else:
            self.is_done = True


def json_value(source: TextSource, emit: Emit) -> Steps[bool]:
    """Read one JSON value and pass it to ``emit``; False: it broke off or the text ended in it."""
    scanner = JsonScanner()
    while True:
        source.read(scanner.feed(source.window, source.position, emit, source.is_last))
        if scanner.is_done:
            return True
        if scanner.is_broken or source.is_last:
            return False
        yield


def json_string(source: TextSource, max_length: int) -> Steps[str | None]:
    """Read one JSON string of at most ``max_length`` characters as written, and decode it.

    None, and nothing is read, when there is no such string.
    """
    while True:
        end = source.position + max_length + len('""')
        match = _SHORT_STRING.match(source.window, source.position, end)
        if match is not None:
            break
        if source.is_last or len(source.window) >= end:
            return None
        yield
    pieces: list[str] = []
    JsonScanner().feed(match.group(), 0, pieces.append, is_last=True)
    source.read(match.end())
    return str(json.loads("".join(pieces)))
