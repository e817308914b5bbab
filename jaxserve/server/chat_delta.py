"""What a turn of a conversation brings, in no API's dialect."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxserve.parsers import ToolCallDelta
from jaxserve.request import TextChunk


class TurnFinish(NamedTuple):
    """Why a choice ended.  ``matched``: the stop token id or string; None with tool calls."""

    type: Literal["stop", "length", "tool_calls", "abort"]
    matched: int | str | None


class Delta(NamedTuple):
    """What is new of one choice, in this order: reasoning, content, calls, finish.

    ``choice`` numbers them.  ``chunk`` is what it was read from: its token ids, logprobs and
    token counts so far.  ``reasoning_tokens`` counts so far too.
    """

    choice: int
    reasoning: str
    content: str
    calls: tuple[ToolCallDelta, ...]
    finish: TurnFinish | None
    chunk: TextChunk
    reasoning_tokens: int


class WholeCall(NamedTuple):
    """A whole tool call; ``arguments`` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """A whole choice."""

    reasoning: str
    content: str
    calls: tuple[WholeCall, ...]
    finish: TurnFinish
    chunk: TextChunk
    reasoning_tokens: int

    @classmethod
    def of(cls, delta: Delta) -> "ChatAnswer":
        """The choice whose only delta is ``delta``."""
        assert delta.finish is not None  # it was read from a whole answer
        return cls(
            delta.reasoning, delta.content, joined_calls(delta.calls), delta.finish, delta.chunk,
            delta.reasoning_tokens,
        )  # fmt: skip


def joined_calls(deltas: Sequence[ToolCallDelta]) -> tuple[WholeCall, ...]:
    """Whole calls out of their pieces, in the order of their indices."""
    calls: dict[int, WholeCall] = {}
    for delta in deltas:
        call = calls.get(delta.index)
        if call is None:
            call = WholeCall(delta.id or "", delta.name or "", "")
        calls[delta.index] = call._replace(arguments=call.arguments + delta.arguments)
    return tuple(calls[index] for index in sorted(calls))
