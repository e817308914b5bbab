"""Text in, text out: the owner of tokenizer and engine.

The asynchronous half (``submit`` and the streams it returns) is what the server uses;
``LLM.generate`` is the blocking façade for scripts and notebooks.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

from jaxserve.admission import check_allowed, checked_ids, read_limit, read_prompt, settled
from jaxserve.config import EngineConfig
from jaxserve.constrained import GrammarStats, Matcher
from jaxserve.errors import ConfigError, InvalidRequestError
from jaxserve.loop_thread import LoopThread
from jaxserve.metrics import EngineStats, Metrics
from jaxserve.model_parts import ModelInfo, ModelParts, load_model
from jaxserve.offline import Prompt, Sampling, calls_of, final_bodies, growing_bodies
from jaxserve.open_streams import OpenStreams
from jaxserve.request import PAUSE_MODES, PauseMode, Request, SamplingParams, SessionParams
from jaxserve.sessions import SessionStore
from jaxserve.text import render_chat
from jaxserve.text_stream import TextStream

DEFAULT_MAX_NEW_TOKENS = SamplingParams().max_new_tokens
INLINE_CHARS = 4096  # longer texts are tokenized off the event loop: about 1 ms of work


class LLM:
    """A model that generates text.

    ::

        with LLM() as llm:                      # the embedded demo model
            print(llm.generate("The capital of France is")["text"])

    Args:
        model_path: a checkpoint folder, a .gguf file or a hub id; None for the demo model.
        config: all settings at once, instead of single ones.
        served_model_name: what metrics and clients call the model.
        reasoning_parser: how its output marks reasoning: a name of ``parsers``, "auto" to tell
            from the chat template, None for not at all.
        tool_call_parser: how its output marks tool calls, likewise.
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
        reasoning_parser: str | None = None,
        tool_call_parser: str | None = None,
        **engine_config_fields: Any,
    ) -> None:
        if config is None:
            config = EngineConfig(model_path=model_path, **engine_config_fields)
        elif model_path is not None or engine_config_fields:
            raise ConfigError(
                "give either config or single settings, not both; "
                "dataclasses.replace(config, …) changes some of a config's fields"
            )
        parts = load_model(
            config,
            served_model_name,
            reasoning_parser=reasoning_parser,
            tool_call_parser=tool_call_parser,
        )
        self._wire(parts)

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
        self._token_texts: dict[int, str] = {}
        self._grammars = parts.grammars
        self._num_compiling = 0  # requests whose grammar is being compiled
        self._sessions = SessionStore()
        self._streams = OpenStreams(
            parts.engine, parts.tokenizer, parts.metrics, on_end=self._sessions.ended
        )
        self._background = LoopThread("jaxserve-generate")

    # --- text ---

    async def encode(
        self, text: str, *, add_special_tokens: bool = True, is_prompt: bool = True
    ) -> tuple[int, ...]:
        """Token ids of ``text``: as a prompt, with BOS where the model has one, or without.

        ``is_prompt`` False: they are only looked at, and may be more than the context holds.

        Raises:
            ContextLengthError: the text is so long that it need not be read.
        """
        is_cut = self.config.allow_auto_truncate
        limit = None if is_cut else read_limit(len(text), self.info, is_prompt)
        encode = partial(self._tokenizer.encode, text, add_special_tokens, max_tokens=limit)
        return tuple(encode() if len(text) <= INLINE_CHARS else await asyncio.to_thread(encode))

    async def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
        is_prompt: bool = True,
    ) -> tuple[int, ...]:
        """Prompt ids of a conversation, by the model's chat template; ``is_prompt`` as above.

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
            add_generation_prompt=add_generation_prompt,
            max_tokens=read_limit(num_chars, self.info, is_prompt),
        )
        return tuple(render() if num_chars <= INLINE_CHARS else await asyncio.to_thread(render))

    def decode_token(self, token_id: int) -> str:
        """The text of one token by itself, special tokens written out."""
        text = self._token_texts.get(token_id)
        if text is None:  # logprobs of a long prompt name the same tokens over and over
            text = self._token_texts[token_id] = self.decode((token_id,))
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to a text, as UTF-8: part of a character perhaps."""
        return self._tokenizer.token_bytes(token_id)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of tokens, special tokens written out or left away."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_id(self, text: str) -> int | None:
        """The id of the one token that is written so, such as ``</think>``; else None."""
        return self._tokenizer.token_id(text)

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
        cache_namespace: str = "",
        session: SessionParams | None = None,
    ) -> list[TextStream]:
        """Start to generate; one stream per sample.  Everything is checked before it returns.

        Args:
            prompt: text, token ids, or embeddings.
            params: ``max_new_tokens=None`` goes to the end of the context.
            rid: the request's id; made up when None.  With n > 1 the streams get rid_0, rid_1, …
            n: samples; the i-th has a seed of its own, the first that of ``params``.
            priority: passed on to the scheduler.
            clamp_max_new_tokens: shorten max_new_tokens to what fits instead of refusing; None
                does so exactly when it is the default, which nobody asked for.
            cache_namespace: cached prefixes are shared only with requests of the same.
            session: the request of an open session that the prompt continues.

        Raises:
            ContextLengthError: the prompt, or prompt and output, do not fit.
            InvalidRequestError: an empty prompt, a token outside the vocabulary, an open rid, a
                grammar or stop_regex that is wrong, a session that is not there.
            OverloadedError: the queue is full.
            EngineDeadError: the engine has stopped.
        """
        arrival_s = time.perf_counter()
        check_allowed(prompt, params, session, self.config)
        prompt_ids, embeds = await read_prompt(prompt, self.encode, self.info)
        if self.config.allow_auto_truncate:
            clamp_max_new_tokens = True
            prompt_ids = prompt_ids[: self.info.max_req_input_len]
        matchers = await self._matchers(params, n)
        # No await from here on: what is checked now holds until the streams exist.
        continuation = None
        if session is not None:
            bos_token_id = self._tokenizer.bos_token_id
            continuation = self._sessions.continued(session, prompt_ids, bos_token_id, n)
            prompt_ids = checked_ids(continuation.prompt_ids, self.info.vocab_size)
        template = Request(
            rid="",
            prompt_ids=prompt_ids,
            sampling=self._settled(params, len(prompt_ids), clamp_max_new_tokens),
            arrival_s=arrival_s,
            priority=priority,
            cache_namespace=cache_namespace,
            embeds=None if embeds is None else embeds[: len(prompt_ids)],
        )
        streams = self._streams.start(rid, template, matchers)
        if continuation is not None:
            self._sessions.add(continuation, streams)
        return streams

    def abort(self, rid_prefix: str) -> None:
        """Stop every open stream whose rid starts so; unknown ones are ignored."""
        if rid_prefix:
            self._streams.abort(rid_prefix)

    def abort_all(self) -> None:
        """Stop every open stream."""
        self._streams.abort("")

    async def flush_cache(self) -> bool:
        """Empty the prefix cache; False, and nothing done, while anything runs or waits."""
        return await asyncio.wrap_future(self._engine.flush_cache())

    async def pause(self, mode: PauseMode) -> int:
        """Plan no more steps; return how many sequences were aborted or retracted.

        ``abort`` ends them all, ``retract`` puts what runs back into the queue and frees its KV,
        ``in_place`` freezes it.  Requests that come meanwhile wait.

        Raises:
            InvalidRequestError: no such mode.
        """
        if mode not in PAUSE_MODES:
            raise InvalidRequestError(f"mode must be one of {', '.join(PAUSE_MODES)}; got {mode!r}")
        return await asyncio.wrap_future(self._engine.pause(mode))

    async def resume(self) -> None:
        """Undo ``pause``; nothing if nothing is paused."""
        await asyncio.wrap_future(self._engine.resume())

    @property
    def is_paused(self) -> bool:
        """True from ``pause`` to ``resume``."""
        return self._engine.is_paused

    def open_session(
        self,
        capacity: int,
        *,
        session_id: str | None = None,
        timeout_s: float | None = None,
        is_streaming: bool = False,
    ) -> str:
        """Open a session and return its id; see ``SessionStore.open``."""
        return self._sessions.open(capacity, session_id, timeout_s, is_streaming=is_streaming)

    def close_session(self, session_id: str) -> None:
        """Forget a session; what it runs goes on.  Idempotent."""
        self._sessions.close(session_id)

    async def start_profile(
        self,
        output_dir: str | None = None,
        *,
        num_steps: int | None = None,
        start_step: int | None = None,
    ) -> None:
        """Trace the device; see ``Engine.start_profile``."""
        await asyncio.wrap_future(self._engine.start_profile(output_dir, num_steps, start_step))

    async def stop_profile(self) -> None:
        """End the trace and write it."""
        await asyncio.wrap_future(self._engine.stop_profile())

    def stats(self) -> EngineStats:
        """The engine's latest numbers, and those of the grammars and sessions."""
        grammars = GrammarStats() if self._grammars is None else self._grammars.stats()
        return replace(
            self._engine.stats(),
            num_streaming_sessions=self._sessions.num_streaming,
            num_grammar_queue=self._num_compiling,
            num_grammars_total=grammars.num_compiled,
            num_grammar_cache_hits_total=grammars.num_cache_hits,
            num_grammar_aborts_total=grammars.num_failed,
            num_grammar_timeouts_total=grammars.num_timeouts,
            grammar_s_total=grammars.compile_s,
        )

    @property
    def is_healthy(self) -> bool:
        """False once the engine has stopped."""
        return self._engine.is_alive

    @property
    def num_open(self) -> int:
        """Streams that have not finished."""
        return len(self._streams)

    # --- the blocking façade ---

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Sampling | Sequence[Sampling] = None,
        *,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """Generate and wait.

        Args:
            prompts: a text, token ids, or a list of these; a list runs concurrently.  None with
                the option ``input_embeds``.
            sampling_params: ``SamplingParams`` or the native API's dict, for all prompts or one
                per prompt.
            stream: return an iterator instead; each item holds all the text of a stream so far.
            **options: any of ``offline.OPTIONS``, as /generate takes them: return_logprob, ….

        Returns:
            ``{"text", "output_ids", "meta_info"}`` as /generate answers it; a list of them, in
            the order of the prompts, for a list of prompts or n > 1.  Streamed items of a list
            have an ``index`` too.

        Raises:
            JaxserveError: as ``submit``, or the engine gave a sequence up.
        """
        calls = calls_of(prompts, sampling_params, options)
        if stream:
            return self._background.iterate(growing_bodies(self, calls))
        bodies = self._background.run(final_bodies(self, calls))
        return bodies if calls.is_list else bodies[0]

    def shutdown(self) -> None:
        """Stop the engine and give the device back.  Idempotent."""
        self._engine.shutdown()  # first: it ends the streams that a generate() may still wait for
        self._background.stop()
        if self._grammars is not None:
            self._grammars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    # --- inside ---

    async def _matchers(self, params: SamplingParams, n: int) -> list[Matcher | None]:
        grammar, thought, compiler = params.grammar, params.thought, self._grammars
        if grammar is None and (thought is None or not thought.is_limited):
            return [None] * n
        if compiler is None:
            raise InvalidRequestError(
                "Grammar-based generation (json_schema, regex, ebnf, structural_tag), or a limit "
                "of reasoning, is not supported when the server is launched with "
                "--grammar-backend none, or its tokenizer has no end-of-sequence token."
            )
        if grammar is None:
            return [compiler.thought_matcher(thought) for _ in range(n)]
        self._num_compiling += 1
        start_s = time.perf_counter()
        try:
            compiled = await compiler.compile(grammar)
        finally:
            self._num_compiling -= 1
        if time.perf_counter() - start_s >= compiled.compile_s:  # else another had it compiled
            self.metrics.grammar_compiled(compiled.compile_s)
        return [compiled.new_matcher(thought) for _ in range(n)]

    def _settled(
        self, params: SamplingParams, prompt_len: int, clamps: bool | None
    ) -> SamplingParams:
        if clamps is None:
            clamps = params.max_new_tokens == DEFAULT_MAX_NEW_TOKENS
        seed = params.seed if params.seed is not None else self._random.getrandbits(63)
        return settled(params, prompt_len, self.info, clamps=clamps, seed=seed)
