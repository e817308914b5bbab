"""One sequence on its way from the engine to whoever asked for it, as text.

Everything here runs on one event loop: the engine's outputs arrive there, and the consumer waits
there.  Tokens become text as they arrive, so that a stop string ends the sequence at once even if
nobody is reading; what a slow consumer has not fetched is kept as one growing chunk.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from jaxserve.metrics import Metrics
from jaxserve.request import (
    FinishReason,
    Request,
    SamplingParams,
    TextChunk,
    TokenLogprob,
    TokenOutput,
    Usage,
)
from jaxserve.text import Detokenizer

_CLOSED = FinishReason("abort", message="Aborted")


class TextStream:
    """The increments of one sequence.  Iterate it once, from the event loop that submitted it.

    Args:
        rid: the public id; ``request.rid`` is the engine's own.
        index: which of the n samples of its prompt this is.
        request: what the engine was asked for.
        detokenizer: of this sequence.
        abort: stops the engine's work on a sequence that ends here first.
        forget: called once, when the stream has finished.
        metrics: counts and times.
    """

    def __init__(
        self,
        rid: str,
        index: int,
        request: Request,
        detokenizer: Detokenizer,
        *,
        abort: Callable[[str], None],
        forget: Callable[[str], None],
        metrics: Metrics,
    ) -> None:
        self.rid = rid
        self.index = index
        self.request = request
        self._detokenizer = detokenizer
        self._abort = abort
        self._forget = forget
        self._metrics = metrics
        self._last_token_s: float | None = None
        self._num_tokens = 0
        self._num_cached = 0
        self._num_retractions = 0
        self._finish: FinishReason | None = None
        self._is_exhausted = False
        self._waiter: asyncio.Future[None] | None = None
        self._wakes_at_end_only = False
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens of the prompt."""
        return self.request.prompt_ids

    @property
    def sampling(self) -> SamplingParams:
        """How it is sampled, with the seed and the length that were settled."""
        return self.request.sampling

    @property
    def arrival_s(self) -> float:
        """``time.perf_counter()`` when it was submitted."""
        return self.request.arrival_s

    @property
    def finish(self) -> FinishReason | None:
        """Why the sequence ended; None while tokens may still come."""
        return self._finish

    def __aiter__(self) -> AsyncIterator[TextChunk]:
        """All chunks up to the one with ``finish``; each holds all that came since the last."""
        return self

    async def __anext__(self) -> TextChunk:
        """The next chunk, as soon as there is a token or the end."""
        if self._is_exhausted:
            raise StopAsyncIteration
        if not self._token_ids and self._finish is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            if self._is_exhausted:  # closed while waiting
                raise StopAsyncIteration
        return self._take()

    async def result(self) -> TextChunk:
        """All that is left of the sequence as one chunk; does not wake up for every token."""
        self._wakes_at_end_only = True
        while self._finish is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._take()

    def close(self) -> None:
        """Stop here: abort the sequence unless it has finished.  Idempotent."""
        self._is_exhausted = True
        if self._finish is None:
            self._end(_CLOSED)
            self._abort(self.request.rid)
        self._wake()

    def deliver(self, output: TokenOutput) -> None:
        """Take one step's output from the engine; on the event loop, in order."""
        if self._finish is not None:  # what was under way when a stop string or close() ended it
            return
        self._num_cached = output.num_cached
        self._num_retractions = output.num_retractions
        finish = output.finish
        text_ids = output.token_ids
        if finish is not None and self._trims(finish, text_ids):
            text_ids = text_ids[:-1]
        increment = self._detokenizer.push(text_ids, is_last=finish is not None)
        num_tokens = len(output.token_ids)
        if increment.matched_stop is not None:
            if finish is None:
                self._abort(self.request.rid)
            num_tokens = increment.num_tokens
            finish = FinishReason("stop", matched=increment.matched_stop)
        if increment.text:
            self._texts.append(increment.text)
        self._token_ids += output.token_ids[:num_tokens]
        self._logprobs += output.logprobs[:num_tokens]
        if num_tokens:
            self._count(num_tokens)
        if finish is not None:
            self._end(finish)
        self._wake()

    def _trims(self, finish: FinishReason, token_ids: tuple[int, ...]) -> bool:
        """A token that ended the sequence is counted but not shown."""
        return (
            finish.type == "stop"
            and not self.request.sampling.no_stop_trim
            and bool(token_ids)
            and token_ids[-1] == finish.matched
        )

    def _count(self, num_tokens: int) -> None:
        now_s = time.perf_counter()
        self._num_tokens += num_tokens
        if self._last_token_s is None:
            self._metrics.first_token(now_s - self.request.arrival_s)
        else:
            self._metrics.inter_token((now_s - self._last_token_s) / num_tokens)
        self._last_token_s = now_s

    def _end(self, finish: FinishReason) -> None:
        self._finish = finish
        if finish.type == "abort":
            self._metrics.request_aborted(completion_tokens=self._num_tokens)
        else:
            self._metrics.request_finished(
                e2e_s=time.perf_counter() - self.request.arrival_s,
                completion_tokens=self._num_tokens,
                cached_tokens=self._num_cached,
            )
        self._forget(self.rid)

    def _wake(self) -> None:
        if self._wakes_at_end_only and self._finish is None:
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self) -> TextChunk:
        chunk = TextChunk(
            rid=self.rid,
            index=self.index,
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            finish=self._finish,
            usage=Usage(len(self.request.prompt_ids), self._num_tokens, self._num_cached),
            num_retractions=self._num_retractions,
        )
        self._texts.clear()
        self._token_ids.clear()
        self._logprobs.clear()
        self._is_exhausted = self._finish is not None
        return chunk
