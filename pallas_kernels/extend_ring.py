"""The tiles of keys and values that extend attention computes on, and how they get there.

One warpgroup of a block, the copier, keeps a ring of them full for the other two.  Pages of 16
bits are copied by TMA right into the ring.  Those of e4m3 are copied beside it and widened by the
copier: with four instructions for two elements that takes it about half of the time that the
others compute on a tile (at head dim 128; judged from the machine code, not measured).
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.extend_tiles import CONSUMERS, Block, ExtendPlan
from pallas_kernels.hopper import (
    MMA_ROWS,
    ceil_div,
    copy_pages,
    page_ids,
    stored_ref,
    tile_ref,
)

WIDEN_LOADS = 4  # in flight of a thread: what the copier's registers allow


@dataclass(frozen=True, slots=True)
class Shared:
    """Shared memory of a block: tiles, and barriers that say when they are full and free."""

    q_tiles: jax.Array  # [CONSUMERS, 64, H]; the output at last
    k_tiles: jax.Array  # [num_stages, block_kv, H]
    v_tiles: jax.Array
    q_full: jax.Array  # [CONSUMERS]
    k_full: jax.Array  # [num_stages]
    v_full: jax.Array
    # Copied, but not yet fit for use: e4m3, or the last values with what lies behind their end.
    v_copied: jax.Array
    k_free: jax.Array  # [num_stages]
    v_free: jax.Array
    k_copied: jax.Array | None = None
    k_stored: jax.Array | None = None  # [block_kv, H] of e4m3
    v_stored: jax.Array | None = None


def scratch_types(plan: ExtendPlan) -> dict[str, object]:
    """Types of ``Shared``."""
    stages, tile_shape = plan.config.num_stages, (plan.config.block_kv, plan.layout.head_dim)
    tiles = tile_ref((stages, *tile_shape), plan.dtype)
    full = plgpu.Barrier(num_barriers=stages, num_arrivals=plan.arrivals_per_tile)
    free = plgpu.Barrier(num_barriers=stages, num_arrivals=CONSUMERS)
    copied = plgpu.Barrier(num_arrivals=plan.pages_per_tile)
    types = {
        "q_tiles": tile_ref((CONSUMERS, MMA_ROWS, plan.layout.head_dim), plan.dtype),
        "k_tiles": tiles,
        "v_tiles": tiles,
        "q_full": plgpu.Barrier(num_barriers=CONSUMERS),
        "k_full": full,
        "v_full": full,
        "v_copied": copied,
        "k_free": free,
        "v_free": free,
    }
    if plan.is_fp8:
        stored = stored_ref(tile_shape)
        types |= {"k_copied": copied, "k_stored": stored, "v_stored": stored}
    return types


@dataclass(frozen=True, slots=True)
class _Ring:
    """The tiles of keys or of values, and where they come from."""

    pages: jax.Array
    tiles: jax.Array
    full: jax.Array
    free: jax.Array
    stored: jax.Array | None  # a tile of e4m3 on its way
    copied: jax.Array | None  # the tile is here, but not yet fit for use


@dataclass(frozen=True, slots=True)
class _Copier:
    """What the copier does of a step, for keys or for values."""

    plan: ExtendPlan
    block: Block
    page_table: jax.Array

    @property
    def last(self) -> jax.Array:
        """The last step, of which there is one."""
        return self.block.num_steps - 1

    def copy(self, step: jax.Array, ring: _Ring, full: jax.Array | None = None) -> None:
        """Start the copies of a tile, into its place once that is free."""
        slot = self.plan.slot(step)
        ids = self._ids(step)  # asked for before the wait, which hides the time they take
        self._wait_for_place(step, ring)
        self._start(ring, ids, ring.tiles.at[slot], ring.full.at[slot] if full is None else full)

    def copy_last(self, ring: _Ring) -> None:
        """``copy`` of the last tile, and 0 for what lies behind its end."""
        self.copy(self.last, ring, ring.copied)
        plgpu.barrier_wait(ring.copied)
        rest, slot = self._rest(), self.plan.slot(self.last)
        zero = self.plan.warpgroup.zero_rows_outside
        pl.when(rest < self.plan.config.block_kv)(lambda: zero(ring.tiles.at[slot], 0, rest))
        for _ in range(self.plan.arrivals_per_tile):
            plgpu.barrier_arrive(ring.full.at[slot])

    def fetch_first(self, ring: _Ring) -> None:
        """Start the copies of the first tile of e4m3."""
        self._start(ring, self._ids(jnp.int32(0)), ring.stored, ring.copied)

    def widen(self, step: jax.Array, ring: _Ring) -> None:
        """Widen a tile of e4m3 into its place, and start the copies of the next one."""
        ids = self._ids(step + 1)
        self._widen(step, ring, None)
        pl.when(step < self.last)(lambda: self._start(ring, ids, ring.stored, ring.copied))

    def widen_last(self, ring: _Ring) -> None:
        """``widen`` of the last tile, with 0 for what lies behind its end."""
        self._widen(self.last, ring, (0, self._rest()))

    def _widen(self, step: jax.Array, ring: _Ring, visible: tuple[int, jax.Array] | None) -> None:
        slot = self.plan.slot(step)
        plgpu.barrier_wait(ring.copied)
        self._wait_for_place(step, ring)
        tile = ring.tiles.at[slot]
        self.plan.warpgroup.widen(ring.stored, tile, visible, num_loads=WIDEN_LOADS)
        plgpu.barrier_arrive(ring.full.at[slot])

    def _wait_for_place(self, step: jax.Array, ring: _Ring) -> None:
        is_reused = step >= self.plan.config.num_stages
        free = ring.free.at[self.plan.slot(step)]
        pl.when(is_reused)(functools.partial(plgpu.barrier_wait, free))

    def _start(self, ring: _Ring, ids: tuple[jax.Array, ...], tile, barrier) -> None:
        head = lax.div(self.block.head, jnp.int32(self.plan.group))
        copy_pages(ring.pages, ids, head, tile, barrier)

    def _ids(self, step: jax.Array) -> tuple[jax.Array, ...]:
        plan, block = self.plan, self.block
        num_pages = ceil_div(jnp.maximum(block.end, 1), plan.layout.page_size)
        tile = block.first_tile + step
        return page_ids(self.page_table, block.row, tile, num_pages, plan.pages_per_tile)

    def _rest(self) -> jax.Array:
        """Keys of the last tile that are the row's."""
        block = self.block
        return block.end - (block.first_tile + self.last) * self.plan.config.block_kv


def bring(plan: ExtendPlan, block: Block, shared: Shared, k_pages, v_pages, page_table) -> None:
    """Keep the ring of tiles full."""
    copier = _Copier(plan, block, page_table)
    keys = _Ring(
        k_pages, shared.k_tiles, shared.k_full, shared.k_free, shared.k_stored, shared.k_copied
    )
    values = _Ring(
        v_pages, shared.v_tiles, shared.v_full, shared.v_free, shared.v_stored, shared.v_copied
    )
    move, move_last = copier.copy, copier.copy_last
    if plan.is_fp8:
        move, move_last = copier.widen, copier.widen_last

    @pl.when(block.num_steps > 0)
    def _() -> None:
        if plan.is_fp8:
            copier.fetch_first(keys)
            copier.fetch_first(values)
        move(jnp.int32(0), keys)

        @pl.loop(0, copier.last)
        def _(step: jax.Array) -> None:
            # In the order of their use: keys one step ahead of values.
            move(step + 1, keys)
            move(step, values)

        move_last(values)
