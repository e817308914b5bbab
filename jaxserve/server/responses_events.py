"""A response while it is generated: the object that clients see of it, and its stream of events.

The events and their order are OpenAI's::

    response.created, response.in_progress
    response.output_item.added
        response.content_part.added          (message, reasoning)
        response.output_text.delta ... .done
        response.reasoning_text.delta ... .done
        response.function_call_arguments.delta ... .done
        response.content_part.done           (message, reasoning)
    response.output_item.done
    response.completed | response.incomplete | response.failed
"""

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import orjson

from jaxserve.errors import JaxserveError
from jaxserve.request import Usage
from jaxserve.server.blocks import Block, BlockEvent, BlockReader, Kind
from jaxserve.server.chat_delta import Delta, TurnFinish
from jaxserve.server.json_body import JsonObject
from jaxserve.server.responses_items import (
    item_id,
    output_item,
    reasoning_part,
    text_logprobs,
    text_part,
)
from jaxserve.server.responses_types import ResponsesBody
from jaxserve.server.service import TokenTexts

_DELTA = {
    Kind.TEXT: "response.output_text.delta",
    Kind.REASONING: "response.reasoning_text.delta",
    Kind.CALL: "response.function_call_arguments.delta",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFormat:
    """What the objects of one response have in common.

    Attributes:
        uid: the response's id.
        created_at: seconds since 1970.
        temperature, top_p: what it is sampled with.
        is_stored: whether it can be got later.
        texts: writes the tokens of logprobs; None: none were asked for.
    """

    body: ResponsesBody
    uid: str
    created_at: int
    temperature: float | None
    top_p: float | None
    is_stored: bool
    texts: TokenTexts | None

    def unfinished(self, status: str, error: BaseException | None = None) -> JsonObject:
        """The object without output: queued, in_progress, cancelled or failed."""
        fields: JsonObject = {"status": status, "output": [], "usage": None}
        if error is not None:
            message = str(error) if isinstance(error, JaxserveError) else "Internal server error"
            fields["error"] = {"code": "server_error", "message": message}
        return self._common() | fields

    def finished(self, reader: BlockReader) -> JsonObject:
        """The object of all that ``reader`` has read."""
        status = response_status(reader.finish)
        last = len(reader.blocks) - 1
        fields: JsonObject = {
            "status": status,
            "output": [
                self.item(block, status if i == last else "completed")
                for i, block in enumerate(reader.blocks)
            ],
            "usage": usage_object(reader.usage, reader.reasoning_tokens),
        }
        if status == "completed":
            fields["completed_at"] = int(time.time())
        elif status == "incomplete":
            fields["incomplete_details"] = {"reason": "max_output_tokens"}
        return self._common() | fields

    def item(self, block: Block, status: str) -> JsonObject:
        """The item that ``block`` is."""
        item_status = "incomplete" if status == "cancelled" else status
        is_encrypted = self.body.with_encrypted_reasoning
        return output_item(block, item_status, self.texts, is_encrypted=is_encrypted)

    def _common(self) -> JsonObject:
        body = self.body
        return {
            "id": self.uid,
            "object": "response",
            "created_at": self.created_at,
            "status": None,
            "background": body.background,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata,
            "model": body.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": body.reasoning.effort, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": self.is_stored,
            "temperature": self.temperature,
            "text": {"format": body.text.format or {"type": "text"}, "verbosity": "medium"},
            "tool_choice": body.tool_choice,
            "tools": body.tools,
            "top_logprobs": body.top_logprobs,
            "top_p": self.top_p,
            "truncation": body.truncation,
            "usage": None,
            "user": body.user,
        }


def response_status(finish: TurnFinish | None) -> str:
    """How a response ended, in OpenAI's word; an abort is a cancellation."""
    if finish is None or finish.type == "abort":
        return "cancelled"
    return "incomplete" if finish.type == "length" else "completed"


def usage_object(usage: Usage, reasoning_tokens: int) -> JsonObject:
    """Token counts; what enters the prefix cache costs nothing and is not counted."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class EventWriter:
    """The events of one streamed response, numbered from 0.

    Args:
        response_format: of the objects in it.
        keep: is given the finished response before the last event.
    """

    def __init__(self, response_format: ResponseFormat, keep: Callable[[JsonObject], None]) -> None:
        self.reader = BlockReader()
        self._format = response_format
        self._keep = keep
        self._number = 0

    async def events(
        self, first: Delta, deltas: AsyncGenerator[Delta, None]
    ) -> AsyncGenerator[bytes, None]:
        """All events; those of one delta in one piece."""
        response = self._format.unfinished("in_progress")
        start = self._event("response.created", response=response)
        yield start + self._event("response.in_progress", response=response) + self._of(first)
        async for delta in deltas:
            if data := self._of(delta):
                yield data

    def failed(self, error: JaxserveError) -> bytes:
        """The event that ends the stream if the engine gives the sequence up."""
        return self._event("response.failed", response=self._format.unfinished("failed", error))

    def _of(self, delta: Delta) -> bytes:
        finish = delta.finish
        status = response_status(finish)
        data = b"".join(self._block_event(event, status) for event in self.reader.push(delta))
        if finish is None:
            return data
        response = self._format.finished(self.reader)
        self._keep(response)
        # There is no event for a cancellation; clients wait for one of the three.
        name = "completed" if status == "completed" else "incomplete"
        return data + self._event(f"response.{name}", response=response)

    def _block_event(self, event: BlockEvent, status: str) -> bytes:
        match event.type:
            case "open":
                return self._open(event)
            case "grow":
                return self._grow(event)
        return self._close(event, status)

    def _open(self, event: BlockEvent) -> bytes:
        block = event.block
        data = self._event(
            "response.output_item.added",
            output_index=block.index,
            item=self._format.item(block, "in_progress"),
        )
        if block.kind is not Kind.CALL:
            part = text_part("", (), None) if block.kind is Kind.TEXT else reasoning_part("")
            data += self._part_event("response.content_part.added", event, part=part)
        return data

    def _grow(self, event: BlockEvent) -> bytes:
        kind = event.block.kind
        if kind is Kind.CALL:
            return self._item_event(_DELTA[kind], event, delta=event.text)
        if kind is Kind.REASONING:
            return self._part_event(_DELTA[kind], event, delta=event.text)
        if self._format.texts is None:
            return self._plain_delta(event)
        logprobs = text_logprobs(event.logprobs, self._format.texts)
        return self._part_event(_DELTA[kind], event, delta=event.text, logprobs=logprobs)

    def _plain_delta(self, event: BlockEvent) -> bytes:
        """New text without logprobs: the event of which there is one per token."""
        number = self._number
        self._number += 1
        return (
            b"event: response.output_text.delta\n"
            b'data: {"type":"response.output_text.delta","sequence_number":%d,"item_id":"%b",'
            b'"output_index":%d,"content_index":0,"delta":%b,"logprobs":[]}\n\n'
        ) % (
            number,
            item_id(event.block).encode(),
            event.block.index,
            orjson.dumps(event.text),
        )

    def _close(self, event: BlockEvent, status: str) -> bytes:
        block, texts = event.block, self._format.texts
        match block.kind:
            case Kind.TEXT:
                part = text_part(block.text, block.logprobs, texts)
                fields = {"text": block.text, "logprobs": part["logprobs"]}
                data = self._part_event("response.output_text.done", event, **fields)
                data += self._part_event("response.content_part.done", event, part=part)
            case Kind.REASONING:
                data = self._part_event("response.reasoning_text.done", event, text=block.text)
                part = reasoning_part(block.text)
                data += self._part_event("response.content_part.done", event, part=part)
            case Kind.CALL:
                name = "response.function_call_arguments.done"
                data = self._item_event(name, event, arguments=block.text)
        item = self._format.item(block, status if event.is_end else "completed")
        return data + self._event("response.output_item.done", output_index=block.index, item=item)

    def _part_event(self, name: str, event: BlockEvent, **fields: object) -> bytes:
        return self._item_event(name, event, content_index=0, **fields)

    def _item_event(self, name: str, event: BlockEvent, **fields: object) -> bytes:
        block = event.block
        return self._event(name, item_id=item_id(block), output_index=block.index, **fields)

    def _event(self, name: str, **fields: object) -> bytes:
        payload = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(payload))
