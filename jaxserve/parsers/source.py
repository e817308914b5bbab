"""Text that arrives in pieces, read by generators that wait for more.

Every parser of this package is a generator: it reads from a ``TextSource``, and where the text at
hand does not decide what comes next it yields.  A step looks only at what it decides on, never
at how much more happens to be there, so how a text was cut does not change what is read from it.
What has been read is dropped at once: the window holds at most the beginning of a marker or of a
JSON token, and the time is linear in the length of the text.
"""

import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
Emit = Callable[[str], None]

WHITESPACE = " \t\r\n"
_SPACE = re.compile(r"[ \t\r\n]*")


class Markers:
    """Strings to look for at once, as a pattern and as what may begin at the end of a text.

    No marker may contain another one: which of the two it is would depend on what came so far.
    """

    def __init__(self, markers: Iterable[str]) -> None:
        self.all = tuple(dict.fromkeys(markers))
        self._pattern = re.compile("|".join(re.escape(marker) for marker in self.all))
        self.longest = max(len(marker) for marker in self.all)
        self._first = re.compile("[" + re.escape("".join({m[0] for m in self.all})) + "]")

    def find(self, text: str, start: int, end: int | None = None) -> re.Match[str] | None:
        """The earliest marker in ``text[start:end]``, or None."""
        return self._pattern.search(text, start, len(text) if end is None else end)

    def undecided_from(self, text: str, start: int) -> int:
        """Where a marker may be beginning at the end of ``text``; its length if nowhere."""
        position = max(start, len(text) - self.longest + 1)
        while (match := self._first.search(text, position)) is not None:
            tail = text[match.start() :]
            if any(marker.startswith(tail) for marker in self.all):
                return match.start()
            position = match.start() + 1
        return len(text)


class TextSource:
    """A window on the text: ``push`` appends to it, ``read`` moves over it.

    While recording, what is read is kept too, so that markup that turns out to be none can be
    given back as the text it is.
    """

    def __init__(self) -> None:
        self.window = ""
        self.position = 0
        self.is_last = False
        self._record: list[str] | None = None

    def push(self, text: str, is_last: bool) -> None:
        """Append ``text``; ``is_last`` says that none will follow.

        Raises:
            ValueError: a push after the last one.
        """
        if self.is_last:
            raise ValueError("this answer has ended: a parser reads one answer only")
        self.window = self.window[self.position :] + text
        self.position = 0
        self.is_last = is_last

    def read(self, end: int) -> str:
        """Move to ``end`` and return what was passed over."""
        text = self.window[self.position : end]
        if self._record is not None and text:
            self._record.append(text)
        self.position = end
        return text

    def unread(self, text: str) -> None:
        """Go back over ``text``, which was read last."""
        self.position -= len(text)
        if self._record is not None:
            self._record.pop()

    def start_record(self, text: str = "") -> None:
        """Keep ``text`` and all that is read from now on; what was kept is forgotten."""
        self._record = [text]

    def end_record(self) -> str:
        """Stop keeping, and return what was kept ("" when nothing was being kept)."""
        record, self._record = self._record, None
        return "".join(record or ())

    @property
    def has_recorded_ink(self) -> bool:
        """Whether more than blanks was kept."""
        return any(piece.strip(WHITESPACE) for piece in self._record or ())

    def next_char(self) -> Steps[str]:
        """The next character, not read yet; "" at the end of the text."""
        while self.position == len(self.window):
            if self.is_last:
                return ""
            yield
        return self.window[self.position]

    def literals(self, wanted: Iterable[str]) -> Steps[bool]:
        """Read all of ``wanted`` one after the other, with blanks before each."""
        for text in wanted:
            yield from self.skip_space()
            if (yield from self.literal(text)) is None:
                return False
        return True

    def skip_space(self) -> Steps[None]:
        """Read blanks and line ends."""
        while True:
            match = _SPACE.match(self.window, self.position)
            if match is not None:
                self.read(match.end())
            if self.position < len(self.window) or self.is_last:
                return
            yield

    def literal(self, *options: str) -> Steps[str | None]:
        """Read the longest of ``options`` that the text goes on with; None if it does not."""
        longest = max(map(len, options))
        while True:
            rest = self.window[self.position : self.position + longest]
            is_open = any(len(o) > len(rest) and o.startswith(rest) for o in options)
            if not is_open or self.is_last:
                found = max((o for o in options if rest.startswith(o)), key=len, default=None)
                if found is not None:
                    self.read(self.position + len(found))
                return found
            yield

    def until(self, markers: Markers, emit: Emit) -> Steps[str | None]:
        """Read up to the first of ``markers`` and the marker itself.

        What lies before it goes to ``emit`` as soon as it is certain.  Returns the marker, or
        None when the text ended without one.
        """
        while True:
            match = markers.find(self.window, self.position)
            if match is not None:
                emit(self.read(match.start()))
                self.read(match.end())
                return match.group()
            end = len(self.window)
            if not self.is_last:
                end = markers.undecided_from(self.window, self.position)
            emit(self.read(end))
            if self.is_last:
                return None
            yield

    def rest(self, emit: Emit) -> Steps[None]:
        """Read all that is left."""
        while True:
            emit(self.read(len(self.window)))
            if self.is_last:
                return
            yield

    def name(self, ends: Markers, max_length: int) -> Steps[str | None]:
        """Read a name of at most ``max_length`` characters that stands before one of ``ends``.

        The end itself is not read.  None, and nothing is read, when there is no such name.
        """
        while True:
            limit = self.position + max_length + ends.longest
            match = ends.find(self.window, self.position, limit)
            if match is not None:
                return self.read(match.start())
            if self.is_last or len(self.window) >= limit:
                return None
            yield
