"""Several text streams as one, and fewer, larger chunks out of many small ones."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from jaxserve.errors import InvalidRequestError
from jaxserve.request import FinishReason, TextChunk
from jaxserve.server.http_errors import AbortedError
from jaxserve.server.service import TextStream

Item = tuple[int, TextChunk]


async def merge(
    streams: Sequence[TextStream], intervals: int | Sequence[int] = 1
) -> AsyncGenerator[Item, None]:
    """Chunks of all ``streams`` as they come, each with its stream's position.

    Args:
        intervals: tokens per chunk, of all streams or of each; a stream's first and last chunk
            are never held back.
    """
    if isinstance(intervals, int):
        intervals = [intervals] * len(streams)
    if len(streams) == 1 and intervals[0] == 1:
        async for chunk in streams[0]:
            yield 0, chunk
        return
    held: dict[int, TextChunk] = {}
    seen: set[int] = set()
    source = _alone(streams[0]) if len(streams) == 1 else _together(streams)
    async with aclosing(source):
        async for position, chunk in source:
            interval = intervals[position]
            if interval > 1:
                if position in held:
                    chunk = _join(held.pop(position), chunk)
                if position in seen and chunk.finish is None and len(chunk.token_ids) < interval:
                    held[position] = chunk
                    continue
                seen.add(position)
            yield position, chunk


def check_not_failed(finish: FinishReason | None) -> None:
    """Raise for a sequence that the engine itself gave up.

    Raises:
        AbortedError: with the engine's status; an abort that a client asked for has none.
    """
    if finish is None or finish.type != "abort" or finish.status_code is None:
        return
    message = finish.message or "Aborted"
    if finish.status_code == InvalidRequestError.status:
        raise InvalidRequestError(message)
    raise AbortedError(message, finish.status_code)


async def results(streams: Sequence[TextStream]) -> AsyncGenerator[Item, None]:
    """The whole of one stream after the other, for an answer that is sent as a whole.

    Raises:
        JaxserveError: the engine gave a sequence up; raised at once, not when its turn comes.
    """
    if len(streams) == 1:
        yield 0, await _checked_result(streams[0])
        return
    tasks = [asyncio.create_task(_checked_result(stream)) for stream in streams]
    try:
        for position, chunk in enumerate(await asyncio.gather(*tasks)):
            yield position, chunk
    finally:
        for task in tasks:
            task.cancel()


async def _checked_result(stream: TextStream) -> TextChunk:
    chunk = await stream.result()
    check_not_failed(chunk.finish)
    return chunk


def _join(first: TextChunk, second: TextChunk) -> TextChunk:
    return second._replace(
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        prompt_logprobs=first.prompt_logprobs + second.prompt_logprobs,
        hidden_states=first.hidden_states + second.hidden_states,
    )


async def _alone(stream: TextStream) -> AsyncGenerator[Item, None]:
    async for chunk in stream:
        yield 0, chunk


async def _together(streams: Sequence[TextStream]) -> AsyncGenerator[Item, None]:
    """One task per stream, so that events come in the order of their tokens."""
    queue: asyncio.Queue[Item | BaseException | None] = asyncio.Queue()

    async def read(position: int, stream: TextStream) -> None:
        async for chunk in stream:
            queue.put_nowait((position, chunk))

    def report(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            queue.put_nowait(task.exception())  # None: this stream has ended

    tasks = [asyncio.create_task(read(i, stream)) for i, stream in enumerate(streams)]
    for task in tasks:
        task.add_done_callback(report)
    num_open = len(streams)
    try:
        while num_open:
            item = await queue.get()
            if item is None:
                num_open -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
