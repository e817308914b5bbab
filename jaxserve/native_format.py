"""The answer's shape in the native API: what ``/generate`` and ``LLM.generate`` return.

One ``GenerateState`` per stream accumulates chunks; ``body()`` is the dict of all of it so far::

    {"text": str, "output_ids": [int], "meta_info": {"id", "finish_reason", "prompt_tokens", …}}
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxserve.request import FinishReason, HiddenStates, TextChunk, TokenLogprob, Usage

LogprobEntry = list[float | int | str | None]


def finish_reason_dict(
    finish: FinishReason | None, completion_tokens: int
) -> dict[str, object] | None:
    """``finish`` as the API writes it; ``None`` while the stream is open."""
    if finish is None:
        return None
    if finish.type == "stop":
        return {"type": "stop", "matched": finish.matched}
    if finish.type == "length":
        return {"type": "length", "length": completion_tokens}
    return {
        "type": "abort",
        "message": finish.message,
        "status_code": finish.status_code,
        "err_type": None,
    }


@dataclass(frozen=True, slots=True)
class ReasoningSpan:
    """Where the reasoning of an output ends, and begins: after ``start_ids``, or at once.

    ``end`` is the text that ``end_ids`` spell: it may be cut into other tokens.  ``decode_token``
    tells their text.
    """

    end_ids: tuple[int, ...]
    start_ids: tuple[int, ...] = ()
    end: str = ""
    decode_token: Callable[[int], str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """What the answers of one request hold.

    ``num_logprobs`` None: no logprob lists; 0: of the chosen tokens; k > 0: top-k too.
    ``has_logprob_ids``: logprobs of given ids too.  ``decode_token`` fills the text of logprob
    entries, None leaves it null.  ``hidden_states``: those of all positions, or the last one's.
    ``reasoning`` None: no output is any.
    """

    weight_version: str
    num_logprobs: int | None = None
    has_logprob_ids: bool = False
    decode_token: Callable[[int], str] | None = None
    shows_prompt_ids: bool = False
    hidden_states: HiddenStates | None = None
    reasoning: ReasoningSpan | None = None
    has_times: bool = False
    is_incremental: bool = False


class LogprobLists:
    """Logprob entries of the positions of a prompt, or of an output, as the API writes them."""

    def __init__(self, decode_token: Callable[[int], str] | None) -> None:
        self._decode_token = decode_token
        self.chosen: list[LogprobEntry] = []
        self.top: list[list[LogprobEntry] | None] = []
        self.of_ids: list[list[LogprobEntry] | None] = []

    def add(self, items: Sequence[TokenLogprob]) -> None:
        """Append positions; the first of a prompt has no logprobs, so its lists are null."""
        for item in items:
            is_null = item.logprob is None
            self.chosen.append(self._entry(item.token_id, item.logprob))
            self.top.append(None if is_null else [self._entry(*pair) for pair in item.top])
            self.of_ids.append(None if is_null else [self._entry(*pair) for pair in item.of_ids])

    def clear(self) -> None:
        """Forget what was added."""
        self.chosen, self.top, self.of_ids = [], [], []

    def _entry(self, token_id: int, logprob: float | None) -> LogprobEntry:
        text = None if self._decode_token is None else self._decode_token(token_id)
        return [logprob, token_id, text]


class HiddenLists:
    """Hidden states of one position after the other, as the API writes them.

    Args:
        num_prompt: how many of the positions are the prompt's.
    """

    def __init__(self, num_prompt: int) -> None:
        self._num_prompt = num_prompt
        self._prompt: list[list[float]] = []
        self._output: list[list[float]] = []
        self._count = 0

    def add(self, arrays: Sequence[np.ndarray]) -> None:
        """Append those of f32[n, D] each."""
        for states in arrays:
            rows = states.tolist()
            of_prompt = max(0, self._num_prompt - self._count)
            self._prompt += rows[:of_prompt]
            self._output += rows[of_prompt:]
            self._count += len(rows)

    def all(self) -> list[object]:
        """First the prompt's as one list, then each other position's."""
        return [*([self._prompt] if self._prompt else []), *self._output]

    def clear(self) -> None:
        """Forget what was added, but not how much it was."""
        self._prompt, self._output = [], []


class ReasoningCount:
    """How many of the tokens belong to the reasoning, its marks included."""

    def __init__(self, span: ReasoningSpan | None) -> None:
        self._span = span  # None once it is over
        self._start_ids = () if span is None else span.start_ids
        self._recent: tuple[int, ...] = ()
        self._text = ""
        self._num_tokens = 0

    @property
    def count(self) -> int:
        """The tokens so far; 0 before it is clear that there is reasoning."""
        return self._num_tokens if self._num_tokens >= len(self._start_ids) else 0

    def add(self, token_ids: Sequence[int]) -> None:
        """Count on."""
        if self._span is None:
            return
        for token_id in token_ids:
            if self._is_starting and token_id != self._start_ids[self._num_tokens]:
                self._span, self._num_tokens = None, 0
                return
            self._num_tokens += 1
            if self._ends(self._span, token_id):
                self._span = None
                return

    def _ends(self, span: ReasoningSpan, token_id: int) -> bool:
        self._recent = (*self._recent, token_id)[-len(span.end_ids) :]
        if self._recent == span.end_ids or span.decode_token is None:
            return self._recent == span.end_ids
        text = self._text + span.decode_token(token_id)
        self._text = text[-len(span.end) :]
        return bool(span.end) and span.end in text

    @property
    def _is_starting(self) -> bool:
        return self._num_tokens < len(self._start_ids)


class GenerateState:
    """All that one stream has produced, in the native API's terms.

    Args:
        rid: the stream's own id.
        prompt_ids: its prompt.
        arrival_s: ``time.perf_counter()`` when it was submitted; latencies count from it.
        answer_format: what is asked for.
    """

    def __init__(
        self, rid: str, prompt_ids: Sequence[int], arrival_s: float, answer_format: AnswerFormat
    ) -> None:
        self._rid = rid
        self._prompt_ids = prompt_ids
        self._format = answer_format
        self._text = ""
        self._output_ids: list[int] = []
        self._input = LogprobLists(answer_format.decode_token)
        self._output = LogprobLists(answer_format.decode_token)
        self._num_logprobs = 0
        self._hidden = HiddenLists(len(prompt_ids))
        self._last_hidden: list[float] | None = None
        self._reasoning = ReasoningCount(answer_format.reasoning)
        self._times = Times(arrival_s)
        self._usage = Usage(len(prompt_ids), 0, 0)
        self._num_retractions = 0
        self._finish: FinishReason | None = None

    @property
    def finish(self) -> FinishReason | None:
        """Why the stream ended; None while it is open."""
        return self._finish

    @property
    def usage(self) -> Usage:
        """The counts of the last chunk."""
        return self._usage

    def add(self, chunk: TextChunk) -> None:
        """Append one increment."""
        if self._format.is_incremental:
            self._text = ""
            self._output_ids = []
            self._output.clear()
            self._input.clear()
            self._hidden.clear()
        self._text += chunk.text
        self._output_ids += chunk.token_ids
        self._usage = chunk.usage
        self._num_retractions = chunk.num_retractions
        self._reasoning.add(chunk.token_ids)
        if self._format.num_logprobs is not None:
            self._input.add(chunk.prompt_logprobs)
            self._output.add(chunk.logprobs)
            self._num_logprobs += len(chunk.logprobs)
        if self._format.hidden_states == "all":
            self._hidden.add(chunk.hidden_states)
        elif chunk.hidden_states:
            self._last_hidden = chunk.hidden_states[-1][-1].tolist()
        self._times.add(chunk)
        self._finish = chunk.finish

    def body(self) -> dict[str, object]:
        """A new dict of everything so far, or with ``is_incremental`` of the last increment."""
        meta: dict[str, object] = {
            "id": self._rid,
            "finish_reason": finish_reason_dict(self._finish, self._usage.completion_tokens),
            "prompt_tokens": self._usage.prompt_tokens,
            "weight_version": self._format.weight_version,
            "num_retractions": self._num_retractions,
            "completion_tokens": self._usage.completion_tokens,
            "cached_tokens": self._usage.cached_tokens,
            "reasoning_tokens": self._reasoning.count,
        }
        if self._format.num_logprobs is not None:
            meta |= self._logprob_lists(self._format.num_logprobs)
        if self._format.hidden_states == "all":
            meta["hidden_states"] = self._hidden.all()
        elif self._last_hidden is not None:
            meta["hidden_states"] = self._last_hidden
        if self._finish is not None:
            meta["e2e_latency"] = self._times.e2e_s
            if self._format.has_times:
                meta |= self._times.as_dict(self._usage.completion_tokens)
        body: dict[str, object] = {
            "text": self._text,
            "output_ids": self._output_ids.copy(),
            "meta_info": meta,
        }
        if self._format.shows_prompt_ids:
            body["prompt_token_ids"] = list(self._prompt_ids)
        return body

    def _logprob_lists(self, num_logprobs: int) -> dict[str, object]:
        lists: dict[str, object] = {
            "input_token_logprobs": self._input.chosen.copy(),
            "output_token_logprobs": self._output.chosen.copy(),
            "output_token_logprobs_length": self._num_logprobs,
        }
        if num_logprobs:
            lists["input_top_logprobs"] = self._input.top.copy()
            lists["output_top_logprobs"] = self._output.top.copy()
        if self._format.has_logprob_ids:
            lists["input_token_ids_logprobs"] = self._input.of_ids.copy()
            lists["output_token_ids_logprobs"] = self._output.of_ids.copy()
        return lists


class Times:
    """When things happened to one stream, for meta_info.

    Args:
        arrival_s: ``time.perf_counter()`` when it was submitted.
    """

    def __init__(self, arrival_s: float) -> None:
        self._arrival_s = arrival_s
        self._queue_s: float | None = None
        self._first_token_s: float | None = None
        self._end_s = arrival_s

    @property
    def e2e_s(self) -> float:
        """Seconds from arrival to the last chunk."""
        return self._end_s - self._arrival_s

    def add(self, chunk: TextChunk) -> None:
        """Note that ``chunk`` has come just now."""
        self._end_s = time.perf_counter()
        self._queue_s = chunk.queue_s
        self._first_token_s = chunk.first_token_s

    def as_dict(self, num_tokens: int) -> dict[str, object]:
        """The keys that come with metrics: ``…_ts`` are Unix times, the others seconds."""
        epoch_s = time.time() - time.perf_counter()
        received_ts = epoch_s + self._arrival_s
        times: dict[str, object] = {
            "request_received_ts": received_ts,
            "request_finished_ts": epoch_s + self._end_s,
            "response_sent_to_client_ts": time.time(),
        }
        if self._queue_s is not None:
            times["queue_time"] = self._queue_s
            times["forward_entry_time"] = received_ts + self._queue_s
        if self._first_token_s is not None:
            times["first_token_latency"] = self._first_token_s
            times["prefill_finished_time"] = received_ts + self._first_token_s
            decode_s = self.e2e_s - self._first_token_s
            if num_tokens > 1 and decode_s > 0:
                times["decode_throughput"] = (num_tokens - 1) / decode_s
        return times
