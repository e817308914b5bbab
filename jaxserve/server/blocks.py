"""An answer as a row of blocks: reasoning, text and tool calls, in the order of the model.

Responses, Anthropic's messages and Ollama's chat all tell an answer so: a block opens, grows and
closes before the next one opens.
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple

from jaxserve.parsers import ToolCallDelta
from jaxserve.request import TokenLogprob, Usage
from jaxserve.server.chat_delta import Delta, TurnFinish
from jaxserve.server.chat_turn import Turn


class Kind(Enum):
    """What a block is.  A CALL's text is its arguments, JSON as the model wrote it."""

    REASONING = "reasoning"
    TEXT = "text"
    CALL = "call"


@dataclass(slots=True)
class Block:
    """One block so far.  ``call_id`` and ``name`` are a call's; ``uid`` is unique everywhere."""

    kind: Kind
    index: int
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)  # of its text
    logprobs: list[TokenLogprob] = field(default_factory=list)
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.pieces)


class BlockEvent(NamedTuple):
    """A block opened, grew by ``text`` and ``logprobs``, or closed, at the end of all or before."""

    type: Literal["open", "grow", "close"]
    block: Block
    text: str = ""
    logprobs: Sequence[TokenLogprob] = ()
    is_end: bool = False


class BlockReader:
    """Deltas of one choice in, blocks out."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.finish: TurnFinish | None = None
        self.usage = Usage(0, 0, 0)
        self.reasoning_tokens = 0
        self._is_open = False
        self._call_index: int | None = None
        self._held = ""  # white space that becomes a text block only if text follows
        self._held_logprobs: list[TokenLogprob] = []

    def push(self, delta: Delta) -> Iterable[BlockEvent]:
        """What ``delta`` does to the blocks; to be iterated to its end."""
        self.usage = delta.chunk.usage
        self.reasoning_tokens = delta.reasoning_tokens
        if not self._is_in(Kind.TEXT) or delta.reasoning or delta.calls or delta.finish:
            return self._push(delta)
        # Nearly every delta of nearly every answer.
        block, logprobs = self.blocks[-1], delta.chunk.logprobs
        if not delta.content and not logprobs:
            return ()
        block.pieces.append(delta.content)
        block.logprobs += logprobs
        return (BlockEvent("grow", block, delta.content, logprobs),)

    def _push(self, delta: Delta) -> Iterator[BlockEvent]:
        if delta.reasoning:
            yield from self._grow(Kind.REASONING, delta.reasoning)
        if delta.content or self._is_in(Kind.TEXT):
            yield from self._push_text(delta.content, delta.chunk.logprobs)
        for call in delta.calls:
            yield from self._push_call(call)
        if delta.finish is not None:
            self.finish = delta.finish
            yield from self._end()

    def _is_in(self, kind: Kind) -> bool:
        return self._is_open and self.blocks[-1].kind is kind

    def _push_text(self, text: str, logprobs: Sequence[TokenLogprob]) -> Iterator[BlockEvent]:
        if not self._is_in(Kind.TEXT):
            self._held += text
            self._held_logprobs += logprobs
            if not self._held or self._held.isspace():
                return
            text, self._held = self._held, ""
            logprobs, self._held_logprobs = self._held_logprobs, []
        if text or logprobs:
            yield from self._grow(Kind.TEXT, text, logprobs)

    def _push_call(self, call: ToolCallDelta) -> Iterator[BlockEvent]:
        if call.index != self._call_index or not self._is_in(Kind.CALL):
            yield from self._open(Kind.CALL, call.id or "", call.name or "")
            self._call_index = call.index
        if call.arguments:
            yield from self._grow(Kind.CALL, call.arguments)

    def _grow(
        self, kind: Kind, text: str, logprobs: Sequence[TokenLogprob] = ()
    ) -> Iterator[BlockEvent]:
        if not self._is_in(kind):
            yield from self._open(kind)
        block = self.blocks[-1]
        block.pieces.append(text)
        block.logprobs += logprobs
        yield BlockEvent("grow", block, text, logprobs)

    def _open(self, kind: Kind, call_id: str = "", name: str = "") -> Iterator[BlockEvent]:
        yield from self._close()
        self._held, self._held_logprobs = "", []
        self.blocks.append(Block(kind, len(self.blocks), call_id, name))
        self._is_open = True
        yield BlockEvent("open", self.blocks[-1])

    def _close(self, *, is_end: bool = False) -> Iterator[BlockEvent]:
        if self._is_open:
            self._is_open = False
            yield BlockEvent("close", self.blocks[-1], is_end=is_end)

    def _end(self) -> Iterator[BlockEvent]:
        if not self.blocks:  # an empty answer is an empty text, not nothing
            text, logprobs = self._held, self._held_logprobs
            yield from self._open(Kind.TEXT)
            if text:
                yield from self._grow(Kind.TEXT, text, logprobs)
        yield from self._close(is_end=True)


async def read_blocks(turn: Turn) -> BlockReader:
    """The whole of the one choice of ``turn``.

    Raises:
        JaxserveError: the engine gave the sequence up.
    """
    reader = BlockReader()
    if turn.body.logprobs:  # they must be told apart: which are text, which are not
        async for delta in turn.deltas():
            _exhaust(reader.push(delta))
        return reader
    (answer,) = await turn.answers()
    calls = (ToolCallDelta(i, c.id, c.name, c.arguments) for i, c in enumerate(answer.calls))
    whole = Delta(
        0, answer.reasoning, answer.content, tuple(calls), answer.finish, answer.chunk,
        answer.reasoning_tokens,
    )  # fmt: skip
    _exhaust(reader.push(whole))
    return reader


def _exhaust(events: Iterable[BlockEvent]) -> None:
    for _ in events:
        pass
