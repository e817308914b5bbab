"""OpenAI's responses API: /v1/responses and what belongs to it."""

import asyncio
import logging
import time
import uuid
from contextlib import aclosing

from aiohttp import web

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.server.blocks import read_blocks
from jaxserve.server.chat_turn import Turn, open_turn, render_only
from jaxserve.server.chat_types import ChatBody
from jaxserve.server.http_errors import json_response
from jaxserve.server.json_body import JsonObject, read_v1_object
from jaxserve.server.openai_types import sampling_defaults
from jaxserve.server.responses_events import EventWriter, ResponseFormat
from jaxserve.server.responses_items import chat_messages, input_items
from jaxserve.server.responses_store import RESPONSES, ResponseStore, StoredResponse
from jaxserve.server.responses_truncation import truncated
from jaxserve.server.responses_types import (
    DEFAULT_TEMPERATURE,
    ResponsesBody,
    parse_responses_body,
)
from jaxserve.server.sse import send_events
from jaxserve.server.state import STATE, OpenStreams, ServerState

logger = logging.getLogger(__name__)

MAX_LISTED_ITEMS = 100
DEFAULT_LISTED_ITEMS = 20


class _Job:
    """A response to be made: its request in all the forms in which it is needed."""

    def __init__(self, state: ServerState, store: ResponseStore, body: ResponsesBody) -> None:
        self.state = state
        self.store = store
        self.body = body
        self.items = input_items(body.input)
        _check(state, store, body)
        conversation = store.conversation(body.previous_response_id)
        info = state.llm.info
        defaults = sampling_defaults(state.config.sampling_defaults, info.generation_defaults)
        defaults = {"temperature": DEFAULT_TEMPERATURE} | defaults
        temperature = _number(body.temperature, defaults.get("temperature"))
        uid = body.request_id or f"resp_{uuid.uuid4().hex}"
        self.chat: ChatBody = body.chat_body(
            chat_messages(body.instructions, [*conversation, *self.items]), temperature
        )
        if self.chat.rid is None:
            self.chat.rid = uid
        self.format = ResponseFormat(
            body=body,
            uid=uid,
            created_at=int(time.time()),
            temperature=temperature,
            top_p=_number(body.top_p, defaults.get("top_p", 1.0)),
            is_stored=store.is_enabled and body.store,
            texts=state.llm if body.with_logprobs else None,
        )

    async def open_turn(self, opened: OpenStreams) -> Turn:
        """Start to generate.

        Raises:
            InvalidRequestError: the body cannot be answered; the message names the field.
            OverloadedError: the queue is full.
        """
        if self.body.truncation == "auto":
            self.chat = await truncated(self.state, self.chat)
        return await open_turn(self.state, self.chat, opened)

    def keep(self, response: JsonObject) -> None:
        """Store ``response`` if that is wanted."""
        if self.format.is_stored:
            self.store.put(self.items, response)


def _number(given: float | None, default: object) -> float | None:
    if given is None and isinstance(default, int | float):
        return float(default)
    return given


def _check(state: ServerState, store: ResponseStore, body: ResponsesBody) -> None:
    limit, context_len = body.max_output_tokens, state.llm.info.context_len
    if limit is not None and limit > context_len:
        raise InvalidRequestError(
            f"max_output_tokens is too large: {limit}. This model supports at most {context_len} "
            "completion tokens."
        )
    if body.request_id is not None and body.request_id in store:
        raise InvalidRequestError(f"request_id {body.request_id!r} is that of a stored response.")
    if not body.background:
        return
    if not (store.is_enabled and body.store):
        raise UnsupportedFeatureError(
            "`background` is not supported without a store: nobody could get the response. Start "
            "the server with --enable-response-store, and do not send store false."
        )
    if body.stream:
        raise UnsupportedFeatureError(
            "`background` together with `stream` is not supported: the events are not kept. Poll "
            "GET /v1/responses/{id} instead."
        )


async def create_response(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses."""
    state, store = request.app[STATE], request.app[RESPONSES]
    job = _Job(state, store, parse_responses_body(await read_v1_object(request)))
    if job.body.background:
        return json_response(await _start(job))
    with OpenStreams() as opened:
        turn = await job.open_turn(opened)
        if not job.body.stream:
            response = job.format.finished(await read_blocks(turn))
            job.keep(response)
            return json_response(response)
        writer = EventWriter(job.format, job.keep)
        deltas = turn.deltas(state.config.stream_interval)
        async with aclosing(deltas):
            events = writer.events(await anext(deltas), deltas)
            return await send_events(request, events, writer.failed, end=b"")


async def _start(job: _Job) -> JsonObject:
    """Generate in the background; what is wrong with the request is still an HTTP error."""
    opened = OpenStreams()
    turn = await job.open_turn(opened)
    record = job.store.put(job.items, job.format.unfinished("queued"))

    async def generate() -> None:
        record.response = job.format.unfinished("in_progress")
        job.store.update(record, job.format.finished(await read_blocks(turn)))

    def ended(task: asyncio.Task[None]) -> None:
        opened.__exit__()
        record.task = None
        if task.cancelled():
            record.response = job.format.unfinished("cancelled")
        elif (error := task.exception()) is not None:
            logger.error("Background response %s failed", job.format.uid, exc_info=error)
            record.response = job.format.unfinished("failed", error)

    record.task = asyncio.create_task(generate())
    record.task.add_done_callback(ended)
    return record.response


async def count_input_tokens(request: web.Request) -> web.Response:
    """POST /v1/responses/input_tokens."""
    state, store = request.app[STATE], request.app[RESPONSES]
    job = _Job(state, store, parse_responses_body(await read_v1_object(request)))
    prompt_ids = await render_only(state, job.chat)
    return json_response({"object": "response.input_tokens", "input_tokens": len(prompt_ids)})


async def get_response(request: web.Request) -> web.Response:
    """GET /v1/responses/{id}."""
    if request.query.get("stream", "false") not in ("false", "0"):
        raise UnsupportedFeatureError(
            "`stream` is not supported for a stored response: its events are not kept."
        )
    return json_response(_record(request).response)


async def delete_response(request: web.Request) -> web.Response:
    """DELETE /v1/responses/{id}."""
    uid = request.match_info["id"]
    request.app[RESPONSES].delete(uid)
    return json_response({"id": uid, "object": "response", "deleted": True})


async def cancel_response(request: web.Request) -> web.Response:
    """POST /v1/responses/{id}/cancel: ends a background response; idempotent."""
    record = _record(request)
    if not record.response["background"]:
        raise InvalidRequestError("Cannot cancel a synchronous response.")
    if record.task is not None:
        record.task.cancel()
        await asyncio.wait([record.task])
    return json_response(record.response)


async def list_input_items(request: web.Request) -> web.Response:
    """GET /v1/responses/{id}/input_items: the items of that request, not of earlier ones."""
    record = _record(request)
    order, after = request.query.get("order", "desc"), request.query.get("after")
    if order not in ("asc", "desc"):
        raise InvalidRequestError(f"order must be asc or desc, got {order!r}.")
    uid = record.response["id"]
    items = [{"id": f"{uid}_{i}", **_listed(item)} for i, item in enumerate(record.items)]
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if after is not None:
        if after not in ids:
            raise InvalidRequestError(f"after must be the id of an item, got {after!r}.")
        items = items[ids.index(after) + 1 :]
    limit = _limit(request.query.get("limit", str(DEFAULT_LISTED_ITEMS)))
    page = items[:limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > len(page),
        }
    )


def _listed(item: JsonObject) -> JsonObject:
    """As OpenAI lists it: with a type, and a text as a part."""
    if "role" not in item:
        return item
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        content = [{"type": kind, "text": content}]
    return item | {"type": "message", "content": content}


def _limit(given: str) -> int:
    if not given.isdecimal() or not 1 <= int(given) <= MAX_LISTED_ITEMS:
        raise InvalidRequestError(f"limit must be in [1, {MAX_LISTED_ITEMS}], got {given!r}.")
    return int(given)


def _record(request: web.Request) -> StoredResponse:
    return request.app[RESPONSES].get(request.match_info["id"])
