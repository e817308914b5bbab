"""What was asked for and what comes back: immutable, picklable records.

``Request`` and ``TokenOutput`` speak tokens (engine), ``TextChunk`` speaks text (LLM).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jaxserve.errors import InvalidRequestError

MAX_STOP_STRINGS = 32
MAX_TOP_LOGPROBS = 20
GREEDY_TEMPERATURE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one sequence is sampled and when it ends.  Validates itself.

    ``max_new_tokens=None`` means "to the end of the context".  ``top_k=0`` is off.
    ``seed=None`` lets the engine draw one.  ``num_logprobs=None`` returns no logprobs,
    ``0`` those of the chosen tokens, ``k`` also those of the k most likely tokens.

    Raises:
        InvalidRequestError: a value out of its range; the message names the field.
    """

    max_new_tokens: int | None = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    num_logprobs: int | None = None
    skip_special_tokens: bool = True
    no_stop_trim: bool = False

    def __post_init__(self) -> None:
        for problem in (
            *self._length_problems(),
            *self._logit_problems(),
            *self._penalty_problems(),
        ):
            raise InvalidRequestError(problem)

    def _length_problems(self) -> Iterable[str]:
        maximum = self.max_new_tokens
        if maximum is not None and maximum < 0:
            yield f"max_new_tokens must be at least 0, got {maximum}."
        if self.min_new_tokens < 0 or (maximum is not None and self.min_new_tokens > maximum):
            yield (
                f"min_new_tokens must be in [0, max_new_tokens({maximum})], "
                f"got {self.min_new_tokens}."
            )
        if len(self.stop) > MAX_STOP_STRINGS:
            yield f"at most {MAX_STOP_STRINGS} stop strings are allowed, got {len(self.stop)}"

    def _logit_problems(self) -> Iterable[str]:
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            yield f"temperature must be a non-negative finite number, got {self.temperature}."
        if not 0.0 < self.top_p <= 1.0:
            yield f"top_p must be in (0, 1], got {self.top_p}."
        if not 0.0 <= self.min_p <= 1.0:
            yield f"min_p must be in [0, 1], got {self.min_p}."
        if self.top_k < 0:
            yield f"top_k must be -1 (disable) or at least 1, got {self.top_k}."
        if any(not math.isfinite(bias) for _, bias in self.logit_bias):
            yield "logit_bias values must be finite numbers"
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            yield f"sampling_seed must be a 64-bit signed integer, got {self.seed}."
        if self.num_logprobs is not None and not 0 <= self.num_logprobs <= MAX_TOP_LOGPROBS:
            yield (
                f"the number of top logprobs must be in [0, {MAX_TOP_LOGPROBS}], "
                f"got {self.num_logprobs}."
            )

    def _penalty_problems(self) -> Iterable[str]:
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            if not -2.0 <= value <= 2.0:
                yield f"{name} must be in [-2, 2], got {value}."
        if not 0.0 < self.repetition_penalty <= 2.0:
            yield (
                "repetition_penalty must be in (0, 2] (1.0 = no penalty), "
                f"got {self.repetition_penalty}."
            )

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.temperature < GREEDY_TEMPERATURE or self.top_k == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sequence to generate.  ``sampling`` has no ``None`` seed or ``max_new_tokens`` left."""

    rid: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival_s: float
    priority: int = 0


@dataclass(frozen=True, slots=True)
class FinishReason:
    """Why a sequence ended.  ``matched`` is the stop token id or the stop string."""

    type: Literal["stop", "length", "abort"]
    matched: int | str | None = None
    message: str | None = None
    status_code: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural log) of one output token, and of the top-k at its position."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TokenOutput(NamedTuple):
    """What one step produced for one request: usually one token, none on an abort.

    A tuple: a step makes one per row, and a frozen dataclass takes four times as long to make.
    """

    rid: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    num_cached: int = 0
    num_retractions: int = 0


class Usage(NamedTuple):
    """Token counts so far.  ``cached_tokens`` of the prompt came from the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChunk:
    """An increment of one stream: new text, new tokens, and the counts so far."""

    rid: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0))
    num_retractions: int = 0
