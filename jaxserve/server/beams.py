"""/generate with ``beam_width`` above 1: beam search, each step of it requests of one token.

What the beams of a prompt have in common is in the prefix cache.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence

from jaxserve.beam_search import Beam, BeamSearch
from jaxserve.errors import ContextLengthError, InvalidRequestError
from jaxserve.native_format import finish_reason_dict
from jaxserve.native_request import Call, GenerateRequest, Shown
from jaxserve.request import (
    MAX_TOP_LOGPROBS,
    FinishReason,
    InputEmbeds,
    SamplingParams,
    TextChunk,
    Usage,
)
from jaxserve.server.json_body import JsonObject
from jaxserve.server.sse import event
from jaxserve.server.state import OpenStreams, ServerState
from jaxserve.server.streams import results

MAX_BEAM_WIDTH = MAX_TOP_LOGPROBS // 2
MAX_SEARCHES = 64  # of one request that go on together


class BeamGeneration:
    """What one body of /generate asks for where it asks for beams."""

    def __init__(self, state: ServerState, body: GenerateRequest) -> None:
        self.state = state
        self.body = body
        self.opened = OpenStreams()  # of no use here: a step opens and closes its own
        self._calls: list[Call] = []
        self._num_results = 1
        self._turns = asyncio.Semaphore(MAX_SEARCHES)

    async def submit(self) -> None:
        """Check everything; the search begins with ``events`` or ``answer``.

        Raises:
            SamplingFieldError: sampling_params cannot be decoded.
            InvalidRequestError: what beams cannot be searched with; names the field.
        """
        self._calls, self._num_results = self.body.calls()
        vocab_size = self.state.llm.info.vocab_size
        for call in self._calls:
            for problem in _problems(call, self.body.shown, self._num_results, vocab_size):
                raise InvalidRequestError(problem)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """One event for each prompt, at the end: a beam is not known before."""
        for i, body in enumerate(await self._bodies()):
            yield event(body | {"index": i} if self.body.is_batch else body)

    async def answer(self) -> object:
        """The whole answer.

        Raises:
            JaxserveError: a prompt that does not fit, or the engine gave a step up.
        """
        bodies = await self._bodies()
        return bodies if self.body.is_batch else bodies[0]

    async def _bodies(self) -> list[JsonObject]:
        tasks = [asyncio.create_task(self._searched(call)) for call in self._calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # where one has failed, or the client has gone
                task.cancel()

    async def _searched(self, call: Call) -> JsonObject:
        start_s = time.perf_counter()
        async with self._turns:
            return await self._search(call, start_s)

    async def _search(self, call: Call, start_s: float) -> JsonObject:
        llm, params, prompt = self.state.llm, call.params, call.prompt
        assert not isinstance(prompt, InputEmbeds)  # refused by submit
        rid = call.options.rid or uuid.uuid4().hex
        prompt_ids = await llm.encode(prompt) if isinstance(prompt, str) else prompt
        limit = self._limit(call, len(prompt_ids))
        stops = (*params.stop_token_ids, *(() if params.ignore_eos else llm.info.eos_token_ids))
        search = BeamSearch(call.beam_width, limit, stops)
        chunks: list[TextChunk] = []
        usage: Usage | None = None  # of the first step
        num_retractions = 0
        while not search.is_over:
            chunks = await self._step(rid, call, prompt_ids, search)
            num_retractions += sum(chunk.num_retractions for chunk in chunks)
            usage = usage or chunks[0].usage
            if all(chunk.logprobs for chunk in chunks):
                search.advance([chunk.logprobs[0].top for chunk in chunks])
            else:
                search.stop()  # a client has aborted it
        assert usage is not None  # a search has one step at least
        beams = search.best(self._num_results)
        meta: JsonObject = {
            "id": rid,
            "prompt_tokens": usage.prompt_tokens,
            "weight_version": llm.info.weight_version,
            "num_retractions": num_retractions,
            "completion_tokens": sum(len(beam.token_ids) for beam in beams),
            "cached_tokens": usage.cached_tokens,
            "reasoning_tokens": 0,
            "e2e_latency": time.perf_counter() - start_s,
        }
        aborts = [chunk.finish for chunk in chunks if not chunk.logprobs]
        abort = aborts[0] if aborts else None
        entries = [self._entry(beam, params, abort, {}) for beam in beams[1:]]
        entries.insert(0, self._entry(beams[0], params, abort, meta))
        body = self._entry(beams[0], params, abort, meta | {"beam_results": entries})
        if self.body.shown.prompt_token_ids:
            body["prompt_token_ids"] = list(prompt_ids)
        return body

    def _limit(self, call: Call, prompt_len: int) -> int:
        """Tokens of a beam at most; of a prompt too long 1, which a step refuses.

        Raises:
            ContextLengthError: so many were asked for that they do not fit.
        """
        llm, wanted = self.state.llm, call.params.max_new_tokens
        context = llm.info.max_req_input_len + 1
        room = context - prompt_len
        if wanted is None or room < 1:
            return max(1, room)
        if wanted > room and not (call.clamps or llm.config.allow_auto_truncate):
            raise ContextLengthError(
                f"max_new_tokens={wanted} does not fit: the prompt has {prompt_len} tokens, and "
                f"both together may have {context}. Lower it to {room}, or leave it away."
            )
        return min(room, wanted)

    async def _step(
        self, rid: str, call: Call, prompt_ids: Sequence[int], search: BeamSearch
    ) -> list[TextChunk]:
        """The next token's likeliest ones, for each beam of the frontier."""
        params = SamplingParams(max_new_tokens=1, num_logprobs=search.num_candidates, seed=0)
        llm = self.state.llm_for(no_logs=self.body.shown.no_logs)
        with OpenStreams() as opened:
            for i, beam in enumerate(search.frontier):
                await opened.add(
                    llm.submit(
                        (*prompt_ids, *beam.token_ids),
                        params,
                        rid=f"{rid}_beam{i}",
                        priority=self.body.shown.priority,
                        cache_namespace=call.options.cache_namespace,
                    )
                )
            return [chunk async for _, chunk in results(opened.streams)]

    def _entry(
        self, beam: Beam, params: SamplingParams, abort: FinishReason | None, meta: JsonObject
    ) -> JsonObject:
        """A beam as an answer; ``meta`` is what its meta_info says beside."""
        is_stopped = beam.matched is not None
        end = FinishReason("stop" if is_stopped else "length", matched=beam.matched)
        trims = is_stopped and not params.no_stop_trim
        shown_ids = beam.token_ids[:-1] if trims else beam.token_ids
        skips = params.skip_special_tokens
        return {
            "text": self.state.llm.decode(shown_ids, skip_special_tokens=skips),
            "output_ids": list(beam.token_ids),
            "meta_info": meta
            | {
                "finish_reason": finish_reason_dict(abort or end, len(beam.token_ids)),
                "sequence_score": beam.score,
            },
        }


def _problems(call: Call, shown: Shown, num_results: int, vocab_size: int) -> Iterator[str]:
    """What beams cannot be searched with, SGLang's sentences first where it has one."""
    params, width = call.params, call.beam_width
    if width > MAX_BEAM_WIDTH:
        yield (
            f"beam_width must be in [1, {MAX_BEAM_WIDTH}], got {width}: a step looks at twice as "
            f"many tokens, and there are at most {MAX_TOP_LOGPROBS} top logprobs."
        )
    if num_results > width:
        yield f"n ({num_results}) cannot exceed beam_width ({width}): it is how many are returned."
    if 2 * width > vocab_size:
        yield f"beam_width ({width}) is too large for the vocabulary, of {vocab_size} tokens."
    if params.max_new_tokens == 0:
        yield "Beam search needs at least 1 generated token; raise max_new_tokens."
    for is_given, sentence in (
        (call.options.session, "is not supported for session requests"),
        (call.options.num_logprobs is not None, "does not support return_logprob"),
        (isinstance(call.prompt, InputEmbeds), "does not support input_embeds"),
        (params.hidden_states is not None, "does not support return_hidden_states"),
        (params.grammar, "is not supported with constrained decoding"),
        (params.stop or params.stop_regex,
         "does not support stop strings/regex yet; use stop_token_ids"),
        (params.min_new_tokens, "does not support min_new_tokens yet"),
        (shown.reasoning or shown.max_thinking_tokens is not None,
         "does not support require_reasoning"),
        (params.logit_bias, "does not support logit_bias"),
        (params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1.0,
         "does not support penalties"),
    ):  # fmt: skip
        if is_given:
            yield f"Beam search {sentence}. Leave it away, or beam_width."
