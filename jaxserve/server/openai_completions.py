"""POST /v1/completions."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from aiohttp import web

from jaxserve.native_request import check_num_sequences
from jaxserve.request import FinishReason, SamplingParams, TextChunk, TokenLogprob
from jaxserve.server.http_errors import json_response
from jaxserve.server.json_body import JsonObject, parse, read_v1_object, refuse_unsupported
from jaxserve.server.openai_format import (
    ChunkFormat,
    LastHidden,
    UsageCount,
    completion_logprobs,
    error_event,
    ids_member,
)
from jaxserve.server.openai_types import COMPLETION_UNSUPPORTED, CompletionBody, sampling_defaults
from jaxserve.server.service import TextService
from jaxserve.server.sse import send_events
from jaxserve.server.state import STATE, OpenStreams, ServerState
from jaxserve.server.streams import Item, check_not_failed, merge, results


@dataclass(slots=True)
class _Choice:
    """What one sample has produced so far; ``stream`` is its position among the streams."""

    stream: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    hidden: LastHidden = field(default_factory=lambda: LastHidden(1))
    finish: FinishReason | None = None

    @property
    def mean_logprob(self) -> float:
        """Of the tokens that were generated; 0 of none, as likely as can be."""
        own = self.logprobs[len(self.logprobs) - len(self.token_ids) :]
        return sum(item.logprob or 0.0 for item in own) / max(1, len(own))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What an answer needs to know of its request."""

    state: ServerState
    body: CompletionBody
    rid: str
    created: int
    opened: OpenStreams
    prefixes: tuple[str, ...]  # per choice: the echoed prompt, or ""

    @property
    def num_choices(self) -> int:
        return len(self.opened.streams)

    def usage_count(self) -> UsageCount:
        """A fresh count of this request's tokens."""
        return UsageCount(
            [len(stream.prompt_ids) for stream in self.opened.streams],
            self.body.num_samples,
            with_cached=self.state.config.enable_cache_report,
            is_continuous=bool(self.body.stream_options.continuous_usage_stats),
        )

    def logprobs(self, items: Sequence[TokenLogprob]) -> JsonObject | None:
        """``items`` as the API writes them; None when none were asked for."""
        if self.body.logprobs is None:
            return None
        return completion_logprobs(items, self.state.llm)


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    state = request.app[STATE]
    raw = await read_v1_object(request)
    refuse_unsupported(raw, COMPLETION_UNSUPPORTED)
    body = parse(CompletionBody, raw)
    params = body.completion_params(
        sampling_defaults(state.config.sampling_defaults, state.llm.info.generation_defaults)
    )
    prompts = body.prompts()
    check_num_sequences(len(prompts), body.num_samples)
    rid = body.rid or uuid.uuid4().hex
    with OpenStreams() as opened:
        await _submit(state.llm, body, prompts, params, rid, opened)
        answer = _Answer(
            state=state, body=body, rid=rid, created=int(time.time()), opened=opened,
            prefixes=_prefixes(state, body, prompts),
        )  # fmt: skip
        if not body.stream:
            return json_response(await _whole(answer))
        chunks = merge(opened.streams, state.config.stream_interval)
        async with aclosing(chunks):
            first = await anext(chunks)
            check_not_failed(first[1].finish)  # what fails by now is still an HTTP error
            return await send_events(request, _events(answer, first, chunks), error_event)


async def _submit(
    llm: TextService,
    body: CompletionBody,
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
                n=body.num_samples,
                priority=body.priority,
                clamp_max_new_tokens=body.max_tokens is None,
                cache_namespace=body.cache_namespace,
                session=body.session,
            )
        )


def _prefixes(
    state: ServerState, body: CompletionBody, prompts: Sequence[str | tuple[int, ...]]
) -> tuple[str, ...]:
    if not body.echo:
        return ("",) * (len(prompts) * body.num_samples)
    texts = [p if isinstance(p, str) else state.llm.decode(p) for p in prompts]
    return tuple(text for text in texts for _ in range(body.num_samples))


# --- whole ---


async def _whole(answer: _Answer) -> JsonObject:
    choices = [_Choice(i, prefix) for i, prefix in enumerate(answer.prefixes)]
    count = answer.usage_count()
    async for i, chunk in results(answer.opened.streams):
        choice = choices[i]
        choice.text += chunk.text
        choice.token_ids += chunk.token_ids
        choice.logprobs += (*chunk.prompt_logprobs, *chunk.logprobs)
        choice.hidden.update(0, chunk.hidden_states)
        choice.finish = chunk.finish
        count.update(i, chunk.usage)
    whole: JsonObject = {
        "id": answer.rid,
        "object": "text_completion",
        "created": answer.created,
        "model": answer.body.model,
        "choices": [_choice(answer, i, c) for i, c in enumerate(_best(answer.body, choices))],
        "usage": count.as_dict(),
        "metadata": {"weight_version": answer.state.llm.info.weight_version},
    }
    if answer.body.return_cached_tokens_details:
        whole["sglext"] = count.sglext()
    return whole


def _best(body: CompletionBody, choices: Sequence[_Choice]) -> list[_Choice]:
    """The ``n`` likeliest samples of each prompt, the likeliest first if there is a choice."""
    size = body.num_samples
    if size == body.n:
        return list(choices)
    best = []
    for i in range(0, len(choices), size):
        ranked = sorted(choices[i : i + size], key=lambda choice: -choice.mean_logprob)
        best += ranked[: body.n]
    return best


def _choice(answer: _Answer, i: int, choice: _Choice) -> JsonObject:
    finish = choice.finish
    members: JsonObject = {
        "index": i,
        "text": choice.text,
        "logprobs": answer.logprobs(choice.logprobs),
        "finish_reason": None if finish is None else finish.type,
        "matched_stop": None if finish is None else finish.matched,
    }
    if answer.body.return_token_ids:
        members["token_ids"] = choice.token_ids
        members["prompt_token_ids"] = answer.opened.streams[choice.stream].prompt_ids
    if answer.body.return_hidden_states:
        members["hidden_states"] = choice.hidden.of(0)
    return members


# --- streamed ---


async def _events(
    answer: _Answer, first: Item, chunks: AsyncGenerator[Item, None]
) -> AsyncGenerator[bytes, None]:
    body = answer.body
    count = answer.usage_count()
    options = body.stream_options
    chunk_format = ChunkFormat(
        answer.rid, "text_completion", answer.created, body.model, answer.num_choices
    )

    hidden = LastHidden(answer.num_choices)
    is_bare = not (
        options.continuous_usage_stats
        or body.logprobs is not None
        or body.return_token_ids
        or body.return_hidden_states
    )

    def data_of(i: int, chunk: TextChunk) -> bytes:
        check_not_failed(chunk.finish)
        if is_bare and chunk.text and chunk.finish is None:
            return chunk_format.bare_text(i, chunk.text)
        count.update(i, chunk.usage)
        hidden.update(i, chunk.hidden_states)
        logprobs = chunk.prompt_logprobs + chunk.logprobs
        if not (chunk.text or logprobs or chunk.finish is not None):
            return b""
        extras = ids_member("token_ids", chunk.token_ids) if body.return_token_ids else b""
        return chunk_format.text(
            i, chunk.text, answer.logprobs(logprobs), chunk.finish, extras, count.member()
        )

    if opening := _opening(answer, chunk_format, count.member()):
        yield opening
    if data := data_of(*first):
        yield data
    async for i, chunk in chunks:
        if data := data_of(i, chunk):
            yield data
    if data := hidden.data(chunk_format.text_hidden_states) + _closing(answer, chunk_format, count):
        yield data


def _closing(answer: _Answer, chunk_format: ChunkFormat, count: UsageCount) -> bytes:
    """What is told of the whole request at the end."""
    data = b""
    if answer.body.return_cached_tokens_details:
        data += chunk_format.without_choices("sglext", count.sglext())
    is_default = answer.state.config.stream_response_default_include_usage
    if answer.body.stream_options.include_usage or is_default:
        data += chunk_format.without_choices("usage", count.as_dict())
    return data


def _opening(answer: _Answer, chunk_format: ChunkFormat, usage: bytes) -> bytes:
    """The echoed prompts, and their ids where they are asked for."""
    if not (answer.body.echo or answer.body.return_token_ids):
        return b""
    chunks = []
    for i, stream in enumerate(answer.opened.streams):
        ids = ids_member("prompt_token_ids", stream.prompt_ids)
        extras = ids if answer.body.return_token_ids else b""
        chunks.append(chunk_format.text(i, answer.prefixes[i], None, None, extras, usage))
    return b"".join(chunks)
