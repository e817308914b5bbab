"""The answers of the OpenAI endpoints: objects of whole answers, bytes of streamed chunks.

A streamed chunk differs from the one before it in a few bytes.  ``ChunkFormat`` builds the rest
once per request, so that a token costs one small ``orjson.dumps`` and one join.
"""

from collections.abc import Callable, Sequence

import numpy as np
import orjson

from jaxserve.errors import JaxserveError
from jaxserve.parsers import ToolCallDelta
from jaxserve.request import FinishReason, TokenLogprob, Usage
from jaxserve.server.http_errors import Dialect, error_object
from jaxserve.server.service import TokenTexts
from jaxserve.server.sse import event

JsonObject = dict[str, object]

_OPEN = b'"finish_reason":null,"matched_stop":null'
_CONTENT_TAIL = b',"reasoning_content":null},"logprobs":null,%b}]}\n\n' % _OPEN
_TEXT_TAIL = b',"logprobs":null,%b}]}\n\n' % _OPEN


class LastHidden:
    """The newest hidden state of each choice."""

    def __init__(self, num_choices: int) -> None:
        self._rows: list[np.ndarray | None] = [None] * num_choices

    def update(self, choice: int, arrays: Sequence[np.ndarray]) -> None:
        """Take in a chunk's ``hidden_states``."""
        if arrays:
            self._rows[choice] = arrays[-1][-1]

    def of(self, choice: int) -> list[float]:
        """That of one choice; empty when nothing of it was computed."""
        row = self._rows[choice]
        return [] if row is None else row.tolist()

    def data(self, write: Callable[[int, list[float]], bytes]) -> bytes:
        """The chunks that ``write`` makes of those there are."""
        rows = enumerate(self._rows)
        return b"".join(write(i, row.tolist()) for i, row in rows if row is not None)


class UsageCount:
    """Token counts of one HTTP request: a prompt counts once, not once per choice.

    Args:
        prompt_lens: tokens of the prompt of each choice, of all prompts together.
        n: choices per prompt.
        with_cached: tell how many prompt tokens came from the prefix cache.
        with_reasoning: tell how many output tokens were reasoning, in OpenAI's place too.
        is_continuous: every chunk of a stream tells the counts so far.
    """

    def __init__(
        self,
        prompt_lens: Sequence[int],
        n: int,
        *,
        with_cached: bool,
        with_reasoning: bool = False,
        is_continuous: bool = False,
    ) -> None:
        self._usages = [Usage(prompt_len, 0, 0) for prompt_len in prompt_lens]
        self._reasoning = [0] * len(prompt_lens)
        self._n = n
        self._with_cached = with_cached
        self._with_reasoning = with_reasoning
        self._is_continuous = is_continuous

    def update(self, choice: int, usage: Usage, reasoning_tokens: int = 0) -> None:
        """Keep the latest counts of a choice."""
        self._usages[choice] = usage
        self._reasoning[choice] = reasoning_tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return sum(usage.cached_tokens for usage in self._usages[:: self._n])

    def as_dict(self) -> JsonObject:
        """The ``usage`` object."""
        prompt = sum(usage.prompt_tokens for usage in self._usages[:: self._n])
        completion = sum(usage.completion_tokens for usage in self._usages)
        reasoning = sum(self._reasoning)
        cached = {"cached_tokens": self.cached_tokens} if self._with_cached else None
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": cached,
            "reasoning_tokens": reasoning,
            "completion_tokens_details": (
                {"reasoning_tokens": reasoning} if self._with_reasoning else None
            ),
        }

    def member(self) -> bytes:
        """The counts so far as a further member of a chunk; empty unless they are continuous."""
        return b',"usage":%b' % orjson.dumps(self.as_dict()) if self._is_continuous else b""

    def sglext(self) -> JsonObject:
        """SGLang's extension: where the cached tokens came from; there is no host tier."""
        return {"cached_tokens_details": {"device": self.cached_tokens, "host": 0}}


def chat_logprobs(logprobs: Sequence[TokenLogprob], texts: TokenTexts) -> JsonObject:
    """Logprobs as /v1/chat/completions writes them.

    The bytes are the token's own: where a character takes several tokens, only they tell it.
    """

    def entry(token_id: int, logprob: float | None) -> JsonObject:
        return {
            "token": texts.decode_token(token_id),
            "bytes": list(texts.token_bytes(token_id)),
            "logprob": logprob,
        }

    return {
        "content": [
            entry(item.token_id, item.logprob)
            | {"top_logprobs": [entry(token_id, logprob) for token_id, logprob in item.top]}
            for item in logprobs
        ]
    }


def completion_logprobs(logprobs: Sequence[TokenLogprob], texts: TokenTexts) -> JsonObject:
    """Logprobs as /v1/completions writes them; text_offset is not computed, as in SGLang.

    The first token of a prompt has neither a logprob nor top logprobs: both are null.  Of top
    tokens that are written alike, such as parts of characters, the likeliest is told.
    """
    decode = texts.decode_token
    return {
        "text_offset": [-1] * len(logprobs),
        "token_logprobs": [item.logprob for item in logprobs],
        "tokens": [decode(item.token_id) for item in logprobs],
        "top_logprobs": [
            None if item.logprob is None else _by_text(item.top, decode) for item in logprobs
        ],
    }


def _by_text(top: Sequence[tuple[int, float]], decode: Callable[[int], str]) -> dict[str, float]:
    logprobs: dict[str, float] = {}
    for token_id, logprob in top:  # the likeliest first
        logprobs.setdefault(decode(token_id), logprob)
    return logprobs


def call_delta(delta: ToolCallDelta) -> JsonObject:
    """A piece of a tool call as a streamed chunk has it."""
    return {
        "index": delta.index,
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }


class ChunkFormat:
    """Streamed chunks of one HTTP request, as whole events.

    ``extras`` are further members of a choice, ``usage`` a further member of the chunk; both are
    bytes that start with a comma, or empty.
    """

    def __init__(self, rid: str, kind: str, created: int, model: str, num_choices: int) -> None:
        top = {"id": rid, "object": kind, "created": created, "model": model}
        self._top = b"data: %b," % orjson.dumps(top)[:-1]
        self._heads = [b'%b"choices":[{"index":%d,' % (self._top, i) for i in range(num_choices)]
        self._content_heads = [b'%b"delta":{"content":' % head for head in self._heads]
        self._text_heads = [b'%b"text":' % head for head in self._heads]

    def role(self, choice: int, extras: bytes, usage: bytes) -> bytes:
        """The first chunk of a chat choice."""
        delta = b'"role":"assistant","content":"","reasoning_content":null'
        return self._delta(choice, delta, b"null", extras, usage)

    def content(
        self, choice: int, text: str, logprobs: JsonObject | None, extras: bytes, usage: bytes
    ) -> bytes:
        """New text of a chat choice."""
        delta = b'"content":%b,"reasoning_content":null' % orjson.dumps(text)
        return self._delta(choice, delta, _dumps(logprobs), extras, usage)

    def bare_content(self, choice: int, text: str) -> bytes:
        """``content`` with nothing beside it: what nearly all chunks are."""
        return self._content_heads[choice] + orjson.dumps(text) + _CONTENT_TAIL

    def reasoning(
        self, choice: int, text: str, logprobs: JsonObject | None, extras: bytes, usage: bytes
    ) -> bytes:
        """New reasoning of a chat choice."""
        delta = b'"reasoning_content":%b' % orjson.dumps(text)
        return self._delta(choice, delta, _dumps(logprobs), extras, usage)

    def call(
        self, choice: int, call: ToolCallDelta, logprobs: JsonObject | None, extras: bytes,
        usage: bytes,
    ) -> bytes:  # fmt: skip
        """A piece of a tool call of a chat choice."""
        calls = orjson.dumps([call_delta(call)])
        delta = b'"tool_calls":%b,"reasoning_content":null' % calls
        return self._delta(choice, delta, _dumps(logprobs), extras, usage)

    def _delta(
        self, choice: int, delta: bytes, logprobs: bytes, extras: bytes, usage: bytes
    ) -> bytes:
        return b'%b"delta":{%b},"logprobs":%b,%b%b}]%b}\n\n' % (
            self._heads[choice], delta, logprobs, _OPEN, extras, usage,
        )  # fmt: skip

    def chat_finish(
        self, choice: int, finish: str, matched: int | str | None, usage: bytes
    ) -> bytes:
        """The last chunk of a chat choice."""
        return b'%b"delta":{"reasoning_content":null},"logprobs":null,%b}]%b}\n\n' % (
            self._heads[choice],
            _finish_members(finish, matched),
            usage,
        )

    def text(
        self, choice: int, text: str, logprobs: JsonObject | None,
        finish: FinishReason | None, extras: bytes, usage: bytes,
    ) -> bytes:  # fmt: skip
        """New text of a completion choice; ``finish`` rides on the last one."""
        return b'%b"text":%b,"logprobs":%b,%b%b}]%b}\n\n' % (
            self._heads[choice],
            orjson.dumps(text),
            _dumps(logprobs),
            _OPEN if finish is None else _finish_members(finish.type, finish.matched),
            extras,
            usage,
        )

    def bare_text(self, choice: int, text: str) -> bytes:
        """``text`` with nothing beside it."""
        return self._text_heads[choice] + orjson.dumps(text) + _TEXT_TAIL

    def chat_hidden_states(self, choice: int, states: list[float]) -> bytes:
        """A chunk of its own, after the last one of all chat choices."""
        return self._delta(choice, b'"hidden_states":%b' % orjson.dumps(states), b"null", b"", b"")

    def text_hidden_states(self, choice: int, states: list[float]) -> bytes:
        """Likewise of completion choices."""
        return self.text(choice, "", None, None, b',"hidden_states":%b' % orjson.dumps(states), b"")

    def without_choices(self, name: str, value: JsonObject) -> bytes:
        """A chunk that tells of the whole request: its ``usage``, ``sglext``."""
        return b'%b"choices":[],"%b":%b}\n\n' % (self._top, name.encode(), orjson.dumps(value))


def ids_member(name: str, token_ids: Sequence[int]) -> bytes:
    """Token ids as a further member of a choice."""
    return b',"%b":%b' % (name.encode(), orjson.dumps(token_ids))


def _finish_members(finish: str, matched: int | str | None) -> bytes:
    return b'"finish_reason":%b,"matched_stop":%b' % (orjson.dumps(finish), orjson.dumps(matched))


def _dumps(value: JsonObject | None) -> bytes:
    return b"null" if value is None else orjson.dumps(value)


def error_event(error: JaxserveError) -> bytes:
    """What ends a stream when the engine gives the sequence up."""
    return event({"error": error_object(error, Dialect.OPENAI)})
