"""Embeddings that requests bring themselves, in place of those of token ids.

They wait in a buffer of the state, at the places of their tokens in the next EXTEND step, whose
token ids say so.  The buffer stays on the device: a step without them transfers nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxserve.batch import EMBED_TOKEN, EmbedRows
from jaxserve.executor.sharding import Placement
from jaxserve.models import GivenEmbeds

BLOCK_ROWS = 128  # written at once; the last block of some rows is padded


def buffer_shape(max_tokens: int, width: int) -> tuple[int, int]:
    """Of the buffer for steps of at most ``max_tokens``: padding may be written behind them."""
    return max_tokens + BLOCK_ROWS, width


def given_embeds(token_ids: Array, buffer: Array) -> tuple[Array, GivenEmbeds]:
    """In a trace: the ids i32[T] with 0 where an embedding is given, and which these are."""
    is_given = token_ids == EMBED_TOKEN
    return jnp.where(is_given, 0, token_ids), GivenEmbeds(is_given, buffer[: token_ids.shape[0]])


def write_block(buffer: Array, start: Array, rows: Array) -> Array:
    """Writes f32[BLOCK_ROWS, D] to the buffer from row ``start`` (i32[]) on; donate the buffer."""
    return lax.dynamic_update_slice(buffer, rows.astype(buffer.dtype), (start, 0))


class EmbedWriter:
    """Writes the embeddings of a step.  Compiles one program.

    Args:
        buffer: its shape, nothing of it is kept.
    """

    def __init__(self, buffer: Array, placement: Placement) -> None:
        start = placement.struct((), jnp.int32)
        rows = placement.struct((BLOCK_ROWS, buffer.shape[1]), jnp.float32)
        lowered = jax.jit(write_block, donate_argnums=0).lower(buffer, start, rows)
        self._write: Any = lowered.compile()

    def write(self, buffer: Array, embeds: tuple[EmbedRows, ...]) -> Array:
        """The buffer, which is donated, with ``embeds``, which are in the order of their places."""
        for rows in embeds:
            for first in range(0, len(rows.rows), BLOCK_ROWS):
                part = rows.rows[first : first + BLOCK_ROWS]
                # A block's padding is overwritten by what comes behind it, or nobody reads it.
                block = np.zeros((BLOCK_ROWS, buffer.shape[1]), np.float32)
                block[: len(part)] = part
                buffer = self._write(buffer, np.int32(rows.start + first), block)
        return buffer
