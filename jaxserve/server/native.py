"""SGLang's native endpoints for inference and liveness: /generate, /health…, /ready, /ping."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from jaxserve.errors import JaxserveError
from jaxserve.native_format import GenerateState
from jaxserve.request import SamplingParams
from jaxserve.sampling_dict import SamplingFieldError
from jaxserve.server.http_errors import (
    json_response,
    native_stream_error,
)
from jaxserve.server.json_body import read_object
from jaxserve.server.native_types import GenerateBody, parse_generate
from jaxserve.server.sse import event, send_events
from jaxserve.server.state import STATE, OpenStreams, ServerState
from jaxserve.server.streams import merge, results

HEALTH_TIMEOUT_S = 20.0
HEALTH_RID = "HEALTH_CHECK"


async def generate(request: web.Request) -> web.StreamResponse:
    """POST or PUT /generate."""
    state = request.app[STATE]
    body = parse_generate(await read_object(request))
    with OpenStreams() as opened:
        try:
            is_list = await _submit(state, body, opened)
        except SamplingFieldError:
            raise
        except JaxserveError as error:
            if not body.stream:
                raise
            return await send_events(request, _refusal(error), _error_event)
        answers = _answers(state, body, opened)
        if body.stream:
            events = _events(state, opened, answers, is_list)
            return await send_events(request, events, _error_event)
        return json_response(await _collect(opened, answers, is_list))


async def _submit(state: ServerState, body: GenerateBody, opened: OpenStreams) -> bool:
    """Submit every prompt; return whether the answer is a list."""
    calls, n = body.calls()
    for call in calls:
        await opened.add(
            state.llm.submit(
                call.prompt,
                call.params,
                rid=call.rid,
                n=n,
                priority=body.priority,
                clamp_max_new_tokens=call.clamps,
            )
        )
    return body.is_batch or n > 1


def _answers(state: ServerState, body: GenerateBody, opened: OpenStreams) -> list[GenerateState]:
    n = len(opened.streams) // len(body.prompts)
    answers = []
    for i, stream in enumerate(opened.streams):
        prompt = i // n
        num_logprobs = body.top_logprobs_num[prompt] if body.return_logprob[prompt] else None
        answers.append(
            GenerateState(
                stream.rid,
                len(stream.prompt_ids),
                stream.arrival_s,
                weight_version=state.llm.info.weight_version,
                num_logprobs=num_logprobs,
                decode_token=state.llm.decode_token if body.text_in_logprobs else None,
            )
        )
    return answers


async def _refusal(error: JaxserveError) -> AsyncGenerator[bytes, None]:
    yield _error_event(error)


def _error_event(error: JaxserveError) -> bytes:
    return event(native_stream_error(str(error), error.status))


async def _events(
    state: ServerState, opened: OpenStreams, answers: list[GenerateState], is_list: bool
) -> AsyncGenerator[bytes, None]:
    chunks = merge(opened.streams, state.config.stream_interval)
    async with aclosing(chunks):
        async for i, chunk in chunks:
            answer = answers[i]
            answer.add(chunk)
            body = answer.body()
            if is_list:
                body["index"] = i
            yield event(body)


async def _collect(opened: OpenStreams, answers: list[GenerateState], is_list: bool) -> object:
    async for i, chunk in results(opened.streams):
        answers[i].add(chunk)
    bodies = [answer.body() for answer in answers]
    return bodies if is_list else bodies[0]


# --- liveness ---


async def health(request: web.Request) -> web.Response:
    """GET /health, /ready, /ping: 200 while requests are served, else 503.  Costs nothing."""
    return web.Response(status=200 if request.app[STATE].is_serving else 503)


async def health_generate(request: web.Request) -> web.Response:
    """GET /health_generate: 200 once one token has been generated, 503 if it cannot be."""
    state = request.app[STATE]
    if not state.is_serving:
        return web.Response(status=503)
    params = SamplingParams(max_new_tokens=1, temperature=0.0)
    rid = f"{HEALTH_RID}_{uuid.uuid4().hex}"
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            with OpenStreams() as opened:
                await opened.add(state.llm.submit("a", params, rid=rid))
                async for _ in results(opened.streams):
                    pass
    except (JaxserveError, TimeoutError):
        return web.Response(status=503)
    return web.Response(status=200 if state.is_serving else 503)
