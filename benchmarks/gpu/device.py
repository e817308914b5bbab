"""The jax device under test: does it still work, and all of its free memory full of NaN."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

# Blocks that are filled with NaN: first of most of the free memory, then of what lies in between.
LARGE_BLOCK = 256 << 20
LARGE_SHARE = 0.7  # never all: an allocator that is asked for too much waits for seconds
SMALL_BLOCKS = ((16 << 20, 8), (1 << 20, 16), (1 << 16, 32))  # bytes, how many


def is_healthy() -> bool:
    """Whether the device still computes.  A kernel that faults leaves a context that does not."""
    try:
        return int(jnp.arange(8).sum()) == 28
    except Exception:  # whatever it says, it is unusable
        return False


def is_cuda() -> bool:
    return jax.devices()[0].platform in ("gpu", "cuda")


@dataclass(frozen=True, slots=True)
class Poison:
    """Addresses that held NaN when they were given back: (first, end) of each block."""

    blocks: tuple[tuple[int, int], ...]

    def covers(self, array: jax.Array) -> bool:
        """Whether ``array`` has taken such memory: what was never written to it is NaN."""
        first = array.unsafe_buffer_pointer()
        return any(start <= first < end for start, end in self.blocks)


def poison_free_memory(out: jax.ShapeDtypeStruct) -> Poison:
    """Fill what the next program may allocate with NaN: outputs, and temporaries too.

    An allocator with a pool of its own (CUDA) has most of it filled, and the smaller holes in
    it; elsewhere a buffer of the output's size is.
    """
    stats = jax.devices()[0].memory_stats() or {}
    taken = []
    if "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats["bytes_in_use"]
        taken = [_nans(LARGE_BLOCK) for _ in range(int(free * LARGE_SHARE) // LARGE_BLOCK)]
        taken += [_nans(size) for size, count in SMALL_BLOCKS for _ in range(count)]
    taken.append(_nans(math.prod(out.shape) * out.dtype.itemsize))
    jax.block_until_ready(taken)
    blocks = tuple((p := block.unsafe_buffer_pointer(), p + block.nbytes) for block in taken)
    for block in taken:
        block.delete()
    return Poison(blocks)


def _nans(num_bytes: int) -> jax.Array:
    # NaN as bf16, f16 and f32 alike
    return jnp.full((-(-num_bytes // 4),), 0x7FFF7FFF, jnp.uint32)
