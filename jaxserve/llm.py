"""Text in, text out: the owner of tokenizer and engine.

The asynchronous half (``submit`` and the streams it returns) is what the server uses;
``LLM.generate`` is the blocking façade for scripts and notebooks.
"""

import asyncio
import itertools
import operator
import random
import reprlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

from jaxserve.config import EngineConfig
from jaxserve.errors import (
    ConfigError,
    ContextLengthError,
    InvalidRequestError,
    JaxserveError,
)
from jaxserve.loop_thread import LoopThread
from jaxserve.metrics import EngineStats, Metrics
from jaxserve.model_parts import ModelInfo, ModelParts, load_model
from jaxserve.offline import Prompt, Sampling, calls_of, final_bodies, growing_bodies
from jaxserve.request import Request, SamplingParams
from jaxserve.text import Detokenizer, render_chat
from jaxserve.text_stream import TextStream

DEFAULT_MAX_NEW_TOKENS = SamplingParams().max_new_tokens
INLINE_CHARS = 4096  # longer texts are tokenized off the event loop: about 1 ms of work
MAX_ABS_LOGIT_BIAS = 3.0e38  # what a float32 holds


class LLM:
    """A model that generates text.

    ::

        with LLM() as llm:                      # the embedded demo model
            print(llm.generate("The capital of France is")["text"])

    Args:
        model_path: a checkpoint folder, a .gguf file or a hub id; None for the demo model.
        config: all settings at once, instead of single ones.
        served_model_name: what metrics and clients call the model.
        **engine_config_fields: single fields of ``EngineConfig``.

    Raises:
        JaxserveError: the model cannot be served; the message says what to do.
    """

    def __init__(
        self,
        model_path: str | None = None,
        *,
        config: EngineConfig | None = None,
        served_model_name: str | None = None,
        **engine_config_fields: Any,
    ) -> None:
        if config is None:
            config = EngineConfig(model_path=model_path, **engine_config_fields)
        elif model_path is not None or engine_config_fields:
            raise ConfigError(
                "give either config or single settings, not both; "
                "dataclasses.replace(config, …) changes some of a config's fields"
            )
        self._wire(load_model(config, served_model_name))

    @classmethod
    def from_parts(cls, parts: ModelParts) -> Self:
        """An LLM around an engine that already runs."""
        llm = cls.__new__(cls)
        llm._wire(parts)
        return llm

    def _wire(self, parts: ModelParts) -> None:
        self.info: ModelInfo = parts.info
        self.config: EngineConfig = parts.config
        self.metrics: Metrics = parts.metrics
        self._engine = parts.engine
        self._tokenizer = parts.tokenizer
        self._random = random.Random(parts.config.random_seed)
        self._serial = itertools.count()
        self._open: dict[str, TextStream] = {}
        self._background = LoopThread("jaxserve-generate")

    # --- text ---

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """Token ids of ``text`` as a prompt: with BOS where the model has one.

        Raises:
            ContextLengthError: the text is so long that it need not be read.
        """
        encode = partial(self._tokenizer.encode, text, max_tokens=self.info.max_seq_len)
        return tuple(encode() if len(text) <= INLINE_CHARS else await asyncio.to_thread(encode))

    async def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        continue_final_message: bool = False,
    ) -> tuple[int, ...]:
        """Prompt ids of a conversation, by the model's chat template.

        Raises:
            InvalidRequestError: there is no template, or it refuses the messages.
        """
        num_chars = sum(len(str(message.get("content"))) for message in messages)
        render = partial(
            render_chat,
            self._tokenizer,
            messages,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
            continue_final_message=continue_final_message,
            max_tokens=self.info.max_seq_len,
        )
        return tuple(render() if num_chars <= INLINE_CHARS else await asyncio.to_thread(render))

    def decode_token(self, token_id: int) -> str:
        """The text of one token by itself, special tokens written out."""
        return self.decode((token_id,))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special tokens written out."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    # --- streams ---

    async def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        rid: str | None = None,
        n: int = 1,
        priority: int = 0,
        clamp_max_new_tokens: bool | None = None,
    ) -> list[TextStream]:
        """Start to generate; one stream per sample.  Everything is checked before it returns.

        Args:
            prompt: text or token ids.
            params: ``max_new_tokens=None`` goes to the end of the context.
            rid: the request's id; made up when None.  With n > 1 the streams get rid_0, rid_1, …
            n: samples; the i-th has a seed of its own, the first that of ``params``.
            priority: passed on to the scheduler.
            clamp_max_new_tokens: shorten max_new_tokens to what fits instead of refusing; None
                does so exactly when it is the default, which nobody asked for.

        Raises:
            ContextLengthError: the prompt, or prompt and output, do not fit.
            InvalidRequestError: an empty prompt, a token outside the vocabulary, an open rid.
            OverloadedError: the queue is full.
            EngineDeadError: the engine has stopped.
        """
        arrival_s = time.perf_counter()
        prompt_ids = await self._prompt_ids(prompt)
        if clamp_max_new_tokens is None:
            clamp_max_new_tokens = params.max_new_tokens == DEFAULT_MAX_NEW_TOKENS
        sampling = self._settled(params, len(prompt_ids), clamp_max_new_tokens)
        rids = self._new_rids(rid, n)
        streams: list[TextStream] = []
        try:
            for index, stream_rid in enumerate(rids):
                request = Request(
                    # Unique for ever: a late output of an ended stream never meets a new one
                    # whose client chose the same rid.
                    rid=f"{stream_rid}#{next(self._serial)}",
                    prompt_ids=prompt_ids,
                    sampling=replace(sampling, seed=_sample_seed(sampling.seed, index)),
                    arrival_s=arrival_s,
                    priority=priority,
                )
                streams.append(self._start(stream_rid, index, request))
        except JaxserveError:
            for stream in streams:
                stream.close()
            raise
        return streams

    def abort(self, rid_prefix: str) -> None:
        """Stop every open stream whose rid starts so; unknown ones are ignored."""
        if rid_prefix:
            self._abort_where(rid_prefix)

    def abort_all(self) -> None:
        """Stop every open stream."""
        self._abort_where("")

    async def flush_cache(self) -> bool:
        """Empty the prefix cache; False, and nothing done, while anything runs or waits."""
        return await asyncio.wrap_future(self._engine.flush_cache())

    def stats(self) -> EngineStats:
        """The engine's latest numbers."""
        return self._engine.stats()

    @property
    def is_healthy(self) -> bool:
        """False once the engine has stopped."""
        return self._engine.is_alive

    @property
    def num_open(self) -> int:
        """Streams that have not finished."""
        return len(self._open)

    # --- the blocking façade ---

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Sampling | Sequence[Sampling] = None,
        *,
        stream: bool = False,
    ) -> Any:
        """Generate and wait.

        Args:
            prompts: a text, token ids, or a list of these; a list runs concurrently.
            sampling_params: ``SamplingParams`` or the native API's dict, for all prompts or one
                per prompt.
            stream: return an iterator instead; each item holds all the text of a stream so far.

        Returns:
            ``{"text", "output_ids", "meta_info"}`` as /generate answers it; a list of them, in
            the order of the prompts, for a list of prompts or n > 1.  Streamed items of a list
            have an ``index`` too.

        Raises:
            JaxserveError: as ``submit``, or the engine gave a sequence up.
        """
        calls, is_list = calls_of(prompts, sampling_params)
        version = self.info.weight_version
        if stream:
            return self._background.iterate(growing_bodies(self.submit, calls, is_list, version))
        bodies = self._background.run(final_bodies(self.submit, calls, version))
        return bodies if is_list else bodies[0]

    def shutdown(self) -> None:
        """Stop the engine and give the device back.  Idempotent."""
        self._engine.shutdown()  # first: it ends the streams that a generate() may still wait for
        self._background.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    # --- inside ---

    async def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            prompt_ids = await self.tokenize(prompt)
        else:
            prompt_ids = _checked_ids(prompt)
        if not prompt_ids:
            raise InvalidRequestError("input_ids cannot be empty.")
        vocab_size = self.info.vocab_size
        for token_id in (min(prompt_ids), max(prompt_ids)):
            if not 0 <= token_id < vocab_size:
                raise InvalidRequestError(
                    f"input_ids contains out-of-vocabulary token id {token_id}; "
                    f"valid range is [0, {vocab_size})."
                )
        return prompt_ids

    def _settled(self, params: SamplingParams, prompt_len: int, clamps: bool) -> SamplingParams:
        """``params`` without a None, checked against this model."""
        vocab_size = self.info.vocab_size
        for token_id, bias in params.logit_bias:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequestError(
                    f"logit_bias must has keys in [0, {vocab_size - 1}], got {token_id}."
                )
            if abs(bias) > MAX_ABS_LOGIT_BIAS:
                raise InvalidRequestError(
                    f"logit_bias values must be finite 32-bit numbers, got {bias}."
                )
        seed = params.seed
        return replace(
            params,
            max_new_tokens=self._max_new_tokens(params.max_new_tokens, prompt_len, clamps),
            seed=self._random.getrandbits(63) if seed is None else seed,
            # An id that no token has can never match.
            stop_token_ids=tuple(i for i in params.stop_token_ids if 0 <= i < vocab_size),
        )

    def _max_new_tokens(self, wanted: int | None, prompt_len: int, clamps: bool) -> int:
        limit = self.info.max_seq_len
        room = limit - prompt_len
        is_flexible = wanted is None or (clamps and wanted > 0)
        if room < 0 or (room == 0 and is_flexible):
            raise ContextLengthError(
                f"The input ({prompt_len} tokens) is longer than the model's context length "
                f"({limit} tokens).{self._limit_hint()}"
            )
        if wanted is None:
            return room
        if wanted > room and not clamps:
            raise ContextLengthError(
                f"Requested token count exceeds the model's maximum context length of {limit} "
                f"tokens. You requested a total of {prompt_len + wanted} tokens: {prompt_len} "
                f"tokens from the input messages and {wanted} tokens for the completion. Please "
                "reduce the number of tokens in the input messages or the completion to fit "
                f"within the limit.{self._limit_hint()}"
            )
        return min(wanted, room)

    def _limit_hint(self) -> str:
        if self.info.context_len <= self.info.max_total_num_tokens:
            return ""
        return (
            f" (The model's own context is {self.info.context_len} tokens, but the KV pool holds "
            f"{self.info.max_total_num_tokens}: restart with a larger --mem-fraction-static or "
            "--max-total-tokens.)"
        )

    def _new_rids(self, rid: str | None, n: int) -> list[str]:
        base = rid or uuid.uuid4().hex
        rids = [base] if n == 1 else [f"{base}_{i}" for i in range(n)]
        taken = [each for each in rids if each in self._open]
        if taken:
            raise InvalidRequestError(f"Duplicate request ID detected: {', '.join(taken)}")
        return rids

    def _start(self, rid: str, index: int, request: Request) -> TextStream:
        stream = TextStream(
            rid,
            index,
            request,
            Detokenizer(self._tokenizer, request.prompt_ids, request.sampling),
            abort=self._engine.abort,
            forget=self._forget,
            metrics=self.metrics,
        )
        self._engine.submit(request, stream.deliver)
        self._open[rid] = stream
        self.metrics.request_started(len(request.prompt_ids))
        return stream

    def _forget(self, rid: str) -> None:
        self._open.pop(rid, None)

    def _abort_where(self, prefix: str) -> None:
        for rid, stream in list(self._open.items()):
            if rid.startswith(prefix):
                self._engine.abort(stream.request.rid)


def _checked_ids(prompt: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, prompt))
    except TypeError as error:
        raise InvalidRequestError(
            f"a prompt is a text or a list of token ids, got {reprlib.repr(prompt)} ({error})"
        ) from None


def _sample_seed(seed: int | None, index: int) -> int | None:
    """The first sample has the seed itself, so that n = 1 and n > 1 begin alike."""
    if index == 0:
        return seed
    return random.Random(f"{seed}/{index}").getrandbits(63)
