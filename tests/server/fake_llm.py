"""A deliberate fake of ``jaxserve.llm.LLM``: the words of a poem, no model, full control."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxserve.config import EngineConfig
from jaxserve.errors import InvalidRequestError, JaxserveError
from jaxserve.metrics import EngineStats, Metrics
from jaxserve.request import (
    FinishReason,
    InputEmbeds,
    SamplingParams,
    SessionParams,
    TextChunk,
    TokenLogprob,
    Usage,
)

WORDS = (" Paris", " is", " the", " capital", " of", " France", ' "é😀"', "\n")
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
EOS = 2
NUM_TO_EOS = 12


@dataclass(frozen=True, kw_only=True)
class FakeInfo:
    model_path: str = "fake/model"
    tokenizer_path: str = "fake/tokenizer"
    is_generation: bool = True
    context_len: int = 512
    max_total_num_tokens: int = 4096
    max_req_input_len: int = 511
    vocab_size: int = 1000
    eos_token_ids: tuple[int, ...] = (EOS,)
    model_type: str = "llama"
    architectures: tuple[str, ...] = ("LlamaForCausalLM",)
    weight_version: str = "v7"
    load_format: str = "dummy"
    chat_template: str | None = None
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    generation_defaults: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Submission:
    prompt: str | tuple[int, ...] | InputEmbeds
    params: SamplingParams
    rid: str | None
    n: int
    priority: int
    clamps: bool | None
    cache_namespace: str = ""
    session: SessionParams | None = None


class FakeLLM:
    """Streams ``WORDS`` over and over.

    ``wait`` is awaited before each token; ``refuse`` is raised by submit; ``abort_at`` maps a
    token's number to the FinishReason that ends every stream there.
    """

    def __init__(self, **info: object) -> None:
        self.info = FakeInfo(**info)
        self.config = EngineConfig(max_running_requests=64, chunked_prefill_size=512)
        self.metrics = Metrics("fake")
        self.is_healthy = True
        self.can_flush = True
        self.refuse: JaxserveError | None = None
        self.abort_at: dict[int, FinishReason] = {}
        self.wait: Callable[[], object] = lambda: asyncio.sleep(0)
        self.submitted: list[Submission] = []
        self.messages: list[dict[str, object]] = []
        self.template_kwargs: dict[str, object] | None = None
        self.open: dict[str, FakeStream] = {}
        self.closed: list[str] = []  # rids that were closed before they finished
        self.has_shut_down = False
        self.tools: list[dict[str, object]] | None = None
        self.adds_generation_prompt: bool | None = None
        self.continues: bool | None = None
        self.was_prompt: bool | None = None
        self.words: tuple[str, ...] = WORDS  # what is generated, a token each, over and over
        self.special_tokens = {"<think>": 900, "</think>": 901}  # see token_id
        self.sample_logprobs: dict[int, float] = {}  # of each token of the n-th sample
        self.parts: dict[int, bytes] = {}  # tokens that are parts of characters
        self.is_paused = False
        self.paused_in: list[str] = []  # modes
        self.sessions: dict[str, tuple[int, float | None]] = {}  # id -> capacity, timeout_s
        self.streaming_sessions: set[str] = set()
        self.profiles: list[object] = []
        self._serial = itertools.count()

    @property
    def num_open(self) -> int:
        return len(self.open)

    async def encode(
        self, text: str, *, add_special_tokens: bool = True, is_prompt: bool = True
    ) -> tuple[int, ...]:
        """One token per word, and a BOS (1)."""
        self.was_prompt = is_prompt
        words = tuple(range(10, 10 + len(text.split())))
        return (1, *words) if add_special_tokens else words

    async def render_chat(self, messages, *, tools=None, chat_template_kwargs=None,
                          continue_final_message=False, add_generation_prompt=True,
                          is_prompt=True):  # fmt: skip
        self.was_prompt = is_prompt
        self.messages = messages
        self.tools = tools
        self.template_kwargs = chat_template_kwargs
        self.adds_generation_prompt = add_generation_prompt
        self.continues = continue_final_message
        return tuple(range(10, 10 + len(messages)))

    def decode_token(self, token_id: int) -> str:
        return self.words[token_id % len(self.words)]

    def token_bytes(self, token_id: int) -> bytes:
        return self.parts.get(token_id) or self.decode_token(token_id).encode()

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        kept = [i for i in token_ids if not (skip_special_tokens and i == 1)]
        return "".join(map(self.decode_token, kept))

    def token_id(self, text: str) -> int | None:
        return self.special_tokens.get(text)

    async def submit(
        self, prompt: str | Sequence[int] | InputEmbeds, params: SamplingParams, *,
        rid: str | None = None,
        n: int = 1, priority: int = 0, clamp_max_new_tokens: bool | None = None,
        cache_namespace: str = "", session: SessionParams | None = None,
    ) -> list["FakeStream"]:  # fmt: skip
        if self.refuse is not None:
            raise self.refuse
        if isinstance(prompt, InputEmbeds):
            prompt_ids = (0,) * len(prompt.rows)
        else:
            prompt_ids = tuple(range(len(prompt.split()))) if isinstance(prompt, str) else prompt
        if not prompt_ids:
            raise InvalidRequestError("input_ids cannot be empty.")
        base = rid or f"fake{next(self._serial)}"
        self.submitted.append(
            Submission(
                prompt, params, rid, n, priority, clamp_max_new_tokens, cache_namespace, session
            )
        )
        rids = [base] if n == 1 else [f"{base}_{i}" for i in range(n)]
        for taken in self.open.keys() & set(rids):
            raise InvalidRequestError(f"Duplicate request ID detected: {taken}")
        streams = [FakeStream(self, each, i, prompt_ids, params) for i, each in enumerate(rids)]
        self.open |= {stream.rid: stream for stream in streams}
        return streams

    def abort(self, rid_prefix: str) -> None:
        for rid, stream in self.open.items():
            if rid.startswith(rid_prefix):
                stream.is_aborted = True

    def abort_all(self) -> None:
        self.abort("")

    async def flush_cache(self) -> bool:
        return self.can_flush and not self.open

    async def pause(self, mode: str) -> int:
        self.is_paused = True
        self.paused_in.append(mode)
        if mode == "abort":
            self.abort_all()
        return self.num_open

    async def resume(self) -> None:
        self.is_paused = False

    def open_session(
        self, capacity: int, *, session_id: str | None = None, timeout_s: float | None = None,
        is_streaming: bool = False,
    ) -> str:  # fmt: skip
        session_id = session_id or f"session{len(self.sessions)}"
        if session_id in self.sessions:
            raise InvalidRequestError(f"Session {session_id!r} is open already.")
        self.sessions[session_id] = (capacity, timeout_s)
        self.streaming_sessions |= {session_id} if is_streaming else set()
        return session_id

    def close_session(self, session_id: str) -> None:
        self.sessions.pop(session_id, None)

    async def start_profile(self, output_dir=None, *, num_steps=None, start_step=None) -> None:
        self.profiles.append((output_dir, num_steps, start_step))

    async def stop_profile(self) -> None:
        self.profiles.append("stop")

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=self.num_open, max_total_num_tokens=self.info.max_total_num_tokens,
            num_used_tokens=16 * self.num_open, page_size=16, gen_throughput=12.5,
        )  # fmt: skip

    def shutdown(self) -> None:
        self.has_shut_down = True


class FakeStream:
    def __init__(
        self, llm: FakeLLM, rid: str, index: int, prompt_ids: tuple[int, ...],
        params: SamplingParams,
    ) -> None:  # fmt: skip
        self.rid = rid
        self.index = index
        self.prompt_ids = prompt_ids
        self.params = params
        self.arrival_s = time.perf_counter()
        self.is_aborted = False
        self._llm = llm
        self._num_tokens = 0
        self._has_sent_prompt_logprobs = False
        self._num_hidden = 0

    async def __aiter__(self) -> AsyncIterator[TextChunk]:
        while True:
            await self._llm.wait()
            chunk = self._next()
            if chunk.finish is not None:
                self._llm.open.pop(self.rid, None)
            yield chunk
            if chunk.finish is not None:
                return

    async def result(self) -> TextChunk:
        chunks = [chunk async for chunk in self]
        return TextChunk(
            rid=self.rid, index=self.index, text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(i for chunk in chunks for i in chunk.token_ids),
            logprobs=tuple(item for chunk in chunks for item in chunk.logprobs),
            prompt_logprobs=tuple(item for chunk in chunks for item in chunk.prompt_logprobs),
            finish=chunks[-1].finish, usage=chunks[-1].usage, queue_s=chunks[-1].queue_s,
            first_token_s=chunks[-1].first_token_s,
            hidden_states=tuple(item for chunk in chunks for item in chunk.hidden_states),
        )  # fmt: skip

    def close(self) -> None:
        if self._llm.open.pop(self.rid, None) is not None:
            self._llm.closed.append(self.rid)

    def _next(self) -> TextChunk:
        number = self._num_tokens
        if self.is_aborted:
            return self._chunk("", (), FinishReason("abort", message="Aborted"))
        if number in self._llm.abort_at:
            return self._chunk("", (), self._llm.abort_at[number])
        limit = self.params.max_new_tokens
        if limit == 0:
            return self._chunk("", (), FinishReason("length"))
        self._num_tokens += 1
        if number == NUM_TO_EOS and not self.params.ignore_eos:
            return self._chunk("", (EOS,), FinishReason("stop", matched=EOS))
        finish = FinishReason("length") if self._num_tokens == limit else None
        token_id = number % len(self._llm.words)
        return self._chunk(self._llm.words[token_id], (token_id,), finish)

    def _chunk(
        self, text: str, token_ids: tuple[int, ...], finish: FinishReason | None
    ) -> TextChunk:
        logprobs = ()
        if self.params.num_logprobs is not None:
            own = self._llm.sample_logprobs.get(self.index, math.log(0.5))
            logprobs = tuple(self._logprob(i, own) for i in token_ids)
        return TextChunk(
            rid=self.rid, index=self.index, text=text, token_ids=token_ids, logprobs=logprobs,
            prompt_logprobs=self._prompt_logprobs(), finish=finish, queue_s=1e-6,
            first_token_s=2e-6, usage=Usage(len(self.prompt_ids), self._num_tokens, 1),
            hidden_states=self._hidden_states(),
        )  # fmt: skip

    def _hidden_states(self) -> tuple[np.ndarray, ...]:
        """[p, -p] at position p, up to the one that the newest token is made of."""
        if self.params.hidden_states is None:
            return ()
        stop = len(self.prompt_ids) + max(0, self._num_tokens - 1)
        start = stop - 1 if self.params.hidden_states == "last" else self._num_hidden
        self._num_hidden = stop
        positions = np.arange(start, stop, dtype=np.float32)
        return (np.stack([positions, -positions], axis=1),) if len(positions) else ()

    def _logprob(self, token_id: int, logprob: float | None) -> TokenLogprob:
        if logprob is None:
            return TokenLogprob(token_id, None)
        top = tuple((i, -float(i)) for i in range(self.params.num_logprobs or 0))
        of_ids = tuple((i, -i / 10) for i in self.params.logprob_token_ids)
        return TokenLogprob(token_id, logprob, top, of_ids)

    def _prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Of all prompt tokens from the start that was asked for, with the first chunk."""
        start = self.params.prompt_logprobs_start
        if start is None or self._has_sent_prompt_logprobs:
            return ()
        self._has_sent_prompt_logprobs = True
        return tuple(
            self._logprob(token_id, -float(position) if position else None)
            for position, token_id in enumerate(self.prompt_ids)
            if position >= start
        )
