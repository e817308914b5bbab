"""SGLang's native endpoints for inference and liveness: /generate, /health…, /ready, /ping."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from aiohttp import web

from jaxserve.errors import InvalidRequestError, JaxserveError, UnsupportedFeatureError
from jaxserve.native_fields import SamplingFieldError
from jaxserve.native_format import AnswerFormat, GenerateState, ReasoningSpan
from jaxserve.native_request import Call, GenerateRequest, Shown, parse_generate
from jaxserve.parsers import reasoning_format
from jaxserve.request import (
    HEALTH_CHECK_RID,
    InputEmbeds,
    SamplingParams,
    Thought,
    check_in_vocabulary,
)
from jaxserve.sampling_dict import FIELDS
from jaxserve.server.beams import BeamGeneration
from jaxserve.server.http_errors import (
    BodyError,
    json_response,
    native_stream_error,
)
from jaxserve.server.json_body import JsonObject, read_object
from jaxserve.server.service import TextService
from jaxserve.server.sse import event, send_events
from jaxserve.server.state import STATE, OpenStreams, ServerState
from jaxserve.server.streams import merge, results
from jaxserve.server.thoughts import NEEDS_STRICT_THINKING, thought_of

TAIL = 100  # characters or tokens at a prompt's end, where a template may open the reasoning
VERTEX_INPUTS = ("text", "input_ids", "input_embeds", "image_data")


class Generation:
    """What one body of /generate asks for, on its way to an answer."""

    def __init__(self, state: ServerState, body: GenerateRequest) -> None:
        self.state = state
        self.body = body
        self.opened = OpenStreams()
        self._calls: list[Call] = []
        self._reasoning: list[ReasoningSpan | None] = []  # of each call
        self._n = 1

    @property
    def is_list(self) -> bool:
        """The answer is a list, or its events have an index."""
        return self.body.is_batch or self._n > 1

    async def submit(self) -> None:
        """Submit every prompt.

        Raises:
            SamplingFieldError: sampling_params cannot be decoded.
            JaxserveError: what ``LLM.submit`` refuses.
        """
        self._calls, self._n = self.body.calls()
        llm = self.state.llm_for(no_logs=self.body.shown.no_logs)
        for call in self._calls:
            thought = await _thought(self.state, call, self.body.shown)
            self._reasoning.append(_span(self.state.llm, thought))
            await self.opened.add(
                llm.submit(
                    call.prompt,
                    call.params if thought is None else replace(call.params, thought=thought),
                    rid=call.options.rid,
                    n=self._n,
                    priority=self.body.shown.priority,
                    clamp_max_new_tokens=call.clamps,
                    cache_namespace=call.options.cache_namespace,
                    session=call.options.session,
                )
            )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream; each holds all there is so far."""
        answers = self._answers()
        interval = self.state.config.stream_interval
        intervals = [call.params.stream_interval or interval for call in self._calls]
        each = [interval for interval in intervals for _ in range(self._n)]
        chunks = merge(self.opened.streams, each)
        async with aclosing(chunks):
            async for i, chunk in chunks:
                answer = answers[i]
                answer.add(chunk)
                body = answer.body()
                if self.is_list:
                    body["index"] = i
                yield event(body)

    async def answer(self) -> object:
        """The whole answer.

        Raises:
            JaxserveError: the engine gave a sequence up.
        """
        answers = self._answers()
        async for i, chunk in results(self.opened.streams):
            answers[i].add(chunk)
        bodies = [answer.body() for answer in answers]
        return bodies if self.is_list else bodies[0]

    def _answers(self) -> list[GenerateState]:
        llm, config, shown = self.state.llm, self.state.config, self.body.shown
        whole = AnswerFormat(
            weight_version=llm.info.weight_version,
            decode_token=llm.decode_token if shown.text_in_logprobs else None,
            shows_prompt_ids=shown.prompt_token_ids,
            has_times=config.enable_metrics,
            is_incremental=shown.stream and config.incremental_streaming_output,
        )
        answers = []
        for i, stream in enumerate(self.opened.streams):
            options = self._calls[i // self._n].options
            answer_format = replace(
                whole,
                reasoning=self._reasoning[i // self._n],
                num_logprobs=options.num_logprobs,
                has_logprob_ids=bool(options.logprob_token_ids),
                hidden_states=options.hidden_states,
            )
            answers.append(
                GenerateState(stream.rid, stream.prompt_ids, stream.arrival_s, answer_format)
            )
        return answers


async def generate(request: web.Request) -> web.StreamResponse:
    """POST or PUT /generate."""
    generation = _generation(request, await read_object(request))
    with generation.opened:
        if generation.body.shown.stream:
            return await _stream(request, generation)
        await generation.submit()
        return json_response(await generation.answer())


async def vertex_generate(request: web.Request) -> web.StreamResponse:
    """POST /vertex_generate: instances → predictions.

    ``parameters`` are fields of /generate, those of sampling_params among them or inside it.
    """
    vertex = await read_object(request)
    instances, parameters = vertex.get("instances"), vertex.get("parameters") or {}
    if not isinstance(instances, list) or not isinstance(parameters, dict):
        raise BodyError("vertex_generate takes {'instances': [object], 'parameters': object}")
    if not all(isinstance(instance, dict) for instance in instances):
        raise BodyError(
            "every instance must be an object with `text`, `input_ids` or `input_embeds`"
        )
    if not instances:
        return json_response({"predictions": []})
    generation = _generation(request, _vertex_body(instances, parameters))
    with generation.opened:
        if generation.body.shown.stream:
            return await _stream(request, generation)
        await generation.submit()
        return json_response({"predictions": await generation.answer()})


def _vertex_body(instances: list[JsonObject], parameters: JsonObject) -> JsonObject:
    sampling = {name: value for name, value in parameters.items() if name in FIELDS}
    body = {name: value for name, value in parameters.items() if name not in FIELDS}
    given = body.get("sampling_params") or {}
    if isinstance(given, dict):
        body["sampling_params"] = sampling | given
    for name in VERTEX_INPUTS:
        values = [instance.get(name) for instance in instances]
        if any(value is not None for value in values):
            body[name] = values
    return body


def _generation(request: web.Request, raw: JsonObject) -> Generation | BeamGeneration:
    state = request.app[STATE]
    body = parse_generate(raw, state.config.preferred_sampling_params)
    return BeamGeneration(state, body) if body.beam_width > 1 else Generation(state, body)


async def _stream(
    request: web.Request, generation: Generation | BeamGeneration
) -> web.StreamResponse:
    try:
        await generation.submit()
    except SamplingFieldError:
        raise
    except JaxserveError as error:
        return await send_events(request, _refusal(error), _error_event)
    return await send_events(request, generation.events(), _error_event)


async def _thought(state: ServerState, call: Call, shown: Shown) -> Thought | None:
    """The reasoning that the answer to ``call`` begins with; None where none is asked for."""
    llm, budget = state.llm, shown.max_thinking_tokens
    is_strict = state.config.enable_strict_thinking
    if budget is not None and not is_strict:
        raise InvalidRequestError(NEEDS_STRICT_THINKING.format(name="max_thinking_tokens"))
    if budget is not None and not shown.reasoning:
        raise InvalidRequestError(
            f"max_thinking_tokens={budget} limits the reasoning of an output that begins with it; "
            "send require_reasoning: true with it."
        )
    if not shown.reasoning:
        return None
    name = llm.info.reasoning_parser
    if name is None:
        raise UnsupportedFeatureError(
            "`require_reasoning` is not supported: the server has no --reasoning-parser, so it "
            "does not know where reasoning ends. Leave it away or send false."
        )
    assert not isinstance(call.prompt, InputEmbeds)  # refused with the body
    if isinstance(call.prompt, str):
        tail = call.prompt[-TAIL:]
    else:  # checked here already: what is no token cannot be decoded
        check_in_vocabulary(call.prompt, llm.info.vocab_size)
        tail = llm.decode(call.prompt[-TAIL:])
    is_inside = reasoning_format(name).starts_inside(tail)
    return await thought_of(llm, name, is_inside=is_inside, is_strict=is_strict, budget=budget)


def _span(llm: TextService, thought: Thought | None) -> ReasoningSpan | None:
    if thought is None:
        return None
    end = llm.decode(thought.end_ids)
    return ReasoningSpan(thought.end_ids, thought.start_ids, end.strip(), llm.decode_token)


async def _refusal(error: JaxserveError) -> AsyncGenerator[bytes, None]:
    yield _error_event(error)


def _error_event(error: JaxserveError) -> bytes:
    return event(native_stream_error(str(error), error.status))


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
    rid = f"{HEALTH_CHECK_RID}_{uuid.uuid4().hex}"
    try:
        async with asyncio.timeout(state.config.health_check_timeout_s):
            with OpenStreams() as opened:
                await opened.add(state.llm.submit("a", params, rid=rid))
                async for _ in results(opened.streams):
                    pass
    except (JaxserveError, TimeoutError):
        return web.Response(status=503)
    return web.Response(status=200 if state.is_serving else 503)
