"""The whole contract between scheduler and executor: numpy arrays of the shapes of a Bucket.

Axis letters: T tokens in the step, B rows, W pages per row, V vocabulary, K top logprobs,
I = MAX_LOGPROB_TOKEN_IDS, D model width.
"""

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

NULL_PAGE = 0
PADDING_SLOT = 0
EMBED_TOKEN = 2**31 - 1  # in place of a token id: the embedding is given
MIN_LOGPROB = -9999.0  # what OpenAI's API says for "very unlikely"; -inf is not JSON

# Prompt tokens whose logprobs are computed at once: what bounds the logits in memory.  The small
# size is for short prompts.
PROMPT_BLOCK_SIZES = (16, 128)
MAX_PROMPT_BLOCK = max(PROMPT_BLOCK_SIZES)


class Mode(Enum):
    """EXTEND computes prompt tokens on top of a cached prefix; DECODE one token per row."""

    EXTEND = "extend"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Bucket:
    """One static shape.  In DECODE ``num_tokens == num_rows``."""

    mode: Mode
    num_tokens: int
    num_rows: int
    pages_per_row: int


@dataclass(frozen=True, slots=True)
class SamplingArrays:
    """Per-row sampling parameters; a padding row is greedy and samples nothing."""

    samples: np.ndarray  # bool[B]; False for padding and for a chunk that is not a prompt's last
    temperature: np.ndarray  # f32[B]; 0 = greedy
    top_k: np.ndarray  # i32[B]; 0 = off
    top_p: np.ndarray  # f32[B]; 1 = off
    min_p: np.ndarray  # f32[B]; 0 = off
    frequency_penalty: np.ndarray  # f32[B]; 0 = off
    presence_penalty: np.ndarray  # f32[B]; 0 = off
    repetition_penalty: np.ndarray  # f32[B]; 1 = off
    seeds: np.ndarray  # u32[B, 2]; high and low word of the request's 64-bit seed
    min_lens: np.ndarray  # i32[B]; stop ids are masked while kv_len < min_len; 0 = off
    has_logit_bias: np.ndarray  # bool[B]
    wants_logprobs: np.ndarray  # bool[B]


@dataclass(frozen=True, slots=True)
class SlotInit:
    """What a slot's past and its fixed logit changes are, when a sequence takes that slot.

    Sent only for sequences with penalties, logit_bias, min_new_tokens or logprob_ids; the device
    keeps the token counts up to date from there on.  It counts what it samples: it is sent again
    when tokens were appended that it did not.
    """

    slot: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    logit_bias: tuple[tuple[int, float], ...]
    logprob_ids: tuple[int, ...] = ()  # at most I; their logprobs come with every logprob


@dataclass(frozen=True, slots=True)
class PromptBlock:
    """Tokens of an EXTEND step after each of which the prompt goes on, with a wanted logprob.

    All but a step's last block are full; padding is token 0, target 0, slot 0 and comes last.
    """

    tokens: np.ndarray  # i32[MAX_PROMPT_BLOCK]; indices into the step's tokens
    targets: np.ndarray  # i32[MAX_PROMPT_BLOCK]; the prompt's token after each
    slots: np.ndarray  # i32[MAX_PROMPT_BLOCK]; whose logprob_ids are wanted too
    size: int  # one of PROMPT_BLOCK_SIZES; only as many are computed


@dataclass(frozen=True, slots=True)
class EmbedRows:
    """Embeddings of consecutive tokens of an EXTEND step, which have EMBED_TOKEN as their id."""

    start: int  # of the step's tokens, the first one's place
    rows: np.ndarray  # f32[n, D]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step, padded to ``bucket``.  Padding points at page 0 and slot 0, never at -1."""

    bucket: Bucket
    # i32[T]; EXTEND only: DECODE reads last_tokens[row_slots].  A negative one, ~slot, is the
    # newest token of that slot: it is in flight, and only the device knows it.
    token_ids: np.ndarray
    positions: np.ndarray  # i32[T]
    write_slots: np.ndarray  # i32[T]; page * page_size + offset; padding 0
    page_table: np.ndarray  # i32[B, W]; padding 0
    kv_lens: np.ndarray  # i32[B]; including this step's tokens; padding 0
    q_starts: np.ndarray  # i32[B + 1]; row b owns tokens [q_starts[b], q_starts[b + 1])
    row_slots: np.ndarray  # i32[B]; padding 0
    sampling: SamplingArrays
    slot_inits: tuple[SlotInit, ...] = ()
    prompt_blocks: tuple[PromptBlock, ...] = ()
    embeds: tuple[EmbedRows, ...] = ()  # in the order of their places
    hidden_tokens: np.ndarray | None = None  # i32[n]; the step's tokens whose states are wanted

    def without(self, rows: list[int]) -> "StepInputs":
        """The step in which ``rows`` sample nothing."""
        samples = self.sampling.samples.copy()
        samples[rows] = False
        return replace(self, sampling=replace(self.sampling, samples=samples))


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Which tokens some rows of a step may sample.

    Bit ``t % 32`` of word ``t // 32`` is set where token t is allowed.
    """

    rows: np.ndarray  # i32[n]; rows of the step, each once
    bits: np.ndarray  # u32[n, ceil(V / 32)]


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Logprobs of the targets of a step's prompt blocks, n in all, blocks one after the other."""

    logprobs: np.ndarray  # f32[n]
    top_logprobs: np.ndarray  # f32[n, K], most likely first
    top_token_ids: np.ndarray  # i32[n, K]
    id_logprobs: np.ndarray  # f32[n, I]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step sampled.  The logprob arrays are None when no row asked for them."""

    token_ids: np.ndarray  # i32[B]
    logprobs: np.ndarray | None = None  # f32[B]
    top_logprobs: np.ndarray | None = None  # f32[B, K]
    top_token_ids: np.ndarray | None = None  # i32[B, K]
    id_logprobs: np.ndarray | None = None  # f32[B, I]; of the slots' logprob_ids
    prompt: PromptLogprobs | None = None
    hidden: np.ndarray | None = None  # f32[n, D]; of StepInputs.hidden_tokens
