"""One sequence on its way from the engine to whoever asked for it, as text.

Everything here runs on one event loop: the engine's outputs arrive there, and the consumer waits
there.  Tokens become text as they arrive, so that a stop string ends the sequence at once even if
nobody is reading; what a slow consumer has not fetched is kept as one growing chunk.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np

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
        metrics: counts and times; None for a sequence that is not to be counted.
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
        metrics: Metrics | None,
    ) -> None:
        self.rid = rid
        self.index = index
        self.request = request
        self._detokenizer = detokenizer
        self._abort = abort
        self._forget = forget
        self._metrics = metrics
        self._first_token_s: float | None = None
        self._last_token_s: float | None = None
        self._num_tokens = 0
        self._num_cached = 0
        self._num_retractions = 0
        self._finish: FinishReason | None = None
        self._is_exhausted = False
        self._waiter: asyncio.Future[None] | None = None
        self._wakes_at_end_only = False
        self._texts: list[str] = []
        self._token_ids: list[int] = []  # all of them; the first _num_taken were given out
        self._num_taken = 0
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob] = []
        self._hidden_states: list[np.ndarray] = []
        self._queue_s: float | None = None

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
    def output_ids(self) -> Sequence[int]:
        """All tokens so far, whether they were fetched or not."""
        return self._token_ids

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
        if len(self._token_ids) == self._num_taken and self._finish is None:
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
        if output.queue_s is not None:
            self._started(output.queue_s)
        self._prompt_logprobs += output.prompt_logprobs
        self._keep_hidden(output.hidden_states)
        finish = output.finish
        if finish is None and not output.token_ids:  # a piece of a long prompt
            return
        text_ids = output.token_ids
        is_token = finish is not None and _is_by_token(finish, text_ids)
        if is_token and not self.request.sampling.no_stop_trim:
            text_ids = text_ids[:-1]  # it is counted but not shown
        increment = self._detokenizer.push(text_ids, is_last=finish is not None)
        num_tokens = len(output.token_ids)
        if increment.matched_stop is not None and not (
            is_token and increment.num_tokens == num_tokens  # the token came first
        ):
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

    def _keep_hidden(self, states: np.ndarray | None) -> None:
        if states is None:
            return
        if self.sampling.hidden_states == "last":
            self._hidden_states.clear()
        self._hidden_states.append(states)

    @property
    def _is_streaming(self) -> bool:
        return not self._wakes_at_end_only

    def _started(self, queue_s: float) -> None:
        if self._metrics is not None and self._queue_s is None:
            self._metrics.queued(queue_s)
        self._queue_s = queue_s

    def _count(self, num_tokens: int) -> None:
        now_s = time.perf_counter()
        self._num_tokens += num_tokens
        if self._last_token_s is None:
            self._first_token_s = now_s - self.request.arrival_s
            if self._metrics is not None:
                self._metrics.first_token(self._first_token_s, is_streaming=self._is_streaming)
                if self._queue_s is not None:  # None: a grammar forced it, before any step
                    self._metrics.stage("prefill_forward", self._first_token_s - self._queue_s)
        elif self._metrics is not None:
            self._metrics.inter_token((now_s - self._last_token_s) / num_tokens)
        self._last_token_s = now_s

    def _end(self, finish: FinishReason) -> None:
        self._finish = finish
        if self._metrics is not None:
            self._report(self._metrics, finish)
        self._forget(self.rid)

    def _report(self, metrics: Metrics, finish: FinishReason) -> None:
        if finish.type == "abort":
            metrics.request_aborted(
                completion_tokens=self._num_tokens,
                prompt_tokens=len(self.request.prompt_ids),
                is_streaming=self._is_streaming,
            )
            return
        decode_s = None
        if self._first_token_s is not None and self._last_token_s is not None:
            decode_s = self._last_token_s - self.request.arrival_s - self._first_token_s
        metrics.request_finished(
            e2e_s=time.perf_counter() - self.request.arrival_s,
            completion_tokens=self._num_tokens,
            prompt_tokens=len(self.request.prompt_ids),
            cached_tokens=self._num_cached,
            decode_s=decode_s,
            is_streaming=self._is_streaming,
        )

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
            token_ids=tuple(self._token_ids[self._num_taken :]),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
            finish=self._finish,
            usage=Usage(len(self.request.prompt_ids), self._num_tokens, self._num_cached),
            num_retractions=self._num_retractions,
            queue_s=self._queue_s,
            first_token_s=self._first_token_s,
            hidden_states=tuple(self._hidden_states),
        )
        self._texts.clear()
        self._num_taken = len(self._token_ids)
        self._logprobs.clear()
        self._prompt_logprobs.clear()
        self._hidden_states.clear()
        self._is_exhausted = self._finish is not None
        return chunk


def _is_by_token(finish: FinishReason, token_ids: tuple[int, ...]) -> bool:
    """The last token ended the sequence."""
    return finish.type == "stop" and bool(token_ids) and token_ids[-1] == finish.matched
