"""Tables with one row per slot: what a row's sequence keeps on the device from step to step.

A row is written when a sequence takes the slot (``set_slot``), its mask before each step that
has one (``set_masks``); token counts advance in the step itself (``record``).  Rows of features
that a sequence does not use are left as the slot's last sequence had them: nobody reads them.

Axis letters: S slots, V vocabulary, M = ceil(V / 32) mask words, I = MAX_LOGPROB_TOKEN_IDS,
n masked rows.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxserve.batch import PADDING_SLOT, SlotInit, StepInputs, TokenMasks
from jaxserve.executor.sharding import Placement
from jaxserve.executor.warmup import compile_all

# request.py's, which this layer may not import; a test holds them equal
MAX_LOGPROB_TOKEN_IDS = 64

# A token_info entry: how often the output holds this token, and two facts about it.
COUNT_MASK = (1 << 24) - 1
IN_PROMPT = 1 << 24
IS_STOP = 1 << 25

MASK_BITS = 32
_MASK_COUNT_GROWTH = 4  # between the numbers of masks that are written at once


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class SlotTables:
    """The tables; slot 0 is padding."""

    token_info: Array  # i32[S, V]
    logit_bias: Array  # f32[S, V]
    token_masks: Array  # u32[S, M]; bit t % 32 of word t // 32: token t is allowed
    logprob_ids: Array  # i32[S, I]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class SlotRow:
    """What ``set_slot`` writes."""

    token_info: Array | np.ndarray  # i32[V]
    logit_bias: Array | np.ndarray  # f32[V]
    logprob_ids: Array | np.ndarray  # i32[I]


def num_mask_words(vocab_size: int) -> int:
    """M: words of a mask."""
    return -(-vocab_size // MASK_BITS)


def slot_bytes(vocab_size: int) -> int:
    """Size of a slot in all tables and in the table of last tokens."""
    return 4 * (2 * vocab_size + num_mask_words(vocab_size) + MAX_LOGPROB_TOKEN_IDS + 1)


def init_slot(init: SlotInit, vocab_size: int) -> SlotRow:
    """The rows of a sequence's past and wishes.

    Stop ids outside the vocabulary can never be sampled and are left out.
    """
    info = np.bincount(np.asarray(init.output_ids, np.int64), minlength=vocab_size)
    info = info.astype(np.int32)
    info[list(init.prompt_ids)] |= IN_PROMPT
    info[[token_id for token_id in init.stop_ids if 0 <= token_id < vocab_size]] |= IS_STOP
    bias = np.zeros(vocab_size, np.float32)
    for token_id, value in init.logit_bias:
        bias[token_id] = value
    logprob_ids = np.zeros(MAX_LOGPROB_TOKEN_IDS, np.int32)
    logprob_ids[: len(init.logprob_ids)] = init.logprob_ids
    return SlotRow(info, bias, logprob_ids)


def set_slot(tables: SlotTables, slot: Array, row: SlotRow) -> SlotTables:
    """Writes a row to ``slot`` (i32[]); donate the tables."""
    return SlotTables(
        token_info=tables.token_info.at[slot].set(row.token_info),
        logit_bias=tables.logit_bias.at[slot].set(row.logit_bias),
        token_masks=tables.token_masks,
        logprob_ids=tables.logprob_ids.at[slot].set(row.logprob_ids),
    )


def mask_row_counts(max_rows: int) -> tuple[int, ...]:
    """For which numbers of masks there is a program, ascending; the last is ``max_rows``."""
    counts = [1]
    while counts[-1] < max_rows:
        counts.append(min(counts[-1] * _MASK_COUNT_GROWTH, max_rows))
    return tuple(counts)


def pack_masks(masks: TokenMasks, row_slots: np.ndarray, num_rows: int) -> np.ndarray:
    """``u32[num_rows, 1 + M]``: each row's slot and its mask; one transfer, a new array.

    Rows up to ``num_rows`` go to the padding slot.
    """
    packed = np.zeros((num_rows, 1 + masks.bits.shape[1]), np.uint32)
    packed[:, 0] = PADDING_SLOT
    packed[: len(masks.rows), 0] = row_slots[masks.rows]
    packed[: len(masks.rows), 1:] = masks.bits
    return packed


def set_masks(tables: SlotTables, packed: Array) -> SlotTables:
    """Writes what ``pack_masks`` made; donate the tables."""
    slots = packed[:, 0].astype(jnp.int32)
    token_masks = tables.token_masks.at[slots].set(packed[:, 1:], mode="promise_in_bounds")
    return SlotTables(tables.token_info, tables.logit_bias, token_masks, tables.logprob_ids)


def record(tables: SlotTables, row_slots: Array, token_ids: Array, samples: Array) -> SlotTables:
    """Counts the sampled tokens: one added to token_info at each sampling row's token.

    Donate the tables (or call it in a step that does): the update is then in place.
    """
    info = tables.token_info.at[row_slots, token_ids].add(samples.astype(jnp.int32))
    return SlotTables(info, tables.logit_bias, tables.token_masks, tables.logprob_ids)


class SlotWriter:
    """Writes slots before a step.  Compiles its programs: one, and one per number of masks.

    Args:
        tables: their shapes, nothing of them is kept.
        max_masks: the most rows of a step.
    """

    def __init__(
        self, tables: SlotTables, placement: Placement, *, max_masks: int, num_threads: int
    ) -> None:
        self._vocab_size = tables.token_info.shape[1]
        counts = mask_row_counts(max_masks)

        def lower(num_masks: int) -> Any:
            if num_masks:
                shape = (num_masks, 1 + tables.token_masks.shape[1])
                packed = placement.struct(shape, jnp.uint32)
                return jax.jit(set_masks, donate_argnums=0).lower(tables, packed)
            row = init_slot(SlotInit(PADDING_SLOT, (), (), (), ()), self._vocab_size)
            specs = jax.tree.map(lambda x: placement.struct(x.shape, x.dtype), row)
            slot = placement.struct((), jnp.int32)
            return jax.jit(set_slot, donate_argnums=0).lower(tables, slot, specs)

        programs = compile_all((0, *counts), lower, num_threads=num_threads, what="slot writers")
        self._set_slot = programs[0]
        self._set_masks = {count: programs[count] for count in counts}

    def write(self, tables: SlotTables, inputs: StepInputs, masks: TokenMasks | None) -> SlotTables:
        """The tables, which are donated, with what a step wants in its slots."""
        for init in inputs.slot_inits:
            row = init_slot(init, self._vocab_size)
            tables = self._set_slot(tables, np.int32(init.slot), row)
        if masks is not None and len(masks.rows):
            count = next(size for size in self._set_masks if size >= len(masks.rows))
            packed = pack_masks(masks, inputs.row_slots, count)
            tables = self._set_masks[count](tables, packed)
        return tables
