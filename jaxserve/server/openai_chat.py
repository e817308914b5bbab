"""POST /v1/chat/completions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from jaxserve.native_format import AnswerFormat, GenerateState
from jaxserve.server.chat_delta import ChatAnswer, Delta
from jaxserve.server.chat_turn import Turn, open_turn
from jaxserve.server.chat_types import CHAT_UNSUPPORTED, ChatBody
from jaxserve.server.http_errors import json_response
from jaxserve.server.json_body import JsonObject, parse, read_v1_object, refuse_unsupported
from jaxserve.server.openai_format import (
    ChunkFormat,
    LastHidden,
    UsageCount,
    chat_logprobs,
    error_event,
    ids_member,
)
from jaxserve.server.sse import send_events
from jaxserve.server.state import STATE, OpenStreams, ServerState


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    state = request.app[STATE]
    raw = await read_v1_object(request)
    refuse_unsupported(raw, CHAT_UNSUPPORTED)
    body = parse(ChatBody, raw)
    with OpenStreams() as opened:
        turn = await open_turn(state, body, opened)
        if not body.stream:
            return json_response(await _whole(state, turn))
        deltas = turn.deltas(state.config.stream_interval)
        async with aclosing(deltas):
            first = await anext(deltas)  # what fails by now is still an HTTP error
            events = _events(state, turn, first, deltas)
            return await send_events(request, events, error_event)


def _usage_count(state: ServerState, turn: Turn) -> UsageCount:
    return UsageCount(
        [len(turn.prompt_ids)] * turn.num_choices,
        turn.body.n,
        with_cached=state.config.enable_cache_report,
        is_continuous=bool(turn.body.stream_options.continuous_usage_stats),
        with_reasoning=state.llm.info.reasoning_parser is not None,
    )


# --- whole ---


async def _whole(state: ServerState, turn: Turn) -> JsonObject:
    answers = await turn.answers()
    count = _usage_count(state, turn)
    for i, answer in enumerate(answers):
        count.update(i, answer.chunk.usage, answer.reasoning_tokens)
    whole: JsonObject = {
        "id": turn.rid,
        "object": "chat.completion",
        "created": turn.created,
        "model": turn.body.model,
        "choices": [_choice(state, turn, i, answer) for i, answer in enumerate(answers)],
        "usage": count.as_dict(),
        "metadata": {"weight_version": state.llm.info.weight_version},
    }
    if turn.body.return_cached_tokens_details:
        whole["sglext"] = count.sglext()
    return whole


def _choice(state: ServerState, turn: Turn, i: int, answer: ChatAnswer) -> JsonObject:
    body, chunk = turn.body, answer.chunk
    choice: JsonObject = {
        "index": i,
        "message": _message(answer),
        "logprobs": chat_logprobs(chunk.logprobs, state.llm) if body.logprobs else None,
        "finish_reason": answer.finish.type,
        "matched_stop": answer.finish.matched,
    }
    if body.return_token_ids:
        choice["token_ids"] = chunk.token_ids
    if body.return_token_ids or body.return_prompt_token_ids:
        choice["prompt_token_ids"] = turn.prompt_ids
    if body.return_hidden_states:
        hidden = LastHidden(1)
        hidden.update(0, chunk.hidden_states)
        choice["hidden_states"] = hidden.of(0)
    if body.return_meta_info:
        choice["meta_info"] = _meta_info(state, turn, i, answer)
    return choice


def _message(answer: ChatAnswer) -> JsonObject:
    has_more = bool(answer.calls or answer.reasoning)
    return {
        "role": "assistant",
        "content": None if has_more and not answer.content else answer.content,
        "reasoning_content": answer.reasoning or None,
        "tool_calls": [
            {
                "id": call.id,
                "index": i,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for i, call in enumerate(answer.calls)
        ]
        or None,
    }


def _meta_info(state: ServerState, turn: Turn, i: int, answer: ChatAnswer) -> JsonObject:
    stream = turn.opened.streams[i]
    generated = GenerateState(
        stream.rid,
        stream.prompt_ids,
        stream.arrival_s,
        AnswerFormat(
            weight_version=state.llm.info.weight_version,
            num_logprobs=turn.body.num_logprobs,
            decode_token=state.llm.decode_token,
            has_times=state.config.enable_metrics,
        ),
    )
    generated.add(answer.chunk)
    meta_info = generated.body()["meta_info"]
    assert isinstance(meta_info, dict)
    return meta_info | {"reasoning_tokens": answer.reasoning_tokens}


# --- streamed ---


async def _events(
    state: ServerState, turn: Turn, first: Delta, deltas: AsyncGenerator[Delta, None]
) -> AsyncGenerator[bytes, None]:
    body = turn.body
    count = _usage_count(state, turn)
    options = body.stream_options
    chunk_format = ChunkFormat(
        turn.rid, "chat.completion.chunk", turn.created, body.model, turn.num_choices
    )
    hidden = LastHidden(turn.num_choices)

    def data_of(delta: Delta) -> bytes:
        i, reasoning, content, calls, finish, chunk, reasoning_tokens = delta
        if is_bare and finish is None and content and not reasoning and not calls:
            return chunk_format.bare_content(i, content)
        count.update(i, chunk.usage, reasoning_tokens)
        hidden.update(i, chunk.hidden_states)
        logprobs = chat_logprobs(chunk.logprobs, state.llm) if body.logprobs else None
        extras = ids_member("token_ids", chunk.token_ids) if body.return_token_ids else b""
        return chunk_data(chunk_format, delta, logprobs, extras, count.member())

    is_bare = not (
        options.continuous_usage_stats
        or body.logprobs
        or body.return_token_ids
        or body.return_hidden_states
    )
    prompt_ids = ids_member("prompt_token_ids", turn.prompt_ids) if body.return_token_ids else b""
    usage = count.member()
    roles = b"".join(chunk_format.role(i, prompt_ids, usage) for i in range(turn.num_choices))
    yield roles + data_of(first)
    async for delta in deltas:
        if data := data_of(delta):
            yield data
    if data := hidden.data(chunk_format.chat_hidden_states):
        yield data
    if body.return_cached_tokens_details:
        yield chunk_format.without_choices("sglext", count.sglext())
    if options.include_usage or state.config.stream_response_default_include_usage:
        yield chunk_format.without_choices("usage", count.as_dict())


def chunk_data(
    chunk_format: ChunkFormat,
    delta: Delta,
    logprobs: JsonObject | None,
    extras: bytes,
    usage: bytes,
) -> bytes:
    """The chunks of one delta; what belongs to its tokens rides on the first of them."""
    i, parts = delta.choice, []
    if delta.reasoning:
        parts.append(chunk_format.reasoning(i, delta.reasoning, logprobs, extras, usage))
        logprobs, extras = None, b""
    if delta.content:
        parts.append(chunk_format.content(i, delta.content, logprobs, extras, usage))
        logprobs, extras = None, b""
    for call in delta.calls:
        parts.append(chunk_format.call(i, call, logprobs, extras, usage))
        logprobs, extras = None, b""
    if delta.chunk.token_ids and (logprobs is not None or extras):  # tokens without any text
        parts.append(chunk_format.content(i, "", logprobs, extras, usage))
    if delta.finish is not None:
        parts.append(chunk_format.chat_finish(i, delta.finish.type, delta.finish.matched, usage))
    return b"".join(parts)
