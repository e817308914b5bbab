"""What a tool call parser gives back, and the sink that its engines write to."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxserve.errors import InvalidRequestError
from jaxserve.parsers.source import WHITESPACE, TextSource

MAX_NAME_LENGTH = 256


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of one call.

    The first piece of a call carries its ``id`` and ``name`` and no arguments.  In the later ones
    both are None; their ``arguments`` joined are the call's arguments, a JSON object.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


class ToolIncrement(NamedTuple):
    """What one push brought: text for the reader, and pieces of calls."""

    content: str
    calls: tuple[ToolCallDelta, ...]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One whole call.  ``tool_index`` is the tool's place in the request's list."""

    index: int
    id: str
    name: str
    arguments: str
    tool_index: int


@dataclass(frozen=True, slots=True)
class Tool:
    """A declared function: its place in the request's list and its parameters' JSON schema."""

    index: int
    name: str
    parameters: Mapping[str, object]
    is_strict: bool


def read_tools(tools: Sequence[Mapping[str, object]]) -> dict[str, Tool]:
    """The declared functions by name, from ``{"type": "function", "function": {...}}`` or, as in
    the Responses API, from the flat form.

    Raises:
        InvalidRequestError: an entry without a name.
    """
    found: dict[str, Tool] = {}
    for index, entry in enumerate(tools):
        inner = entry.get("function")
        function = inner if isinstance(inner, Mapping) else entry
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidRequestError(
                f"Tool {index} has no function name: give "
                '{"type": "function", "function": {"name": …, "parameters": {…}}}.'
            )
        schema = function.get("parameters", function.get("input_schema"))
        parameters = schema if isinstance(schema, Mapping) else {}
        is_strict = function.get("strict") is True
        found.setdefault(name, Tool(index, name, parameters, is_strict))
    return found


def new_call_id(format: str | None, name: str, index: int) -> str:
    """The id of a new call: "call_" and 24 hex digits; Kimi K2 was trained on "functions.name:0".

    ``index`` counts the calls of the whole conversation for Kimi K2: add those in the history.
    """
    if format == "kimi_k2":
        return f"functions.{name}:{index}"
    return f"call_{uuid.uuid4().hex[:24]}"


class CallSink:
    """Collects what an engine finds, and gives markup that is none back as content.

    Blanks and line ends beside a call are layout and dropped; everything else that is not part
    of a call comes out.
    """

    def __init__(
        self, format: str | None, tools: Mapping[str, Tool], source: TextSource, first_index: int
    ) -> None:
        self.tools = tools
        self.num_calls = 0
        self._format = format
        self._source = source
        self._first_index = first_index
        self._content: list[str] = []
        self._space: list[str] = []
        self._is_after_call = False
        self._deltas: list[ToolCallDelta] = []
        self._arguments: list[str] = []

    def content(self, text: str) -> None:
        """Text for the reader."""
        inked = text.rstrip(WHITESPACE)
        if not inked:
            self._space.append(text)
            return
        tail = text[len(inked) :]
        if self._is_after_call:
            self._is_after_call = False
            inked = inked.lstrip(WHITESPACE)
        else:
            self._content.extend(self._space)
        self._space = [tail] if tail else []
        self._content.append(inked)

    def reject(self) -> None:
        """What was recorded is no call: it is content."""
        self.content(self._source.end_record())

    def announce(self, name: str, remarks: str = "") -> None:
        """A call of ``name`` begins; what was recorded was its markup, but for ``remarks``."""
        self._source.end_record()
        if remarks:
            self.content(remarks)
        self._end_arguments()
        self._space.clear()
        self._is_after_call = True
        call_id = new_call_id(self._format, name, self._first_index + self.num_calls)
        self._deltas.append(ToolCallDelta(self.num_calls, call_id, name, ""))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """The next piece of the arguments of the call announced last."""
        self._arguments.append(text)

    def string_piece(self, text: str) -> None:
        """A piece of the inside of a JSON string in the arguments."""
        self._arguments.append(json.dumps(text, ensure_ascii=False)[1:-1])

    def end_call(self) -> None:
        """The call is complete; what follows may still turn out to be text."""
        self._source.start_record()

    def take(self, is_last: bool) -> ToolIncrement:
        """What came since the last time."""
        self._end_arguments()
        if is_last and not self._is_after_call:
            self._content.extend(self._space)
            self._space = []
        increment = ToolIncrement("".join(self._content), tuple(self._deltas))
        self._content, self._deltas = [], []
        return increment

    def _end_arguments(self) -> None:
        text = "".join(self._arguments)
        if text:
            self._deltas.append(ToolCallDelta(self.num_calls - 1, None, None, text))
        self._arguments = []
