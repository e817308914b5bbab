"""The answers of the OpenAI endpoints: objects of whole answers, bytes of streamed chunks.

A streamed chunk differs from the one before it in a few bytes.  ``ChunkFormat`` builds the rest
once per request, so that a token costs one small ``orjson.dumps`` and one join.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from jaxserve.request import FinishReason, TextChunk, TokenLogprob, Usage

DecodeToken = Callable[[int], str]
JsonObject = dict[str, object]


@dataclass(slots=True)
class Choice:
    """What one choice has produced so far."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: FinishReason | None = None

    def add(self, chunk: TextChunk) -> None:
        """Append one increment."""
        self.text += chunk.text
        self.logprobs += chunk.logprobs
        self.finish = chunk.finish


class UsageCount:
    """Token counts of one HTTP request: a prompt counts once, not once per choice."""

    def __init__(self, num_choices: int, n: int, *, with_cached: bool) -> None:
        self._usages = [Usage(0, 0, 0)] * num_choices
        self._n = n
        self._with_cached = with_cached

    def update(self, index: int, usage: Usage) -> None:
        """Keep the latest counts of choice ``index``."""
        self._usages[index] = usage

    def as_dict(self) -> JsonObject:
        """The ``usage`` object."""
        firsts = self._usages[:: self._n]
        prompt = sum(usage.prompt_tokens for usage in firsts)
        completion = sum(usage.completion_tokens for usage in self._usages)
        cached = {"cached_tokens": sum(usage.cached_tokens for usage in firsts)}
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": cached if self._with_cached else None,
            "reasoning_tokens": 0,
            "completion_tokens_details": None,
        }


def finish_fields(finish: FinishReason | None) -> JsonObject:
    """``finish_reason`` and ``matched_stop`` of one choice."""
    if finish is None:
        return {"finish_reason": None, "matched_stop": None}
    return {"finish_reason": finish.type, "matched_stop": finish.matched}


def chat_logprobs(logprobs: Sequence[TokenLogprob], decode: DecodeToken) -> JsonObject:
    """Logprobs as /v1/chat/completions writes them."""

    def entry(token_id: int, logprob: float) -> JsonObject:
        token = decode(token_id)
        return {"token": token, "bytes": list(token.encode()), "logprob": logprob}

    return {
        "content": [
            entry(item.token_id, item.logprob)
            | {"top_logprobs": [entry(token_id, logprob) for token_id, logprob in item.top]}
            for item in logprobs
        ]
    }


def completion_logprobs(logprobs: Sequence[TokenLogprob], decode: DecodeToken) -> JsonObject:
    """Logprobs as /v1/completions writes them; text_offset is not computed, as in SGLang."""
    return {
        "text_offset": [-1] * len(logprobs),
        "token_logprobs": [item.logprob for item in logprobs],
        "tokens": [decode(item.token_id) for item in logprobs],
        "top_logprobs": [{decode(i): logprob for i, logprob in item.top} for item in logprobs],
    }


class ChunkFormat:
    """Streamed chunks of one HTTP request, as whole events."""

    def __init__(self, rid: str, kind: str, created: int, model: str, num_choices: int) -> None:
        top = {"id": rid, "object": kind, "created": created, "model": model}
        self._top = b"data: %b," % orjson.dumps(top)[:-1]
        self._heads = [b'%b"choices":[{"index":%d,' % (self._top, i) for i in range(num_choices)]

    def role(self, index: int) -> bytes:
        """The first chunk of a chat choice."""
        delta = b'"delta":{"role":"assistant","content":"","reasoning_content":null},'
        return b'%b%b"logprobs":null,"finish_reason":null,"matched_stop":null}]}\n\n' % (
            self._heads[index],
            delta,
        )

    def content(self, index: int, text: str, logprobs: JsonObject | None, usage: bytes) -> bytes:
        """New text of a chat choice."""
        return (
            b'%b"delta":{"content":%b,"reasoning_content":null},"logprobs":%b,'
            b'"finish_reason":null,"matched_stop":null}]%b}\n\n'
        ) % (self._heads[index], orjson.dumps(text), _dumps(logprobs), usage)

    def chat_finish(self, index: int, finish: FinishReason, usage: bytes) -> bytes:
        """The last chunk of a chat choice."""
        return b'%b"delta":{"reasoning_content":null},"logprobs":null,%b}]%b}\n\n' % (
            self._heads[index],
            orjson.dumps(finish_fields(finish))[1:-1],
            usage,
        )

    def text(
        self, index: int, text: str, logprobs: JsonObject | None,
        finish: FinishReason | None, usage: bytes,
    ) -> bytes:  # fmt: skip
        """New text of a completion choice; ``finish`` rides on the last one."""
        return b'%b"text":%b,"logprobs":%b,%b}]%b}\n\n' % (
            self._heads[index],
            orjson.dumps(text),
            _dumps(logprobs),
            orjson.dumps(finish_fields(finish))[1:-1],
            usage,
        )

    def usage(self, usage: JsonObject) -> bytes:
        """The chunk without choices that ends a stream asked for its usage."""
        return b'%b"choices":[],"usage":%b}\n\n' % (self._top, orjson.dumps(usage))


def usage_member(usage: JsonObject) -> bytes:
    """``usage`` as a further member of a chunk."""
    return b',"usage":%b' % orjson.dumps(usage)


def _dumps(value: JsonObject | None) -> bytes:
    return b"null" if value is None else orjson.dumps(value)
