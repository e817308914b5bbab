"""The client side of a serving benchmark: bodies, streams, and one result per request.

Client and server often share a few cores, so a streamed chunk costs next to nothing here: raw
bytes are kept with the time of their arrival, events are counted by their separator, and JSON is
parsed once per request, after its last byte.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from workloads import Conversation, Ids, Prompt

NATIVE = ("jaxserve", "sglang", "sglang-native")
COMPLETIONS = ("sglang-oai", "vllm")
CHAT = ("sglang-oai-chat", "vllm-chat")
BACKENDS = (*NATIVE, *COMPLETIONS, *CHAT)
EVENT_END = b"\n\n"
DATA = b"data:"
DONE = b"[DONE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which server is asked, over which API, and what every request to it says."""

    base_url: str
    backend: str
    model: str = "default"
    is_stream: bool = True
    ignore_eos: bool = True
    temperature: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    extra_body: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        if self.backend in NATIVE:
            return f"{self.base_url}/generate"
        path = "chat/completions" if self.backend in CHAT else "completions"
        return f"{self.base_url}/v1/{path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestResult:
    """What one request got.  Times in seconds, counts in tokens."""

    latency_s: float = 0.0
    ttft_s: float = 0.0
    itl_s: tuple[float, ...] = ()  # gaps between events that carry tokens
    prompt_len: int = 0
    output_len: int = 0
    num_cached: int | None = None  # None: the server does not say
    text: str = ""
    output_ids: Ids = ()
    error: str = ""

    @property
    def tpot_s(self) -> float | None:
        """Mean time of a token after the first; None where there is none."""
        if self.output_len < 2:
            return None
        return (self.latency_s - self.ttft_s) / (self.output_len - 1)


def request_body(target: Target, prompt: Prompt | list[Any], output_len: int) -> dict[str, Any]:
    """Return the JSON body; ``prompt`` is ids, text, or the messages of a chat."""
    if target.backend in NATIVE:
        return {
            ("text" if isinstance(prompt, str) else "input_ids"): prompt,
            "sampling_params": {
                "temperature": target.temperature,
                "max_new_tokens": output_len,
                "ignore_eos": target.ignore_eos,
            },
            "stream": target.is_stream,
        } | target.extra_body
    body = {
        "model": target.model,
        ("messages" if target.backend in CHAT else "prompt"): prompt,
        "temperature": target.temperature,
        "max_tokens": output_len,
        "ignore_eos": target.ignore_eos,
        "stream": target.is_stream,
    }
    if target.is_stream:
        body["stream_options"] = {"include_usage": True}
    return body | target.extra_body


async def send(
    session: aiohttp.ClientSession, target: Target, prompt: Prompt | list[Any], output_len: int
) -> RequestResult:
    """Send one request and read its answer to the end.  A failure is a result with ``error``."""
    body = json.dumps(request_body(target, prompt, output_len)).encode()
    headers = {"Content-Type": "application/json"} | target.headers
    chunks: list[bytes] = []
    stamps: list[float] = []
    start = time.perf_counter()
    try:
        async with session.post(target.url, data=body, headers=headers) as response:
            async for chunk in response.content.iter_any():
                chunks.append(chunk)
                stamps.append(time.perf_counter())
            status = response.status
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return RequestResult(error=f"{type(error).__name__}: {error}")
    latency = (stamps[-1] if stamps else time.perf_counter()) - start
    if status != 200:
        return RequestResult(
            latency_s=latency, error=f"HTTP {status}: {b''.join(chunks).decode(errors='replace')}"
        )
    if target.is_stream:
        return _streamed_result(target, chunks, [stamp - start for stamp in stamps])
    return _answer(target, [json.loads(b"".join(chunks))], latency_s=latency, ttft_s=latency)


def event_times(chunks: Sequence[bytes], times: Sequence[float]) -> list[float]:
    """Return when each event was complete; chunks may split or join events anywhere."""
    arrived: list[float] = []
    before = b""
    for chunk, moment in zip(chunks, times, strict=True):
        # a newline inside JSON is escaped, so the separator is nowhere else
        count = (before + chunk).count(EVENT_END)
        arrived.extend([moment] * count)
        before = b"\n" if chunk.endswith(b"\n") and not chunk.endswith(EVENT_END) else b""
    return arrived


def _streamed_result(
    target: Target, chunks: Sequence[bytes], times: Sequence[float]
) -> RequestResult:
    raw = [line for line in b"".join(chunks).split(EVENT_END) if line]
    arrived = event_times(chunks, times)
    if len(raw) != len(arrived):
        return RequestResult(error="the stream ended inside an event")
    if not raw or raw[-1].removeprefix(DATA).strip() != DONE:
        return RequestResult(error="the stream ended without data: [DONE]")
    raw.pop()
    if target.backend in NATIVE:  # cumulative: the last event says everything
        events = [_parse(line) for line in raw[-1:]]
        carrying = arrived[:-1]
    else:
        events = [_parse(line) for line in raw]
        pairs = zip(events, arrived[:-1], strict=True)
        carrying = [moment for event, moment in pairs if _carries_token(event)]
    if not carrying:
        return _answer(target, events)
    gaps = tuple(late - early for early, late in zip(carrying, carrying[1:], strict=False))
    return _answer(target, events, latency_s=carrying[-1], ttft_s=carrying[0], itl_s=gaps)


def _parse(line: bytes) -> dict[str, Any]:
    value = json.loads(line.removeprefix(DATA))
    return value if isinstance(value, dict) else {"error": f"not an object: {value}"}


def _carries_token(event: dict[str, Any]) -> bool:
    """Not the usage at the end, nor the event that only opens an assistant's message."""
    if not event.get("choices"):
        return False
    choice = event["choices"][0]
    delta = choice.get("delta", {})
    is_opening = "role" in delta and not delta.get("content") and not choice.get("finish_reason")
    return not is_opening


def _answer(target: Target, events: Sequence[dict[str, Any]], **times: Any) -> RequestResult:
    for event in events:
        if "error" in event:
            return RequestResult(error=json.dumps(event["error"]))
    if target.backend in NATIVE:
        return _native_answer(events, times)
    return _openai_answer(events, times)


def _native_answer(events: Sequence[dict[str, Any]], times: dict[str, Any]) -> RequestResult:
    last = events[-1] if events else {}
    meta = last.get("meta_info", {})
    finish = meta.get("finish_reason") or {}
    if finish.get("type") not in ("stop", "length"):
        return RequestResult(error=f"finish_reason is {json.dumps(finish)}")
    return RequestResult(
        **times,
        prompt_len=meta["prompt_tokens"],
        output_len=meta["completion_tokens"],
        num_cached=meta.get("cached_tokens"),
        text=last.get("text", ""),
        output_ids=tuple(last.get("output_ids", ())),
    )


def _openai_answer(events: Sequence[dict[str, Any]], times: dict[str, Any]) -> RequestResult:
    usage: dict[str, Any] = {}
    pieces: list[str] = []
    for event in events:
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            message = choice.get("delta") or choice.get("message") or {}
            pieces.append(choice.get("text") or message.get("content") or "")
    if not usage:
        return RequestResult(error="the answer has no usage, so its tokens cannot be counted")
    details = usage.get("prompt_tokens_details") or {}
    return RequestResult(
        **times,
        prompt_len=usage["prompt_tokens"],
        output_len=usage["completion_tokens"],
        num_cached=details.get("cached_tokens"),
        text="".join(pieces),
    )


async def converse(
    session: aiohttp.ClientSession, target: Target, conversation: Conversation
) -> list[RequestResult]:
    """Send the turns one after another, each behind all that was said; stop at an error."""
    results: list[RequestResult] = []
    history: Any = [] if target.backend in CHAT else None
    for turn in conversation.turns:
        prompt = turn.full_prompt
        if target.backend in CHAT:
            prompt = [*history, {"role": "user", "content": prompt}]
        elif history is not None:
            prompt = history + prompt
        result = await send(session, target, prompt, turn.output_len)
        results.append(result)
        if result.error:
            break
        if target.backend in CHAT:
            history = [*prompt, {"role": "assistant", "content": result.text}]
        else:
            history = prompt + (result.text if isinstance(prompt, str) else result.output_ids)
    return results


async def run_workload(
    target: Target,
    workload: Sequence[Conversation],
    arrivals: Sequence[float],
    max_concurrency: int | None = None,
) -> tuple[list[RequestResult], float]:
    """Send every conversation at its time; return the results and the seconds all of it took.

    With ``max_concurrency`` a conversation waits, on the client, until fewer are open; its times
    count from when it is sent.
    """
    gate = asyncio.Semaphore(max_concurrency or max(1, len(workload)))
    timeout = aiohttp.ClientTimeout(total=6 * 3600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=connector, read_bufsize=2**20, auto_decompress=False
    ) as session:

        async def one(conversation: Conversation, due: float) -> list[RequestResult]:
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            async with gate:
                return await converse(session, target, conversation)

        start = time.perf_counter()
        pairs = zip(workload, arrivals, strict=True)
        nested = await asyncio.gather(*(one(talk, due) for talk, due in pairs))
        duration = time.perf_counter() - start
    return [result for results in nested for result in results], duration


def run(
    target: Target,
    workload: Sequence[Conversation],
    arrivals: Sequence[float] | None = None,
    max_concurrency: int | None = None,
) -> tuple[list[RequestResult], float]:
    """Blocking form of ``run_workload``; without ``arrivals`` everything arrives at once."""
    times = arrivals if arrivals is not None else [0.0] * len(workload)
    return asyncio.run(run_workload(target, workload, times, max_concurrency))


def shortened(workload: Sequence[Conversation], output_len: int) -> list[Conversation]:
    """Return the first turn of each conversation with answers of at most ``output_len``."""
    return [
        Conversation((replace(turn, output_len=min(turn.output_len, output_len)),))
        for turn in (conversation.turns[0] for conversation in workload)
    ]
