"""What the server needs of an LLM: ``jaxserve.llm.LLM`` has it, and so has a test's fake.

Typed here rather than imported, so that the port can answer before JAX is loaded.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from jaxserve.config import EngineConfig
from jaxserve.metrics import EngineStats, Metrics
from jaxserve.request import InputEmbeds, PauseMode, SamplingParams, SessionParams, TextChunk


class TextStream(Protocol):
    """One sequence being generated: iterate it, or await its ``result``, once."""

    @property
    def rid(self) -> str: ...

    @property
    def prompt_ids(self) -> tuple[int, ...]: ...

    @property
    def arrival_s(self) -> float:
        """``time.perf_counter()`` when it was submitted."""

    def __aiter__(self) -> AsyncIterator[TextChunk]:
        """Chunks as they come; the last has a ``finish``."""

    async def result(self) -> TextChunk:
        """All of it as one chunk, at its end."""

    def close(self) -> None:
        """Abort the sequence unless it has finished.  Idempotent."""


class ModelInfo(Protocol):
    """What is known of the model being served."""

    @property
    def model_path(self) -> str: ...

    @property
    def tokenizer_path(self) -> str: ...

    @property
    def is_generation(self) -> bool: ...

    @property
    def context_len(self) -> int: ...

    @property
    def max_total_num_tokens(self) -> int: ...

    @property
    def max_req_input_len(self) -> int: ...

    @property
    def vocab_size(self) -> int:
        """Width of the logits; token ids are below it."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Each ends an output."""

    @property
    def model_type(self) -> str: ...

    @property
    def architectures(self) -> tuple[str, ...]: ...

    @property
    def weight_version(self) -> str: ...

    @property
    def load_format(self) -> str: ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja source; None where the model has none."""

    @property
    def reasoning_parser(self) -> str | None:
        """Name in ``parsers.REASONING_FORMATS``; None: the text is not split."""

    @property
    def tool_call_parser(self) -> str | None:
        """Name in ``parsers.TOOL_FORMATS``; None: calls are not looked for."""

    @property
    def generation_defaults(self) -> Mapping[str, object]:
        """The sampling fields of the model's generation_config.json; empty if it has none."""


class TokenTexts(Protocol):
    """How logprobs write their tokens."""

    def decode_token(self, token_id: int) -> str:
        """The text of one token by itself; U+FFFD for part of a character."""

    def token_bytes(self, token_id: int) -> bytes:
        """What it adds to a text: joined, the bytes of tokens are the text."""


class TextService(TokenTexts, Protocol):
    """The asynchronous half of ``jaxserve.llm.LLM``."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def config(self) -> EngineConfig: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def is_healthy(self) -> bool: ...

    @property
    def num_open(self) -> int: ...

    @property
    def is_paused(self) -> bool:
        """True from ``pause`` to ``resume``: requests are taken and wait."""

    async def encode(
        self, text: str, *, add_special_tokens: bool = True, is_prompt: bool = True
    ) -> tuple[int, ...]:
        """Token ids; long texts are cut into tokens off the event loop.

        Args:
            is_prompt: False: they are only looked at, and may be more than the context holds.
        """

    async def render_chat(
        self,
        messages: list[dict[str, object]],
        *,
        tools: list[dict[str, object]] | None = None,
        chat_template_kwargs: dict[str, object] | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
        is_prompt: bool = True,
    ) -> tuple[int, ...]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...

    def token_id(self, text: str) -> int | None:
        """The id of the one token that is written so, such as ``</think>``; else None."""

    async def submit(
        self,
        prompt: str | Sequence[int] | InputEmbeds,
        params: SamplingParams,
        *,
        rid: str | None = None,
        n: int = 1,
        priority: int = 0,
        clamp_max_new_tokens: bool | None = None,
        cache_namespace: str = "",
        session: SessionParams | None = None,
    ) -> Sequence[TextStream]: ...

    def abort(self, rid_prefix: str) -> None: ...

    def abort_all(self) -> None: ...

    async def flush_cache(self) -> bool: ...

    async def pause(self, mode: PauseMode) -> int:
        """Plan no more steps; return how many sequences were aborted or retracted."""

    async def resume(self) -> None:
        """Undo ``pause``; nothing if nothing is paused."""

    def open_session(
        self,
        capacity: int,
        *,
        session_id: str | None = None,
        timeout_s: float | None = None,
        is_streaming: bool = False,
    ) -> str:
        """Return the session's id.  ``capacity`` in tokens; ``timeout_s`` of idleness close it.

        Raises:
            InvalidRequestError: the id is taken, or a value is out of its range.
        """

    def close_session(self, session_id: str) -> None:
        """Forget a session.  Idempotent."""

    async def start_profile(
        self,
        output_dir: str | None = None,
        *,
        num_steps: int | None = None,
        start_step: int | None = None,
    ) -> None: ...

    async def stop_profile(self) -> None: ...

    def stats(self) -> EngineStats: ...

    def shutdown(self) -> None: ...
