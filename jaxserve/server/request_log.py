"""``--log-requests``: a line when a sequence comes and one when it ends.

What is written comes from the sequence, never from the HTTP request: no header, no key and no
field that merely passed by can reach the log.  Nothing of this runs while the log is off.
"""

import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import orjson

from jaxserve.config import ServerConfig
from jaxserve.request import FinishReason, InputEmbeds, SamplingParams, TextChunk
from jaxserve.server.service import TextService, TextStream

logger = logging.getLogger("jaxserve.requests")

SHOWN_CHARS = 2048  # of a text at level 2
WITH_SAMPLING, WITH_TEXT, WITH_ALL_TEXT = 1, 2, 3


@dataclass(slots=True)
class RequestLog:
    """How much is logged; POST /configure_logging changes it while the server runs."""

    is_on: bool
    level: int
    format: str

    @classmethod
    def of(cls, config: ServerConfig) -> "RequestLog":
        """What the flags ask for."""
        return cls(config.log_requests, config.log_requests_level, config.log_requests_format)

    def received(
        self, rid: str, prompt: str | Sequence[int] | InputEmbeds, params: SamplingParams
    ) -> None:
        """A sequence was accepted."""
        fields: dict[str, object] = {"rid": rid}
        if self.level >= WITH_SAMPLING:
            fields["sampling_params"] = _without_defaults(params)
        if isinstance(prompt, InputEmbeds):
            fields["num_input_embeds"] = len(prompt.rows)
        elif self.level >= WITH_TEXT:
            fields["text" if isinstance(prompt, str) else "input_ids"] = self._cut(prompt)
        self._write("Receive", fields)

    def finished(self, chunk: TextChunk, texts: Sequence[str], seconds: float) -> None:
        """It ended, by itself or not."""
        usage, finish = chunk.usage, chunk.finish
        fields: dict[str, object] = {
            "rid": chunk.rid,
            "finish_reason": None if finish is None else finish.type,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
            "e2e_latency": round(seconds, 6),
        }
        if self.level >= WITH_TEXT:
            fields["text"] = self._cut("".join(texts))
        self._write("Finish", fields)

    def _cut(self, value: str | Sequence[int]) -> str | Sequence[int]:
        if self.level >= WITH_ALL_TEXT or len(value) <= SHOWN_CHARS:
            return value
        return f"{value[:SHOWN_CHARS]}… ({len(value)} in all)"

    def _write(self, event: str, fields: dict[str, object]) -> None:
        if self.format == "json":
            line = {"timestamp": time.time(), "event": f"request.{event.lower()}", **fields}
            logger.info("%s", orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS).decode())
        else:
            shown = ", ".join(f"{name}={value!r}" for name, value in fields.items())
            logger.info("%s: %s", event, shown)


def _without_defaults(params: SamplingParams) -> dict[str, object]:
    defaults = asdict(SamplingParams())
    return {name: value for name, value in asdict(params).items() if value != defaults[name]}


class LoggedService:
    """``service``, with every sequence that it is asked for written to ``log``."""

    def __init__(self, service: TextService, log: RequestLog) -> None:
        self._service = service
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    async def submit(
        self, prompt: str | Sequence[int] | InputEmbeds, params: SamplingParams, **options: Any
    ) -> Sequence[TextStream]:
        """As the service's own."""
        streams = await self._service.submit(prompt, params, **options)
        for stream in streams:
            self._log.received(stream.rid, prompt, params)
        return [cast(TextStream, LoggedStream(stream, self._log)) for stream in streams]


def logged(service: TextService, log: RequestLog) -> TextService:
    """``service`` itself while the log is off, so that it costs nothing."""
    return cast(TextService, LoggedService(service, log)) if log.is_on else service


class LoggedStream:
    """``stream``, whose end is written to ``log``."""

    def __init__(self, stream: TextStream, log: RequestLog) -> None:
        self._stream = stream
        self._log = log
        self._texts: list[str] = []
        self._has_ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aiter__(self) -> AsyncIterator[TextChunk]:
        async for chunk in self._stream:
            self._note(chunk)
            yield chunk

    async def result(self) -> TextChunk:
        """As the stream's own."""
        chunk = await self._stream.result()
        self._note(chunk)
        return chunk

    def close(self) -> None:
        """As the stream's own."""
        self._stream.close()
        if not self._has_ended:
            end = FinishReason("abort")
            self._note(TextChunk(rid=self._stream.rid, index=0, text="", token_ids=(), finish=end))

    def _note(self, chunk: TextChunk) -> None:
        self._texts.append(chunk.text)
        if chunk.finish is not None:
            self._has_ended = True
            seconds = time.perf_counter() - self._stream.arrival_s
            self._log.finished(chunk, self._texts, seconds)
