"""OpenAI's endpoints: /v1/models, /v1/completions, /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from aiohttp import web

from jaxserve.errors import JaxserveError
from jaxserve.request import SamplingParams, TextChunk, TokenLogprob
from jaxserve.server.http_errors import json_response, openai_error
from jaxserve.server.json_body import JsonObject, parse, read_v1_object, refuse_unsupported
from jaxserve.server.native_types import check_num_sequences
from jaxserve.server.openai_format import (
    Choice,
    ChunkFormat,
    UsageCount,
    chat_logprobs,
    completion_logprobs,
    finish_fields,
    usage_member,
)
from jaxserve.server.openai_types import (
    CHAT_UNSUPPORTED,
    COMPLETION_UNSUPPORTED,
    ChatBody,
    CompletionBody,
)
from jaxserve.server.service import TextService
from jaxserve.server.sse import event, send_events
from jaxserve.server.state import STATE, OpenStreams, ServerState
from jaxserve.server.streams import Item, check_not_failed, merge, results

Logprobs = Callable[[Sequence[TokenLogprob]], JsonObject | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an answer needs to know of its request."""

    state: ServerState
    body: ChatBody | CompletionBody
    rid: str
    created: int
    opened: OpenStreams
    logprobs: Logprobs  # returns None when none were asked for
    prefixes: tuple[str, ...]  # per choice: the echoed prompt, or ""

    @property
    def num_choices(self) -> int:
        return len(self.opened.streams)

    def usage_count(self) -> UsageCount:
        """A fresh count of this request's tokens."""
        cached = self.state.config.enable_cache_report
        return UsageCount(self.num_choices, self.body.n, with_cached=cached)


# --- models ---


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    return json_response({"object": "list", "data": [_model_card(request.app[STATE])]})


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}."""
    card = _model_card(request.app[STATE])
    name = request.match_info["model"]
    if name == card["id"]:
        return json_response(card)
    error = {
        "message": f"The model '{name}' does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    return json_response({"error": error}, 404)


def _model_card(state: ServerState) -> JsonObject:
    info, name = state.llm.info, state.served_model_name
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "jaxserve",
        "root": name,
        "parent": None,
        "max_model_len": info.context_len,
    }


# --- chat ---


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    state = request.app[STATE]
    llm = state.llm
    raw = await read_v1_object(request)
    refuse_unsupported(raw, CHAT_UNSUPPORTED)
    body = parse(ChatBody, raw)
    body.check(llm.info.context_len)
    num_logprobs = body.top_logprobs if body.logprobs else None
    params = body.sampling_params(body.max_new_tokens, num_logprobs, _defaults(state))
    prompt = tuple(body.input_ids) or await llm.render_chat(
        body.rendered_messages(),
        chat_template_kwargs=body.template_kwargs,
        continue_final_message=body.continue_final_message,
    )
    rid = body.rid or uuid.uuid4().hex

    def logprobs(items: Sequence[TokenLogprob]) -> JsonObject | None:
        return chat_logprobs(items, llm.decode_token) if body.logprobs else None

    with OpenStreams() as opened:
        await _submit(llm, body, [prompt], params, rid, opened)
        answer = Answer(
            state=state, body=body, rid=rid, created=int(time.time()), opened=opened,
            logprobs=logprobs, prefixes=("",) * body.n,
        )  # fmt: skip
        if body.stream:
            return await _send(request, answer, _chat_events)
        return json_response(await _whole(answer, "chat.completion", _chat_choice))


def _chat_choice(choice: Choice, logprobs: JsonObject | None) -> JsonObject:
    message = {
        "role": "assistant",
        "content": choice.text,
        "reasoning_content": None,
        "tool_calls": None,
    }
    return {"message": message, "logprobs": logprobs, **finish_fields(choice.finish)}


async def _chat_events(
    answer: Answer, first: Item, chunks: AsyncGenerator[Item, None]
) -> AsyncGenerator[bytes, None]:
    count = answer.usage_count()
    continuous = answer.body.stream_options.continuous_usage_stats
    chunk_format = ChunkFormat(
        answer.rid, "chat.completion.chunk", answer.created, answer.body.model, answer.num_choices
    )

    def data_of(i: int, chunk: TextChunk) -> bytes:
        check_not_failed(chunk.finish)
        count.update(i, chunk.usage)
        usage = usage_member(count.as_dict()) if continuous else b""
        data = b""
        if chunk.text or chunk.logprobs:
            data = chunk_format.content(i, chunk.text, answer.logprobs(chunk.logprobs), usage)
        if chunk.finish is not None:
            data += chunk_format.chat_finish(i, chunk.finish, usage)
        return data

    roles = b"".join(chunk_format.role(i) for i in range(answer.num_choices))
    yield roles + data_of(*first)
    async for i, chunk in chunks:
        if data := data_of(i, chunk):
            yield data
    if answer.body.stream_options.include_usage:
        yield chunk_format.usage(count.as_dict())


# --- completions ---


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    state = request.app[STATE]
    llm = state.llm
    raw = await read_v1_object(request)
    refuse_unsupported(raw, COMPLETION_UNSUPPORTED)
    body = parse(CompletionBody, raw)
    body.check()
    params = body.sampling_params(body.max_new_tokens, body.logprobs, _defaults(state))
    prompts = body.prompts()
    check_num_sequences(len(prompts), body.n)
    rid = body.rid or uuid.uuid4().hex

    def logprobs(items: Sequence[TokenLogprob]) -> JsonObject | None:
        return None if body.logprobs is None else completion_logprobs(items, llm.decode_token)

    with OpenStreams() as opened:
        await _submit(llm, body, prompts, params, rid, opened)
        answer = Answer(
            state=state, body=body, rid=rid, created=int(time.time()), opened=opened,
            logprobs=logprobs, prefixes=_prefixes(state, body, prompts),
        )  # fmt: skip
        if body.stream:
            return await _send(request, answer, _completion_events)
        return json_response(await _whole(answer, "text_completion", _completion_choice))


def _prefixes(
    state: ServerState, body: CompletionBody, prompts: Sequence[str | tuple[int, ...]]
) -> tuple[str, ...]:
    if not body.echo:
        return ("",) * (len(prompts) * body.n)
    texts = [p if isinstance(p, str) else state.llm.decode(p) for p in prompts]
    return tuple(text for text in texts for _ in range(body.n))


def _completion_choice(choice: Choice, logprobs: JsonObject | None) -> JsonObject:
    return {"text": choice.text, "logprobs": logprobs, **finish_fields(choice.finish)}


async def _completion_events(
    answer: Answer, first: Item, chunks: AsyncGenerator[Item, None]
) -> AsyncGenerator[bytes, None]:
    count = answer.usage_count()
    continuous = answer.body.stream_options.continuous_usage_stats
    chunk_format = ChunkFormat(
        answer.rid, "text_completion", answer.created, answer.body.model, answer.num_choices
    )

    def data_of(i: int, chunk: TextChunk) -> bytes:
        check_not_failed(chunk.finish)
        count.update(i, chunk.usage)
        usage = usage_member(count.as_dict()) if continuous else b""
        if chunk.text or chunk.logprobs or chunk.finish is not None:
            logprobs = answer.logprobs(chunk.logprobs)
            return chunk_format.text(i, chunk.text, logprobs, chunk.finish, usage)
        return b""

    if any(answer.prefixes):
        yield b"".join(
            chunk_format.text(i, text, None, None, b"") for i, text in enumerate(answer.prefixes)
        )
    if data := data_of(*first):
        yield data
    async for i, chunk in chunks:
        if data := data_of(i, chunk):
            yield data
    if answer.body.stream_options.include_usage:
        yield chunk_format.usage(count.as_dict())


# --- both ---


async def _submit(
    llm: TextService,
    body: ChatBody | CompletionBody,
    prompts: Sequence[str | tuple[int, ...]],
    params: SamplingParams,
    rid: str,
    opened: OpenStreams,
) -> None:
    for i, prompt in enumerate(prompts):
        await opened.add(
            llm.submit(
                prompt,
                params,
                rid=rid if len(prompts) == 1 else f"{rid}_{i}",
                n=body.n,
                priority=body.priority,
                clamp_max_new_tokens=body.has_implicit_limit,
            )
        )


def _defaults(state: ServerState) -> JsonObject:
    if state.config.sampling_defaults == "model":
        defaults = dict(state.llm.info.generation_defaults)
        if defaults.get("top_k") == 0:
            del defaults["top_k"]  # what Hugging Face writes for "off"
        return defaults
    return {}


async def _send(
    request: web.Request,
    answer: Answer,
    events: Callable[[Answer, Item, AsyncGenerator[Item, None]], AsyncGenerator[bytes, None]],
) -> web.StreamResponse:
    """Stream; what fails before the first chunk is still an HTTP error."""
    chunks = merge(answer.opened.streams, answer.state.config.stream_interval)
    async with aclosing(chunks):
        first = await anext(chunks)
        check_not_failed(first[1].finish)
        return await send_events(request, events(answer, first, chunks), _error_event)


def _error_event(error: JaxserveError) -> bytes:
    """What ends the stream if the engine gives the sequence up."""
    return event({"error": openai_error(str(error), error.status)})


async def _whole(
    answer: Answer, kind: str, as_dict: Callable[[Choice, JsonObject | None], JsonObject]
) -> JsonObject:
    choices = [Choice(text=prefix) for prefix in answer.prefixes]
    count = answer.usage_count()
    async for i, chunk in results(answer.opened.streams):
        choices[i].add(chunk)
        count.update(i, chunk.usage)
    return {
        "id": answer.rid,
        "object": kind,
        "created": answer.created,
        "model": answer.body.model,
        "choices": [
            {"index": i, **as_dict(choice, answer.logprobs(choice.logprobs))}
            for i, choice in enumerate(choices)
        ],
        "usage": count.as_dict(),
        "metadata": {"weight_version": answer.state.llm.info.weight_version},
    }
