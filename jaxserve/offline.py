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
from jaxserve.native_format import GenerateState
from jaxserve.request import FinishReason, SamplingParams, TextChunk
from jaxserve.sampling_dict import sampling_params_from_dict
from jaxserve.text_stream import TextStream

Prompt = str | Sequence[int]
Sampling = SamplingParams | Mapping[str, Any] | None
Body = dict[str, object]


class Submit(Protocol):
    """``LLM.submit``."""

    async def __call__(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        n: int = 1,
        clamp_max_new_tokens: bool | None = None,
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


def calls_of(
    prompts: Prompt | Sequence[Prompt], sampling: Sampling | Sequence[Sampling]
) -> tuple[list[Call], bool]:
    """The calls, and whether the answer is a list.

    Raises:
        InvalidRequestError: lists of different lengths, or a sampling dict that is wrong.
    """
    each_prompt, is_batch = _each_prompt(prompts)
    if isinstance(sampling, (list, tuple)):
        each_sampling = list(sampling)
    else:
        each_sampling = [sampling] * len(each_prompt)
    if len(each_sampling) != len(each_prompt):
        raise InvalidRequestError(
            f"{len(each_prompt)} prompts were given with {len(each_sampling)} sampling_params; "
            "give one for all, or one per prompt"
        )
    calls = [
        _call(prompt, params) for prompt, params in zip(each_prompt, each_sampling, strict=True)
    ]
    return calls, is_batch or any(call.n > 1 for call in calls)


def _each_prompt(prompts: object) -> tuple[list[Any], bool]:
    """The prompts, and whether they were a list.  ``submit`` refuses what is no prompt at all."""
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        return [prompts], False
    items = list(prompts)
    if items and all(isinstance(item, Integral) for item in items):  # numpy's integers are too
        return [items], False
    return items, True


def _call(prompt: Prompt, sampling: Any) -> Call:
    if isinstance(sampling, SamplingParams):
        return Call(prompt, sampling, 1, None)
    params, n = sampling_params_from_dict(sampling)
    is_default = sampling is None or sampling.get("max_new_tokens") is None
    return Call(prompt, params, n, is_default)


async def final_bodies(submit: Submit, calls: Sequence[Call], weight_version: str) -> list[Body]:
    """The finished answers, in the order of the prompts.

    Raises:
        JaxserveError: a prompt was refused, or the engine gave one up; the others are aborted.
    """
    streams = await _submit_all(submit, calls)
    try:
        chunks = await asyncio.gather(*map(_checked_result, streams))
    finally:
        _close(streams)
    bodies = []
    for stream, chunk in zip(streams, chunks, strict=True):
        answer = _answer(stream, weight_version)
        answer.add(chunk)
        bodies.append(answer.body())
    return bodies


async def growing_bodies(
    submit: Submit, calls: Sequence[Call], is_list: bool, weight_version: str
) -> AsyncGenerator[Body, None]:
    """Answers so far, one whenever a stream has grown; ``index`` tells which, in a list."""
    streams = await _submit_all(submit, calls)
    answers = [_answer(stream, weight_version) for stream in streams]
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
                yield answers[i].body() | ({"index": i} if is_list else {})
    finally:
        for task in tasks:
            task.cancel()
        _close(streams)


async def _submit_all(submit: Submit, calls: Sequence[Call]) -> list[TextStream]:
    streams: list[TextStream] = []
    with ExitStack() as on_failure:
        on_failure.callback(_close, streams)  # also when the caller is interrupted
        for call in calls:
            streams += await submit(
                call.prompt, call.params, n=call.n, clamp_max_new_tokens=call.clamps
            )
        on_failure.pop_all()
    return streams


def _close(streams: Sequence[TextStream]) -> None:
    for stream in streams:
        stream.close()


def _answer(stream: TextStream, weight_version: str) -> GenerateState:
    return GenerateState(
        stream.rid,
        len(stream.prompt_ids),
        stream.arrival_s,
        weight_version=weight_version,
        num_logprobs=stream.sampling.num_logprobs,
    )


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
