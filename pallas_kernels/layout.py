"""Where keys and values lie, and the letters that name their axes.

Axes: T tokens of a step, B rows, W pages per row, P pages of the pool, N query heads,
K key/value heads, G = N / K query heads per kv head, H head dim.

A pool is ``[P, K, page_size, H]``: one (page, head) tile is contiguous, so that a kernel
brings it in with one copy.  Page 0 is the null page: padding writes to it and reads from it,
and no row with a length owns it.  A *write slot* is ``page * page_size + offset``.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

# A pool of this dtype holds the bits of bfloat16.  XLA:CPU widens a bf16 scatter, and with it the
# whole pool, to f32; integers it scatters where they lie (6 µs instead of 3.7 ms for 2048 pages
# of [3, 16, 64]), at half the bytes of f32.
BF16_BITS = jnp.dtype(jnp.uint16)


FP8 = jnp.dtype(jnp.float8_e4m3fn)
# A pool of this dtype holds the bits of e4m3, for the same reason: 2048 pages of [3, 16, 64] take
# XLA:CPU 73 ms to write to, as numbers.
FP8_BITS = jnp.dtype(jnp.uint8)
FP8_MAX = 448.0  # the largest finite value of e4m3 (https://arxiv.org/abs/2209.05433)


def to_stored(values: jax.Array, dtype: jnp.dtype, scale: jax.Array | None = None) -> jax.Array:
    """Keys or values as a pool of ``dtype`` holds them: divided by ``scale`` f32[], if any.

    fp8 saturates at its largest finite value: e4m3 has no infinity, a cast beyond it gives NaN.
    """
    if scale is not None:
        values = values.astype(jnp.float32) / scale
    if dtype == BF16_BITS:
        return lax.bitcast_convert_type(values.astype(jnp.bfloat16), jnp.uint16)
    if dtype in (FP8, FP8_BITS):
        values = values.astype(jnp.float32)
        values = jnp.clip(values, -FP8_MAX, FP8_MAX).astype(FP8)
        return values if dtype == FP8 else lax.bitcast_convert_type(values, FP8_BITS)
    return values.astype(dtype)


def from_stored(tiles: jax.Array) -> jax.Array:
    """What a pool holds as numbers: f32 from bits and from fp8, anything else as it is."""
    if tiles.dtype == BF16_BITS:
        # bf16 is the upper half of f32
        return lax.bitcast_convert_type(tiles.astype(jnp.uint32) << 16, jnp.float32)
    if tiles.dtype == FP8_BITS:
        tiles = lax.bitcast_convert_type(tiles, FP8)
    return tiles.astype(jnp.float32) if tiles.dtype == FP8 else tiles


def compute_dtype(stored: jnp.dtype) -> jnp.dtype:
    """The dtype of ``from_stored`` of a pool of dtype ``stored``."""
    is_widened = stored in (BF16_BITS, FP8, FP8_BITS)
    return jnp.dtype(jnp.float32) if is_widened else jnp.dtype(stored)


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Static sizes of one layer's pool."""

    num_pages: int
    num_kv_heads: int
    page_size: int
    head_dim: int

    @classmethod
    def of(cls, pages: jax.Array) -> "KVLayout":
        """The layout of a pool ``[P, K, page_size, H]``."""
        if pages.ndim != 4:
            raise ValueError(
                f"a KV pool has shape [P, K, page_size, H]; got {pages.ndim} axes: {pages.shape}"
            )
        return cls(*pages.shape)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``[P, K, page_size, H]``."""
        return (self.num_pages, self.num_kv_heads, self.page_size, self.head_dim)
