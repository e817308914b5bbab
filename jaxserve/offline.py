"""What ``LLM.generate`` does with its arguments and its streams."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

from jaxserve.errors import (
    EngineDeadError,
    InvalidRequestError,
    OverloadedError,
)
from jaxserve.model_parts import ModelInfo
from jaxserve.native_format import AnswerFormat, GenerateState
from jaxserve.native_prompts import embeds_prompts
from jaxserve.native_request import (
    PromptOptions,
    Shown,
    prompt_options,
    refuse_without_ids,
    shown,
)
from jaxserve.request import FinishReason, InputEmbeds, SamplingParams, SessionParams, TextChunk
from jaxserve.sampling_dict import sampling_params_from_dict
from jaxserve.text_stream import TextStream

Prompt = str | Sequence[int] | InputEmbeds
Sampling = SamplingParams | Mapping[str, Any] | None
Body = dict[str, object]


# Fields of /generate that LLM.generate takes as keywords; the others are arguments of its own.
OPTIONS = (
    "input_embeds",
    "rid",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "token_ids_logprob",
    "return_hidden_states",
    "return_text_in_logprobs",
    "return_prompt_token_ids",
    "priority",
    "extra_key",
    "cache_salt",
    "session_params",
)


class Submitter(Protocol):
    """What is asked of an ``LLM``."""

    @property
    def info(self) -> ModelInfo: ...

    def decode_token(self, token_id: int) -> str: ...

    async def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        rid: str | None = None,
        n: int = 1,
        priority: int = 0,
        clamp_max_new_tokens: bool | None = None,
        cache_namespace: str = "",
        session: SessionParams | None = None,
    ) -> list[TextStream]: ...


@dataclass(frozen=True, slots=True)
class Call:
    """One prompt, how it is sampled, and how often.

    ``clamps=None``: whether max_new_tokens was asked for cannot be known.
    """

    prompt: Prompt
    params: SamplingParams
    n: int
    clamps: bool | None
    options: PromptOptions


@dataclass(frozen=True, slots=True)
class Calls:
    """All that one ``LLM.generate`` asks for.  ``is_list``: so is the answer."""

    each: list[Call]
    is_list: bool
    shown: Shown


def calls_of(
    prompts: Prompt | Sequence[Prompt] | None,
    sampling: Sampling | Sequence[Sampling],
    options: Mapping[str, Any],
) -> Calls:
    """What the arguments of ``LLM.generate`` ask for.

    Raises:
        InvalidRequestError: lists of different lengths, a sampling dict that is wrong, an option
            that there is not.
    """
    for name in options:
        if name not in OPTIONS:
            raise InvalidRequestError(
                f"LLM.generate has no option {name!r}; there are {', '.join(OPTIONS)}"
            )
    each_prompt, is_batch = _each_prompt(prompts, options.get("input_embeds"))
    if isinstance(sampling, (list, tuple)):
        each_sampling = list(sampling)
    else:
        each_sampling = [sampling] * len(each_prompt)
    if len(each_sampling) != len(each_prompt):
        raise InvalidRequestError(
            f"{len(each_prompt)} prompts were given with {len(each_sampling)} sampling_params; "
            "give one for all, or one per prompt"
        )
    each_options = prompt_options(options, len(each_prompt), is_batch=is_batch)
    calls = [
        _call(*arguments)
        for arguments in zip(each_prompt, each_sampling, each_options, strict=True)
    ]
    whole = shown(options)
    refuse_without_ids(each_prompt, whole)
    return Calls(calls, is_batch or any(call.n > 1 for call in calls), whole)


def _each_prompt(prompts: object, input_embeds: object) -> tuple[list[Any], bool]:
    """The prompts, and whether they were a list.  ``submit`` refuses what is no prompt at all."""
    if input_embeds is not None:
        if prompts is not None:
            raise InvalidRequestError("give either prompts or input_embeds, not both")
        embeds, is_batch = embeds_prompts(input_embeds)
        return list(embeds), is_batch
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        return [prompts], False
    items = list(prompts)
    if items and all(isinstance(item, Integral) for item in items):  # numpy's integers are too
        return [items], False
    return items, True


def _call(prompt: Prompt, sampling: Any, options: PromptOptions) -> Call:
    if isinstance(sampling, SamplingParams):
        return Call(prompt, options.applied_to(sampling), 1, None, options)
    params, n = sampling_params_from_dict(sampling)
    is_default = sampling is None or sampling.get("max_new_tokens") is None
    return Call(prompt, options.applied_to(params), n, is_default, options)


async def final_bodies(llm: Submitter, calls: Calls) -> list[Body]:
    """The finished answers, in the order of the prompts.

    Raises:
        JaxserveError: a prompt was refused, or the engine gave one up; the others are aborted.
    """
    streams = await _submit_all(llm, calls)
    try:
        chunks = await asyncio.gather(*map(_checked_result, streams))
    finally:
        _close(streams)
    bodies = []
    for stream, chunk in zip(streams, chunks, strict=True):
        answer = _answer(llm, stream, calls.shown)
        answer.add(chunk)
        bodies.append(answer.body())
    return bodies


async def growing_bodies(llm: Submitter, calls: Calls) -> AsyncGenerator[Body, None]:
    """Answers so far, one whenever a stream has grown; ``index`` tells which, in a list."""
    streams = await _submit_all(llm, calls)
    answers = [_answer(llm, stream, calls.shown) for stream in streams]
    tasks = {asyncio.ensure_future(anext(stream)): i for i, stream in enumerate(streams)}
    try:
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                i = tasks.pop(task)
                chunk = task.result()
                _check_not_failed(chunk.finish)
                answers[i].add(chunk)
                if chunk.finish is None:
                    tasks[asyncio.ensure_future(anext(streams[i]))] = i
                yield answers[i].body() | ({"index": i} if calls.is_list else {})
    finally:
        for task in tasks:
            task.cancel()
        _close(streams)


async def _submit_all(llm: Submitter, calls: Calls) -> list[TextStream]:
    streams: list[TextStream] = []
    with ExitStack() as on_failure:
        on_failure.callback(_close, streams)  # also when the caller is interrupted
        for call in calls.each:
            streams += await llm.submit(
                call.prompt,
                call.params,
                rid=call.options.rid,
                n=call.n,
                priority=calls.shown.priority,
                clamp_max_new_tokens=call.clamps,
                cache_namespace=call.options.cache_namespace,
                session=call.options.session,
            )
        on_failure.pop_all()
    return streams


def _close(streams: Sequence[TextStream]) -> None:
    for stream in streams:
        stream.close()


def _answer(llm: Submitter, stream: TextStream, wanted: Shown) -> GenerateState:
    answer_format = AnswerFormat(
        weight_version=llm.info.weight_version,
        num_logprobs=stream.sampling.num_logprobs,
        has_logprob_ids=bool(stream.sampling.logprob_token_ids),
        hidden_states=stream.sampling.hidden_states,
        decode_token=llm.decode_token if wanted.text_in_logprobs else None,
        shows_prompt_ids=wanted.prompt_token_ids,
    )
    return GenerateState(stream.rid, stream.prompt_ids, stream.arrival_s, answer_format)


async def _checked_result(stream: TextStream) -> TextChunk:
    chunk = await stream.result()
    _check_not_failed(chunk.finish)
    return chunk


def _check_not_failed(finish: FinishReason | None) -> None:
    """Raise for a sequence that the engine gave up; an abort that was asked for has no status."""
    if finish is None or finish.type != "abort" or finish.status_code is None:
        return
    message = finish.message or "Aborted"
    if finish.status_code == InvalidRequestError.status:
        raise InvalidRequestError(message)
    if finish.status_code == OverloadedError.status:
        raise OverloadedError(message)
    raise EngineDeadError(message)
