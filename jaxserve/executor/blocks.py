"""Reductions over a vocabulary-sized axis that are exact and stay in vector code.

XLA:CPU reduces a row with vector instructions, but scans it, sorts it and finds its argmax
element by element (10 to 100 times slower at 49,152 entries).  So each of these looks at one
number per block of the row first, and then only into the blocks that matter.

Axis letters: B rows, V vocabulary, J blocks, C width of a block.  No input holds NaN.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

BLOCK = 256
_TOP_BLOCK = 32
_F32_MAX = float(np.finfo(np.float32).max)


def split(x: Array, width: int = BLOCK) -> Array:
    """f32[B, V] as f32[B, J, C = width], filled with -inf up to a whole number of blocks."""
    num_rows, vocab_size = x.shape
    padding = -vocab_size % width
    if padding:
        x = jnp.pad(x, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    return x.reshape(num_rows, -1, width)


def pick(blocks: Array, block_ids: Array) -> Array:
    """[B, C]: of each row of blocks [B, J, C] the one named by block_ids i32[B]."""
    return jnp.take_along_axis(blocks, block_ids[:, None, None], axis=1, mode="clip")[:, 0]


def first(mask: Array) -> Array:
    """i32[B]: the lowest index at which mask bool[B, V] holds, V where it never does."""
    index = lax.broadcasted_iota(jnp.int32, mask.shape, 1)
    return jnp.min(jnp.where(mask, index, mask.shape[1]), axis=1)


def largest(x: Array) -> Array:
    """f32[B]: the largest value of each row of f32[B, V]; finite even where all are -inf."""
    return jnp.maximum(jnp.max(x, axis=1), -_F32_MAX)


def argmax(x: Array) -> Array:
    """i32[B]: the lowest index of the largest value of each row of f32[B, V]."""
    return lax.platform_dependent(x, cpu=_argmax_by_blocks, default=_argmax)


def _argmax(x: Array) -> Array:
    return lax.argmax(x, 1, jnp.int32)


def _argmax_by_blocks(x: Array) -> Array:
    blocks = split(x)
    maxima = jnp.max(blocks, axis=2)  # [B, J]
    maximum = jnp.max(maxima, axis=1, keepdims=True)  # [B, 1]
    block_ids = first(maxima == maximum)
    return block_ids * BLOCK + first(pick(blocks, block_ids) == maximum)


def top(x: Array, k: int) -> tuple[Array, Array]:
    """The k <= V largest values f32[B, k], descending, and their indices i32[B, k].

    The answer of ``lax.top_k``, ties included (lowest index first): the k largest values lie
    in the k blocks with the largest maxima, and those are looked at in order of index.
    """
    blocks = split(x, _TOP_BLOCK)
    if blocks.shape[1] <= k:
        values, ids = lax.top_k(x, k)
        return values, ids
    _, block_ids = lax.top_k(jnp.max(blocks, axis=2), k)
    block_ids = jnp.sort(block_ids, axis=1)  # [B, k]
    candidates = jnp.take_along_axis(blocks, block_ids[:, :, None], axis=1, mode="clip")
    values, places = lax.top_k(candidates.reshape(x.shape[0], -1), k)
    ids = jnp.take_along_axis(block_ids, places // _TOP_BLOCK, axis=1, mode="clip")
    return values, ids * _TOP_BLOCK + places % _TOP_BLOCK


def weight_sums(logits: Array, maxima: Array, temperature: Array) -> Array:
    """f32[B]: the row sums of exp((logits - maxima) / temperature); both f32[B]."""
    scaled = (split(logits) - maxima[:, None, None]) / temperature[:, None, None]
    return jnp.sum(jnp.exp(scaled), axis=(1, 2))
