"""What was asked for and what comes back: immutable, picklable records.

``Request`` and ``TokenOutput`` speak tokens (engine), ``TextChunk`` speaks text (LLM).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from jaxserve.errors import InvalidRequestError

MAX_STOP_STRINGS = 32
MAX_STOP_REGEXES = 32
MAX_STOP_REGEX_BYTES = 256
MAX_TOP_LOGPROBS = 20
MAX_LOGPROB_TOKEN_IDS = 64
GREEDY_TEMPERATURE = 1e-6
HEALTH_CHECK_RID = "HEALTH_CHECK"  # begins the rids of requests that metrics do not count


GrammarKind = Literal["json_schema", "regex", "ebnf", "structural_tag"]


HiddenStates = Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an output must match, from the end of its ``Thought`` on where it has one."""

    kind: GrammarKind
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """The reasoning before an answer: anything may be generated there, up to its end mark.

    ``end_ids`` spell the mark; its text ends the reasoning too, however it is cut into tokens.
    ``start_ids`` spell what begins it, where an output may do without; empty: it has begun.
    ``answer_pattern``: a regex of what stands between the reasoning and the answer, where that is
    more than the end mark.  ``budget``: after so many tokens, the start mark among them, the end
    mark is forced; None: there is no limit.  ``is_strict``: inside, neither ``call_id`` (the token
    that begins a tool call) may come nor a token that ends the output.
    """

    end_ids: tuple[int, ...]
    start_ids: tuple[int, ...] = ()
    answer_pattern: str | None = None
    budget: int | None = None
    is_strict: bool = False
    call_id: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether some tokens may be refused in it."""
        return self.is_strict or self.budget is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one sequence is sampled and when it ends.  Validates itself.

    ``max_new_tokens=None`` means "to the end of the context".  ``top_k=0`` is off.
    ``seed=None`` lets the engine draw one.  ``num_logprobs=None`` returns no logprobs,
    ``0`` those of the chosen tokens, ``k`` also those of the k most likely tokens.
    ``logprob_token_ids`` asks at every such position for these tokens' logprobs too.
    ``prompt_logprobs_start`` asks for logprobs of the prompt's tokens from that position on.
    ``hidden_states`` asks for what logits are made of: at "all" positions, or at the "last" one.
    ``thought=None``: the output is not known to reason, and a grammar holds from its first token.
    ``stream_interval=None`` leaves it to the server how many tokens make an event.

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
    stop_regex: tuple[str, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    num_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs_start: int | None = None
    hidden_states: HiddenStates | None = None
    grammar: Grammar | None = None
    thought: Thought | None = None
    stream_interval: int | None = None
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
        if len(self.stop_regex) > MAX_STOP_REGEXES:
            yield (
                f"at most {MAX_STOP_REGEXES} stop_regex patterns are allowed, "
                f"got {len(self.stop_regex)}"
            )
        for pattern in self.stop_regex:
            if len(pattern.encode(errors="replace")) > MAX_STOP_REGEX_BYTES:
                yield (
                    f"a stop_regex may have at most {MAX_STOP_REGEX_BYTES} bytes, one of "
                    f"{len(pattern.encode(errors='replace'))} was given; shorten it"
                )
        if self.stream_interval is not None and self.stream_interval < 1:
            yield f"stream_interval must be at least 1, got {self.stream_interval}."

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
        if len(self.logprob_token_ids) > MAX_LOGPROB_TOKEN_IDS:
            yield (
                f"token_ids_logprob takes at most {MAX_LOGPROB_TOKEN_IDS} token ids, "
                f"got {len(self.logprob_token_ids)}."
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionParams:
    """Which request of an open session a prompt continues, and from where.

    The new prompt is the tokens of request ``rid`` (without its output if
    ``drop_previous_output``), cut to ``offset`` (as a slice's end; 0 or None keeps all), then the
    prompt that was sent.  ``rid=None`` starts a conversation of its own.  ``replace`` forgets the
    requests that continue ``rid``, or all of them where ``rid`` is None, and aborts what runs.
    """

    id: str
    rid: str | None = None
    offset: int | None = None
    replace: bool = False
    drop_previous_output: bool = False


@dataclass(frozen=True, slots=True)
class InputEmbeds:
    """A prompt that is given as one embedding per token: n rows of D numbers, not yet checked."""

    rows: np.ndarray | Sequence[Sequence[float]]


MAX_RID_CHARS = 1024
PauseMode = Literal["abort", "retract", "in_place"]
PAUSE_MODES: tuple[PauseMode, ...] = ("abort", "retract", "in_place")


def check_rid(rid: str) -> None:
    """Refuse an id that would be copied at length, for every sample and every event.

    Raises:
        InvalidRequestError: it is too long.
    """
    if len(rid) > MAX_RID_CHARS:
        raise InvalidRequestError(
            f"a rid has at most {MAX_RID_CHARS} characters, one of {len(rid)} was given; shorten "
            "it, or leave it away to have one made up."
        )


def check_in_vocabulary(
    token_ids: Sequence[int], vocab_size: int, *, field: str = "input_ids"
) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        InvalidRequestError: names the field, the first such id and the valid range.
    """
    if not token_ids or 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        return
    wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
    raise InvalidRequestError(
        f"{field} contains out-of-vocabulary token id {wrong}; valid range is [0, {vocab_size})."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sequence to generate.  ``sampling`` has no ``None`` seed or ``max_new_tokens`` left."""

    rid: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival_s: float
    priority: int = 0
    cache_namespace: str = ""  # prefixes are shared only inside one
    # f32[prompt_tokens, D]: instead of the embeddings of prompt_ids, which then mean nothing
    embeds: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class FinishReason:
    """Why a sequence ended.  ``matched`` is the stop token id, the stop string, or the text that a
    stop_regex matched."""

    type: Literal["stop", "length", "abort"]
    matched: int | str | None = None
    message: str | None = None
    status_code: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability (natural log) of one token, and of others at its position.

    ``logprob`` is None for the very first token of a prompt: nothing comes before it.
    ``top`` are the most likely tokens, ``of_ids`` those of ``SamplingParams.logprob_token_ids``,
    both as (token id, logprob).
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()
    of_ids: tuple[tuple[int, float], ...] = ()


class TokenOutput(NamedTuple):
    """What one step produced for one request: usually one token, none on an abort.

    A tuple: a step makes one per row, and a frozen dataclass takes four times as long to make.
    ``prompt_logprobs`` come in pieces, in order, with the steps that compute the prompt, in the
    last step's output at the latest.  ``queue_s``: seconds from arrival to its first step.
    ``hidden_states``, f32[n, D], are those of the next n positions, or of the newest one alone,
    as asked for: of the prompt's positions, then of the output's tokens as they are computed.
    """

    rid: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    num_cached: int = 0
    num_retractions: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    queue_s: float | None = None
    hidden_states: np.ndarray | None = None


class Usage(NamedTuple):
    """Token counts so far.  ``cached_tokens`` of the prompt came from the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class TextChunk(NamedTuple):
    """An increment of one stream: new text, new tokens, and the counts so far.

    A tuple for speed, as ``TokenOutput``; make it with keywords.

    ``queue_s`` and ``first_token_s``: seconds from arrival to the first step, and to the first
    token; None before.  ``hidden_states``: arrays f32[n, D] of one position after the other, or
    of the newest one alone.
    """

    rid: str
    index: int  # type: ignore[assignment]  # nobody searches a chunk: tuple's method is not missed
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    usage: Usage = Usage(0, 0, 0)
    num_retractions: int = 0
    queue_s: float | None = None
    first_token_s: float | None = None
    hidden_states: tuple[np.ndarray, ...] = ()
