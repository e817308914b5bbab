"""The answer's shape in the native API: what ``/generate`` and ``LLM.generate`` return.

One ``GenerateState`` per stream accumulates chunks; ``body()`` is the dict of all of it so far::

    {"text": str, "output_ids": [int], "meta_info": {"id", "finish_reason", "prompt_tokens", …}}
"""

import time
from collections.abc import Callable

from jaxserve.request import FinishReason, TextChunk, TokenLogprob, Usage

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


class GenerateState:
    """All that one stream has produced, in the native API's terms.

    Args:
        rid: the stream's own id.
        num_prompt_tokens: length of its prompt.
        arrival_s: ``time.perf_counter()`` when it was submitted; e2e_latency counts from it.
        weight_version: echoed in meta_info.
        num_logprobs: None for no logprob lists; 0 for the chosen tokens; k > 0 for top-k too.
        decode_token: fills the text of logprob entries; None leaves it null.
    """

    def __init__(
        self,
        rid: str,
        num_prompt_tokens: int,
        arrival_s: float,
        *,
        weight_version: str,
        num_logprobs: int | None = None,
        decode_token: Callable[[int], str] | None = None,
    ) -> None:
        self._rid = rid
        self._arrival_s = arrival_s
        self._weight_version = weight_version
        self._num_logprobs = num_logprobs
        self._decode_token = decode_token
        self._text = ""
        self._output_ids: list[int] = []
        self._chosen: list[LogprobEntry] = []
        self._top: list[list[LogprobEntry]] = []
        self._usage = Usage(num_prompt_tokens, 0, 0)
        self._num_retractions = 0
        self._finish: FinishReason | None = None
        self._latency_s: float | None = None

    @property
    def text(self) -> str:
        """All the text so far."""
        return self._text

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
        self._text += chunk.text
        self._output_ids += chunk.token_ids
        self._usage = chunk.usage
        self._num_retractions = chunk.num_retractions
        if self._num_logprobs is not None:
            self._add_logprobs(chunk.logprobs)
        if chunk.finish is not None:
            self._finish = chunk.finish
            self._latency_s = time.perf_counter() - self._arrival_s

    def body(self) -> dict[str, object]:
        """A new dict of everything so far; ``text``, ``output_ids`` and lists are cumulative."""
        meta: dict[str, object] = {
            "id": self._rid,
            "finish_reason": finish_reason_dict(self._finish, self._usage.completion_tokens),
            "prompt_tokens": self._usage.prompt_tokens,
            "weight_version": self._weight_version,
            "num_retractions": self._num_retractions,
            "completion_tokens": self._usage.completion_tokens,
            "cached_tokens": self._usage.cached_tokens,
            "reasoning_tokens": 0,
        }
        if self._num_logprobs is not None:
            meta |= self._logprob_lists(self._num_logprobs)
        if self._latency_s is not None:
            meta["e2e_latency"] = self._latency_s
        return {"text": self._text, "output_ids": self._output_ids.copy(), "meta_info": meta}

    def _add_logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> None:
        for item in logprobs:
            self._chosen.append(self._entry(item.token_id, item.logprob))
            self._top.append([self._entry(token_id, logprob) for token_id, logprob in item.top])

    def _entry(self, token_id: int, logprob: float) -> LogprobEntry:
        text = None if self._decode_token is None else self._decode_token(token_id)
        return [logprob, token_id, text]

    def _logprob_lists(self, num_logprobs: int) -> dict[str, object]:
        lists: dict[str, object] = {
            "input_token_logprobs": [],
            "output_token_logprobs": self._chosen.copy(),
            "output_token_logprobs_length": len(self._chosen),
        }
        if num_logprobs:
            lists["input_top_logprobs"] = []
            lists["output_top_logprobs"] = self._top.copy()
        return lists
