"""Tables with one row per slot: what a row's sequence keeps on the device from step to step.

A row is written when a sequence takes the slot (``set_slot``); token counts advance where its
tokens are sampled (``record``).  Rows of features that a sequence does not use are left as the
slot's last sequence had them: nobody reads them.

Axis letters: S slots, V vocabulary, I = MAX_LOGPROB_TOKEN_IDS.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxserve.batch import PADDING_SLOT, SlotInit
from jaxserve.executor.sharding import Placement

# request.py's, which this layer may not import; a test holds them equal
MAX_LOGPROB_TOKEN_IDS = 64

# A token_info entry: how often the output holds this token, and two facts about it.
COUNT_MASK = (1 << 24) - 1
IN_PROMPT = 1 << 24
IS_STOP = 1 << 25


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class SlotTables:
    """The tables; slot 0 is padding."""

    token_info: Array  # i32[S, V]
    logit_bias: Array  # f32[S, V]
    logprob_ids: Array  # i32[S, I]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class SlotRow:
    """What ``set_slot`` writes."""

    token_info: Array | np.ndarray  # i32[V]
    logit_bias: Array | np.ndarray  # f32[V]
    logprob_ids: Array | np.ndarray  # i32[I]


def slot_bytes(vocab_size: int) -> int:
    """Size of a slot in all tables and in the table of last tokens."""
    return 4 * (2 * vocab_size + MAX_LOGPROB_TOKEN_IDS + 1)


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
        logprob_ids=tables.logprob_ids.at[slot].set(row.logprob_ids),
    )


def record(tables: SlotTables, row_slots: Array, token_ids: Array, samples: Array) -> SlotTables:
    """Counts the sampled tokens: one added to token_info at each sampling row's token.

    Donate the tables (or call it in a step that does): the update is then in place.
    """
    info = tables.token_info.at[row_slots, token_ids].add(samples.astype(jnp.int32))
    return SlotTables(info, tables.logit_bias, tables.logprob_ids)


class SlotWriter:
    """Compiles the program that writes slots before a step, and launches it.

    Args:
        tables: their shapes, nothing of them is kept.
    """

    def __init__(self, tables: SlotTables, placement: Placement) -> None:
        self._vocab_size = tables.token_info.shape[1]
        row = init_slot(SlotInit(PADDING_SLOT, (), (), (), ()), self._vocab_size)
        specs = jax.tree.map(lambda x: placement.struct(x.shape, x.dtype), row)
        slot = placement.struct((), jnp.int32)
        program = jax.jit(set_slot, donate_argnums=0).lower(tables, slot, specs)
        self._set_slot = program.compile()

    def write(self, tables: SlotTables, inits: Iterable[SlotInit]) -> SlotTables:
        """The tables, which are donated, with what a step wants in its slots."""
        for init in inits:
            row = init_slot(init, self._vocab_size)
            tables = self._set_slot(tables, np.int32(init.slot), row)
        return tables
