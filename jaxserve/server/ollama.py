"""Ollama's API: /api/chat, /api/generate, and what tells of the model."""

import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime

import orjson
from aiohttp import web

from jaxserve.errors import JaxserveError
from jaxserve.request import TokenLogprob
from jaxserve.server.blocks import Block, BlockReader, Kind, read_blocks
from jaxserve.server.chat_delta import Delta
from jaxserve.server.chat_turn import open_turn
from jaxserve.server.chat_types import ChatBody
from jaxserve.server.http_errors import Dialect, error_object, json_response
from jaxserve.server.json_body import JsonObject, read_object
from jaxserve.server.ollama_types import (
    OllamaChatBody,
    OllamaGenerateBody,
    parse_chat_body,
    parse_generate_body,
)
from jaxserve.server.openai_format import chat_logprobs
from jaxserve.server.sse import send_events
from jaxserve.server.state import STATE, VERSION, OpenStreams, ServerState

Said = Callable[[str, str, list[JsonObject]], JsonObject]  # text, thinking, tool calls
LINES = "application/x-ndjson"


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /api/chat."""
    body = parse_chat_body(await read_object(request))
    if body.is_empty:
        return _loaded(body, _chat_said)
    return await _answer(request, body, body.chat_body(), _chat_said)


async def generate(request: web.Request) -> web.StreamResponse:
    """POST /api/generate."""
    body = parse_generate_body(await read_object(request))
    if body.is_empty:
        return _loaded(body, _generate_said)
    raw_prompt = await request.app[STATE].llm.encode(body.prompt) if body.raw else ()
    return await _answer(request, body, body.chat_body(raw_prompt), _generate_said)


def _chat_said(text: str, thinking: str, calls: list[JsonObject]) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def _generate_said(text: str, thinking: str, calls: list[JsonObject]) -> JsonObject:
    said: JsonObject = {"response": text}
    return said | {"thinking": thinking} if thinking else said


def _loaded(body: OllamaChatBody | OllamaGenerateBody, said: Said) -> web.Response:
    """The answer to a request without a prompt: the model is always loaded."""
    reason = "unload" if body.unloads else "load"
    head = {"model": body.model, "created_at": _now()}
    return json_response(head | said("", "", []) | {"done": True, "done_reason": reason})


async def _answer(
    request: web.Request, body: OllamaChatBody | OllamaGenerateBody, chat: ChatBody, said: Said
) -> web.StreamResponse:
    state = request.app[STATE]
    lines = _Lines(state, body.model, said, with_logprobs=body.logprobs)
    with OpenStreams() as opened:
        turn = await open_turn(state, chat, opened, clamps=True)
        if not body.stream:
            return json_response(lines.whole(await read_blocks(turn)))
        deltas = turn.deltas(state.config.stream_interval)
        async with aclosing(deltas):
            events = lines.stream(await anext(deltas), deltas)
            return await send_events(request, events, _error_line, end=b"", media_type=LINES)


class _Lines:
    """The answer to one request, as one object or as a line per increment."""

    def __init__(self, state: ServerState, model: str, said: Said, *, with_logprobs: bool) -> None:
        self._texts = state.llm if with_logprobs else None
        self._model = model
        self._said = said
        self._start_s = time.perf_counter()
        self._first_s: float | None = None

    def whole(self, reader: BlockReader) -> JsonObject:
        """All of it."""
        texts = {
            kind: "".join(block.text for block in reader.blocks if block.kind is kind)
            for kind in (Kind.TEXT, Kind.REASONING)
        }
        calls = [_call(block) for block in reader.blocks if block.kind is Kind.CALL]
        logprobs = [item for block in reader.blocks for item in block.logprobs]
        return self._line(texts[Kind.TEXT], texts[Kind.REASONING], calls, logprobs) | self._end(
            reader
        )

    async def stream(
        self, first: Delta, deltas: AsyncGenerator[Delta, None]
    ) -> AsyncGenerator[bytes, None]:
        """A line per increment."""
        self._first_s = time.perf_counter()
        reader = BlockReader()
        if data := self._of(reader, first):
            yield data
        async for delta in deltas:
            if data := self._of(reader, delta):
                yield data

    def _of(self, reader: BlockReader, delta: Delta) -> bytes:
        data = b""
        for event in reader.push(delta):
            kind = event.block.kind
            if kind is Kind.CALL and event.type == "close":
                data += _dumps(self._line("", "", [_call(event.block)], ()) | {"done": False})
            elif kind is not Kind.CALL and event.type == "grow":
                texts = (event.text, "") if kind is Kind.TEXT else ("", event.text)
                data += _dumps(self._line(*texts, [], event.logprobs) | {"done": False})
        if delta.finish is not None:
            data += _dumps(self._line("", "", [], ()) | self._end(reader))
        return data

    def _line(
        self, text: str, thinking: str, calls: list[JsonObject], logprobs: Sequence[TokenLogprob]
    ) -> JsonObject:
        line = {"model": self._model, "created_at": _now()} | self._said(text, thinking, calls)
        if self._texts is not None and logprobs:
            line["logprobs"] = chat_logprobs(logprobs, self._texts)["content"]
        return line

    def _end(self, reader: BlockReader) -> JsonObject:
        end_s = time.perf_counter()
        first_s = end_s if self._first_s is None else self._first_s
        finish, usage = reader.finish, reader.usage
        reason = "abort" if finish is None else finish.type
        return {
            "done": True,
            "done_reason": "stop" if reason == "tool_calls" else reason,
            "total_duration": _nanoseconds(end_s - self._start_s),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first_s - self._start_s),
            "eval_count": usage.completion_tokens,
            "eval_duration": _nanoseconds(end_s - first_s),
        }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _call(block: Block) -> JsonObject:
    """A call; one that broke off, or whose arguments are no object, has none."""
    try:
        arguments = orjson.loads(block.text)
    except orjson.JSONDecodeError:
        arguments = {}
    if not isinstance(arguments, dict):
        arguments = {}
    return {"function": {"name": block.name, "arguments": arguments}}


def _dumps(line: JsonObject) -> bytes:
    return orjson.dumps(line) + b"\n"


def _error_line(error: JaxserveError) -> bytes:
    return _dumps(error_object(error, Dialect.OLLAMA))


# --- what tells of the model ---

_STARTED = _now()  # the model file's time is not known: it may be many files, or none


async def list_models(request: web.Request) -> web.Response:
    """GET /api/tags: the one model, under its served name."""
    return json_response({"models": [_model_card(request.app[STATE])]})


async def list_running(request: web.Request) -> web.Response:
    """GET /api/ps: as /api/tags; the model never expires."""
    state = request.app[STATE]
    card = _model_card(state) | {
        "size_vram": state.llm.stats().weight_bytes,
        "context_length": state.llm.info.context_len,
        "expires_at": "9999-12-31T23:59:59Z",
    }
    return json_response({"models": [card]})


async def version(request: web.Request) -> web.Response:
    """GET /api/version: jaxserve's."""
    return json_response({"version": VERSION})


async def show(request: web.Request) -> web.Response:
    """POST /api/show: the one model, whatever name is asked for."""
    await read_object(request)
    state = request.app[STATE]
    info = state.llm.info
    capabilities = ["completion"]
    if info.tool_call_parser is not None:
        capabilities.append("tools")
    if info.reasoning_parser is not None:
        capabilities.append("thinking")
    return json_response(
        {
            "license": "",
            "modelfile": f"FROM {info.model_path}\n",
            "parameters": "\n".join(f"{k} {v}" for k, v in info.generation_defaults.items()),
            "template": info.chat_template or "",
            "modified_at": _STARTED,
            "details": _details(state),
            "model_info": {
                "general.architecture": info.model_type,
                "general.basename": state.served_model_name,
                f"{info.model_type}.context_length": info.context_len,
            },
            "capabilities": capabilities,
        }
    )


def _model_card(state: ServerState) -> JsonObject:
    name = state.served_model_name
    return {
        "name": name,
        "model": name,
        "modified_at": _STARTED,
        "size": state.llm.stats().weight_bytes,
        "digest": hashlib.sha256(f"{name}\n{state.llm.info.weight_version}".encode()).hexdigest(),
        "details": _details(state),
    }


def _details(state: ServerState) -> JsonObject:
    info = state.llm.info
    return {
        "parent_model": "",
        "format": info.load_format,
        "family": info.model_type,
        "families": [info.model_type],
        "parameter_size": "",
        "quantization_level": "",
    }
