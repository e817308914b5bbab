"""Anthropic's messages API: /v1/messages and /v1/messages/count_tokens."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import orjson
from aiohttp import web

from jaxserve.errors import JaxserveError
from jaxserve.request import Usage
from jaxserve.server.blocks import Block, BlockEvent, BlockReader, Kind, read_blocks
from jaxserve.server.chat_delta import Delta, TurnFinish
from jaxserve.server.chat_turn import open_turn, render_only
from jaxserve.server.http_errors import Dialect, error_object, json_response
from jaxserve.server.json_body import JsonObject, read_v1_object
from jaxserve.server.messages_types import MessagesBody, parse_count_body, parse_messages_body
from jaxserve.server.sse import send_events
from jaxserve.server.state import STATE, OpenStreams

# Clients send thinking blocks back with their signature.  Nothing is signed here.
_SIGNATURE = "jaxserve"


async def create_message(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages."""
    state = request.app[STATE]
    body = parse_messages_body(await read_v1_object(request))
    message = MessageFormat(body, f"msg_{uuid.uuid4().hex}")
    chat = body.chat_body(is_strict=state.config.enable_strict_thinking)
    if chat.rid is None:
        chat.rid = message.uid
    with OpenStreams() as opened:
        turn = await open_turn(state, chat, opened, clamps=True)
        if not body.stream:
            return json_response(message.whole(await read_blocks(turn)))
        deltas = turn.deltas(state.config.stream_interval)
        async with aclosing(deltas):
            events = message.events(await anext(deltas), deltas)
            return await send_events(request, events, _error_event, end=b"")


async def count_tokens(request: web.Request) -> web.Response:
    """POST /v1/messages/count_tokens."""
    body = parse_count_body(await read_v1_object(request))
    prompt_ids = await render_only(request.app[STATE], body.chat_body())
    return json_response({"input_tokens": len(prompt_ids)})


@dataclass(frozen=True, slots=True)
class MessageFormat:
    """How the answer to ``body`` is told, whole or as events."""

    body: MessagesBody
    uid: str

    def whole(self, reader: BlockReader) -> JsonObject:
        """The message of all that ``reader`` has read."""
        return self._message() | {
            "content": [self._content(block) for block in reader.blocks],
            **self._stop(reader),
            "usage": usage_object(reader.usage, reader.reasoning_tokens),
        }

    async def events(
        self, first: Delta, deltas: AsyncGenerator[Delta, None]
    ) -> AsyncGenerator[bytes, None]:
        """All events; those of one delta in one piece."""
        reader = BlockReader()
        start = self._message() | {"usage": usage_object(first.chunk.usage._replace(
            completion_tokens=0
        ), 0)}  # fmt: skip
        yield _event("message_start", message=start) + self._of(reader, first)
        async for delta in deltas:
            if data := self._of(reader, delta):
                yield data

    def _of(self, reader: BlockReader, delta: Delta) -> bytes:
        data = b"".join(self._block_event(event) for event in reader.push(delta))
        if delta.finish is None:
            return data
        usage = usage_object(reader.usage, reader.reasoning_tokens)
        return (
            data
            + _event("message_delta", delta=self._stop(reader), usage=usage)
            + _event("message_stop")
        )

    def _block_event(self, event: BlockEvent) -> bytes:
        block = event.block
        match event.type:
            case "open":
                empty = Block(block.kind, block.index, block.call_id, block.name)
                content = self._content(empty, signature="")
                return _event("content_block_start", index=block.index, content_block=content)
            case "grow":
                if block.kind is Kind.REASONING and not self.body.shows_thinking:
                    return b""
                return _event("content_block_delta", index=block.index, delta=_delta(event))
        data = _event("content_block_stop", index=block.index)
        if block.kind is not Kind.REASONING:
            return data
        signature = {"type": "signature_delta", "signature": _SIGNATURE}
        return _event("content_block_delta", index=block.index, delta=signature) + data

    def _message(self) -> JsonObject:
        return {
            "id": self.uid,
            "type": "message",
            "role": "assistant",
            "model": self.body.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _content(self, block: Block, signature: str = _SIGNATURE) -> JsonObject:
        match block.kind:
            case Kind.TEXT:
                return {"type": "text", "text": block.text}
            case Kind.REASONING:
                thinking = block.text if self.body.shows_thinking else ""
                return {"type": "thinking", "thinking": thinking, "signature": signature}
        return {
            "type": "tool_use",
            "id": block.call_id,
            "name": block.name,
            "input": _arguments(block.text),
        }

    def _stop(self, reader: BlockReader) -> JsonObject:
        reason = self._stop_reason(reader.finish, reader.usage)
        finish = reader.finish
        matched = finish.matched if finish is not None and reason == "stop_sequence" else None
        return {"stop_reason": reason, "stop_sequence": matched}

    def _stop_reason(self, finish: TurnFinish | None, usage: Usage) -> str:
        if finish is None or finish.type == "abort":
            return "pause_turn"  # what there is can be sent back, to go on from
        if finish.type == "length":
            is_cap = usage.completion_tokens >= self.body.max_tokens
            return "max_tokens" if is_cap else "model_context_window_exceeded"
        if finish.type == "tool_calls":
            return "tool_use"
        return "stop_sequence" if finish.matched in self.body.stop_sequences else "end_turn"


def usage_object(usage: Usage, reasoning_tokens: int) -> JsonObject:
    """Token counts: the prompt's are split into those that were cached and those that were not."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": reasoning_tokens},
    }


def _arguments(text: str) -> object:
    """The input of a call; one that broke off, or is no object, is empty."""
    try:
        arguments = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _delta(event: BlockEvent) -> JsonObject:
    match event.block.kind:
        case Kind.TEXT:
            return {"type": "text_delta", "text": event.text}
        case Kind.REASONING:
            return {"type": "thinking_delta", "thinking": event.text}
    return {"type": "input_json_delta", "partial_json": event.text}


def _event(name: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **fields}))


def _error_event(error: JaxserveError) -> bytes:
    return b"event: error\ndata: %b\n\n" % orjson.dumps(error_object(error, Dialect.MESSAGES))
