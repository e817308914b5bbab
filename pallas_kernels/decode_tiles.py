"""What the blocks of decode attention work on: a share of one row's tiles of keys."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.hopper import TILE_LINES, Warpgroup, ceil_div, round_up
from pallas_kernels.layout import KVLayout
from pallas_kernels.tuning import DecodeConfig


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """All that is static in one call.

    ``waits_for_slot`` and ``waits_for_data`` are seams of the tests: without either wait the
    race detector must speak up.
    """

    num_rows: int
    num_heads: int
    layout: KVLayout
    scale: float
    logit_soft_cap: float | None
    sliding_window: int | None
    config: DecodeConfig
    warpgroup: Warpgroup
    is_fp8: bool = False  # the pools hold e4m3, with scales or without
    waits_for_slot: bool = True
    waits_for_data: bool = True

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.num_heads // self.layout.num_kv_heads

    @property
    def pages_per_tile(self) -> int:
        """Pages whose keys make one tile."""
        return self.config.block_kv // self.layout.page_size

    @property
    def query_rows(self) -> int:
        """Rows of q to bring in so that a group is among them wherever it starts.

        A copy into a swizzled tile must start at a multiple of eight rows: from another one TMA
        reads zeros where the next eight begin.  Groups start at multiples of gcd(G, 8).
        """
        shift = TILE_LINES - math.gcd(self.group, TILE_LINES)
        return round_up(shift + self.group, TILE_LINES)

    def first_query(self, row: jax.Array, head: jax.Array) -> jax.Array:
        """Index in ``[B * N]`` of the first query head of a group."""
        return row * self.num_heads + head * self.group

    @property
    def registers(self) -> int:
        """Per computing thread; the compiler also launches the block with that many.

        An SM has 65536: at 128 for each of 256 threads two blocks fit.  A thread holds half of
        ``head_dim`` of output and half of ``block_kv`` of scores beside about 30 of its own.
        """
        return 128 if self.layout.head_dim <= 128 and self.config.block_kv == 64 else 240


@dataclass(frozen=True, slots=True)
class Block:
    """What one block works on: ``num_tiles`` tiles of a row from ``first_tile``.

    ``end_key`` is where the row's keys end, counted from the first key of ``first_tile``.
    """

    row: jax.Array
    head: jax.Array
    split: jax.Array
    kv_len: jax.Array
    first_tile: jax.Array
    num_tiles: jax.Array  # not positive if there is nothing to do
    end_key: jax.Array

    @classmethod
    def of(cls, plan: DecodePlan, kv_lens: jax.Array) -> "Block":
        """The share of the running block: an equal run of the row's visible tiles."""
        block_kv, num_splits = plan.config.block_kv, plan.config.num_splits
        row, head, split = (lax.axis_index(name) for name in ("row", "head", "split"))
        kv_len = kv_lens[row]
        first = jnp.int32(0)
        if plan.sliding_window is not None:
            first = lax.div(jnp.maximum(kv_len - plan.sliding_window, 0), jnp.int32(block_kv))
        end = ceil_div(kv_len, block_kv)
        share = ceil_div(end - first, num_splits)
        first_tile = first + split * share
        num_tiles = jnp.minimum(share, end - first_tile)
        return cls(row, head, split, kv_len, first_tile, num_tiles, kv_len - first_tile * block_kv)
