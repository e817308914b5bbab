"""Decode attention over pages on Hopper: split-K flash decoding with grouped queries packed.

For one row and one kv head, with s the scores of the group's G query heads in base 2,

    s = q K^T * scale * log2(e),   m = max s,   p = 2^(s - m),   l = sum p,   o = p V / l

is computed tile by tile of ``block_kv`` keys with a running m and l (FlashAttention-2,
https://arxiv.org/abs/2307.08691).  A row's tiles are divided among ``num_splits`` blocks
(Flash-Decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html); each leaves its o in
f32 and its log-sum-exp L = m + log2 l, and one XLA fusion combines them:

    out = sum_i 2^(L_i - max L) o_i / sum_i 2^(L_i - max L)

A block is two warpgroups (FlashAttention-3, https://arxiv.org/abs/2407.08608): one only starts
TMA copies, a page at a time, the other computes.  The G <= 16 query heads of a kv head are
some rows of a 64-row ``wgmma``; the other rows hold garbage that is never stored.  Tensor cores
have time to spare here: at head dim 128 a tile of 64 keys takes about 0.3 us of them and 1.4 us
of its SM's share of memory bandwidth.  So what counts is bytes in flight, and two blocks per SM.

Tiles of e4m3 are widened by the warpgroup that computes.  They arrive in half of the time, one for
each of an SM's two blocks in 1.4 us, about 2500 clocks; of those a thread spends some 350 on
instructions that widen and 300 on the softmax (read off the machine code, not measured).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.decode_tiles import Block, DecodePlan
from pallas_kernels.hopper import (
    COMPILER_PARAMS,
    MMA_ROWS,
    TILE_LINES,
    Warpgroup,
    base2_scores,
    ceil_div,
    copy_pages,
    is_between,
    page_ids,
    round_up,
    stacked_scales,
    stored_ref,
    tile_ref,
)
from pallas_kernels.layout import FP8, KVLayout
from pallas_kernels.tuning import DecodeConfig

Visible = tuple[jax.Array | int, jax.Array] | None  # the tile's keys in [first, end); None: all

COMPUTES, COPIES = 0, 1  # the two warpgroups of a block
COPIER_REGISTERS = 40


def paged_decode_attention(
    q: jax.Array,  # [B, N, H]
    k_pages: jax.Array,  # [P, K, page_size, H]
    v_pages: jax.Array,  # [P, K, page_size, H]
    page_table: jax.Array,  # i32[B, W]
    kv_lens: jax.Array,  # i32[B]; 0 for padding rows, whose output is 0
    *,
    scale: float,
    logit_soft_cap: float | None,
    sliding_window: int | None,
    k_scale: jax.Array | None,
    v_scale: jax.Array | None,
    config: DecodeConfig,
    interpret: object,
) -> jax.Array:  # [B, N, H], dtype of q
    """One query per row, at the row's last position.

    ``k_scale`` and ``v_scale`` are of pools of e4m3 and of no others; None is 1.
    """
    num_rows, num_heads, _ = q.shape
    plan = DecodePlan(
        num_rows=num_rows,
        num_heads=num_heads,
        layout=KVLayout.of(k_pages),
        scale=scale,
        logit_soft_cap=logit_soft_cap,
        sliding_window=sliding_window,
        config=config,
        warpgroup=Warpgroup(interpreted=bool(interpret)),
        is_fp8=k_pages.dtype == FP8,
    )
    scales = stacked_scales(k_scale, v_scale)
    return run(plan, q, k_pages, v_pages, page_table, kv_lens, interpret, scales)


def run(
    plan: DecodePlan,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    interpret: object,
    scales: jax.Array | None = None,  # f32[2] of the keys and of the values; of e4m3 only
) -> jax.Array:
    """The kernel and, if rows are split, the combination."""
    queries = q.reshape(-1, plan.layout.head_dim)  # [B * N, H]
    # Whole eights for TMA: XLA fuses this into what makes q, and mostly there is nothing to add.
    # Past the end TMA gives zeros, but the interpreter must not be asked for it.
    num_queries = max(round_up(len(queries), TILE_LINES), plan.query_rows)
    if plan.warpgroup.interpreted:
        num_queries += plan.query_rows
    if num_queries != len(queries):
        queries = jnp.pad(queries, ((0, num_queries - len(queries)), (0, 0)))
    split = plan.config.num_splits
    outputs = (jax.ShapeDtypeStruct(q.shape, q.dtype),)
    if split > 1:
        shapes = (split, *q.shape), (split, *q.shape[:2])
        outputs = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    kernel = plgpu.kernel(
        functools.partial(_body, plan),
        out_type=outputs,
        scratch_types=_scratch(plan, q.dtype),
        # Heads fastest: the heads of a page lie side by side in memory.
        grid=(plan.num_rows, split, plan.layout.num_kv_heads),
        grid_names=("row", "split", "head"),
        num_threads=2,
        thread_name="warpgroup",
        compiler_params=COMPILER_PARAMS,
        kernel_name="paged_decode_attention",
        interpret=interpret,
    )
    operands = (queries, k_pages, v_pages, page_table, kv_lens)
    results = kernel(*operands, *(() if scales is None else (scales,)))
    return results[0] if split == 1 else combine(*results, q.dtype)


def combine(partial: jax.Array, lse: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Merge the splits' results.

    Args:
        partial: ``f32[S, B, N, H]``, each normalised; 0 where a split had no keys.
        lse: ``f32[S, B, N]``, log-sum-exp in base 2; -inf where a split had no keys.
        dtype: of the result.

    Returns:
        ``[B, N, H]``; 0 where no split had keys.
    """
    num_splits, _, num_heads, _ = partial.shape
    # A gather where a broadcast would do: XLA moves arithmetic in front of a broadcast, where it
    # is cheaper and a kernel of its own.  This way all of it is one fusion (tests count them).
    out_shape = partial.shape[1:]
    row, head = (lax.broadcasted_iota(jnp.int32, out_shape, axis) for axis in (0, 1))
    position = row * num_heads + head
    lses = [jnp.take(lse[split].reshape(-1), position, mode="clip") for split in range(num_splits)]

    highest = functools.reduce(jnp.maximum, lses)
    highest = jnp.where(highest == -jnp.inf, 0.0, highest)  # -inf - -inf is NaN
    weights = [jnp.exp2(value - highest) for value in lses]
    out = sum(weight * partial[split] for split, weight in enumerate(weights))
    total = jnp.maximum(sum(weights), jnp.finfo(jnp.float32).tiny)
    return (out / total).astype(dtype)


@dataclass(frozen=True, slots=True)
class _Ring:
    """Tiles of keys or of values as a pool has them, and where e4m3 becomes what q is."""

    tiles: jax.Array  # [num_stages, block_kv, H]
    full: jax.Array  # [num_stages]
    free: jax.Array
    wide: jax.Array | None  # [block_kv, H], of an e4m3 ring


@dataclass(frozen=True, slots=True)
class _Shared:
    """Shared memory of a block: tiles, and barriers that say when they are full and free."""

    q_tile: jax.Array  # [64, H]
    k_tiles: jax.Array
    v_tiles: jax.Array
    q_full: jax.Array
    k_full: jax.Array
    v_full: jax.Array
    k_free: jax.Array
    v_free: jax.Array
    k_wide: jax.Array | None = None
    v_wide: jax.Array | None = None

    @property
    def keys(self) -> _Ring:
        return _Ring(self.k_tiles, self.k_full, self.k_free, self.k_wide)

    @property
    def values(self) -> _Ring:
        return _Ring(self.v_tiles, self.v_full, self.v_free, self.v_wide)


def _scratch(plan: DecodePlan, dtype: jnp.dtype) -> dict[str, object]:
    """Types of ``_Shared``."""
    stages, head_dim = plan.config.num_stages, plan.layout.head_dim
    tile_shape = (plan.config.block_kv, head_dim)
    if plan.is_fp8:
        wide = tile_ref(tile_shape, dtype)
        tiles, wide_tiles = stored_ref((stages, *tile_shape)), {"k_wide": wide, "v_wide": wide}
    else:
        tiles, wide_tiles = tile_ref((stages, *tile_shape), dtype), {}
    full = plgpu.Barrier(num_barriers=stages, num_arrivals=plan.pages_per_tile)
    free = plgpu.Barrier(num_barriers=stages)
    return {
        "q_tile": tile_ref((MMA_ROWS, head_dim), dtype),
        "k_tiles": tiles,
        "v_tiles": tiles,
        "q_full": plgpu.Barrier(),
        "k_full": full,
        "v_full": full,
        "k_free": free,
        "v_free": free,
        **wide_tiles,
    }


def _body(plan: DecodePlan, q, k_pages, v_pages, page_table, kv_lens, *refs, **scratch) -> None:
    """One block: (row, split, kv head)."""
    shared, warpgroup = _Shared(**scratch), lax.axis_index("warpgroup")
    num_outputs = 1 if plan.config.num_splits == 1 else 2
    outputs = refs[-num_outputs:]
    scales = refs[0] if len(refs) > num_outputs else None

    # Each role works out its share for itself: what both need would have to be kept in registers
    # of the lesser of the two.
    @pl.when(warpgroup == COPIES)
    def _() -> None:
        plgpu.set_max_registers(COPIER_REGISTERS, action="decrease")
        block = Block.of(plan, kv_lens)

        @pl.when(block.num_tiles > 0)
        def _() -> None:
            _copy(plan, block, shared, q, k_pages, v_pages, page_table)

    @pl.when(warpgroup == COMPUTES)
    def _() -> None:
        plgpu.set_max_registers(plan.registers, action="increase")
        block = Block.of(plan, kv_lens)
        out, highest, total = _attend(plan, block, shared, scales)
        v_scale = 1.0 if scales is None else scales[1]
        _store(plan, block, outputs, out, highest, total, v_scale)


def _copy(plan: DecodePlan, block: Block, shared: _Shared, q, k_pages, v_pages, page_table):
    """Keep the ring of tiles full."""
    stages, page_size = plan.config.num_stages, plan.layout.page_size
    num_pages = ceil_div(block.kv_len, page_size)

    def ids_of(i: jax.Array) -> tuple[jax.Array, ...]:
        tile = block.first_tile + i
        return page_ids(page_table, block.row, tile, num_pages, plan.pages_per_tile)

    def step(i: jax.Array, ids: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        slot = lax.rem(i, jnp.int32(stages))
        next_ids = ids_of(i + 1)  # asked for now, so that they are here after the waits
        is_reused = i >= stages if plan.waits_for_slot else False
        for pages, ring in ((k_pages, shared.keys), (v_pages, shared.values)):
            pl.when(is_reused)(functools.partial(plgpu.barrier_wait, ring.free.at[slot]))
            copy_pages(pages, ids, block.head, ring.tiles.at[slot], ring.full.at[slot])
        return next_ids

    first = plan.first_query(block.row, block.head)
    first = lax.div(first, jnp.int32(TILE_LINES)) * TILE_LINES
    rows = pl.ds(0, plan.query_rows)
    plgpu.copy_gmem_to_smem(
        q.at[pl.ds(first, plan.query_rows)], shared.q_tile.at[rows], shared.q_full
    )
    lax.fori_loop(0, block.num_tiles, step, ids_of(jnp.int32(0)))


def _attend(
    plan: DecodePlan, block: Block, shared: _Shared, scales: jax.Array | None
) -> tuple[jax.Array, ...]:
    """Unnormalised o ``f32[64, H]``, m and l ``f32[64]`` of the block's tiles."""
    warpgroup = plan.warpgroup
    block_kv, window = plan.config.block_kv, plan.sliding_window

    def step(is_edge: bool, i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, highest, total = carry
        end = block.end_key - i * block_kv  # visible are the tile's keys in [first, end)
        first = 0 if window is None else end - window
        visible = (first, end) if is_edge else None
        keys, values = (_Tile(plan, block, i, ring) for ring in (shared.keys, shared.values))
        if plan.is_fp8:  # before there are scores or weights: they leave no registers for it
            keys.widen(None)
            values.widen(visible)

        # Read in every step: kept, it would be one register too many.
        scale = plan.scale if scales is None else plan.scale * scales[0]
        scores = keys.use(None, lambda tile: warpgroup.scores(shared.q_tile, tile))
        scores = base2_scores(scores, scale, plan.logit_soft_cap)
        if is_edge:
            columns = warpgroup.iota(scores.shape, 1)
            scores = jnp.where(is_between(columns, first, end), scores, -jnp.inf)

        new_highest = jnp.maximum(highest, jnp.max(scores, axis=1))
        weights = jnp.exp2(scores - lax.broadcast_in_dim(new_highest, scores.shape, (0,)))
        decay = jnp.exp2(highest - new_highest)
        total = total * decay + jnp.sum(weights, axis=1)
        weights = weights.astype(shared.q_tile.dtype)
        out = out * lax.broadcast_in_dim(decay, out.shape, (0,))

        out = values.use(visible, lambda tile: warpgroup.weighted(out, weights, tile))
        return out, new_highest, total

    carry = (
        warpgroup.full((MMA_ROWS, plan.layout.head_dim), 0.0),
        warpgroup.full((MMA_ROWS,), -jnp.inf),
        warpgroup.full((MMA_ROWS,), 0.0),
    )
    edge, inner = functools.partial(step, True), functools.partial(step, False)
    pl.when(block.num_tiles > 0)(functools.partial(plgpu.barrier_wait, shared.q_full))
    # Masks cost registers, of which there are none to spare: keep them out of the loop.
    first_inner = jnp.int32(0)
    if window is not None:
        is_cut = (block.end_key > window) & (block.num_tiles > 0)
        carry = lax.cond(is_cut, functools.partial(edge, jnp.int32(0)), lambda carry: carry, carry)
        first_inner = is_cut.astype(jnp.int32)
    end_inner = jnp.minimum(block.num_tiles, lax.div(block.end_key, jnp.int32(block_kv)))
    end_inner = jnp.maximum(first_inner, end_inner)
    carry = lax.fori_loop(first_inner, end_inner, inner, carry)
    is_cut = end_inner < block.num_tiles  # by the row's end: at most its last tile
    return lax.cond(is_cut, functools.partial(edge, end_inner), lambda carry: carry, carry)


@dataclass(frozen=True, slots=True)
class _Tile:
    """Tile i of a ring, for the warpgroup that computes."""

    plan: DecodePlan
    block: Block
    i: jax.Array
    ring: _Ring

    @property
    def slot(self) -> jax.Array:
        """Where in the ring it lies."""
        return lax.rem(self.i, jnp.int32(self.plan.config.num_stages))

    def wait(self) -> None:
        """Until it has been copied."""
        if self.plan.waits_for_data:
            plgpu.barrier_wait(self.ring.full.at[self.slot])

    def give_back(self) -> None:
        """Say that its place is free, but only to a copy that will come.

        A barrier must not run ahead of its last wait.
        """
        if self.plan.waits_for_slot:
            is_awaited = self.i + self.plan.config.num_stages < self.block.num_tiles
            arrive = functools.partial(plgpu.barrier_arrive, self.ring.free.at[self.slot])
            pl.when(is_awaited)(arrive)

    def widen(self, visible: Visible) -> None:
        """Make numbers of e4m3, which frees its place."""
        self.wait()
        # All that fit into the registers: with f16 ptxas leaves none for a second one.
        num_loads = 1 if self.ring.wide.dtype == jnp.float16 else 2
        stored = self.ring.tiles.at[self.slot]
        self.plan.warpgroup.widen(stored, self.ring.wide, visible, num_loads=num_loads)
        self.give_back()

    def use(self, visible: Visible, product: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """What ``product`` makes of the tile, whose rows outside ``visible`` are 0 by then."""
        if self.ring.wide is not None:
            return product(self.ring.wide)
        self.wait()
        tile = self.ring.tiles.at[self.slot]
        if visible is not None:
            self.plan.warpgroup.zero_rows_outside(tile, *visible)
        results = product(tile)
        self.give_back()
        return results


def _store(plan: DecodePlan, block: Block, outputs, out, highest, total, v_scale) -> None:
    """Normalise, and write the group's rows: the result itself, or a split's share of it."""
    warpgroup, heads = plan.warpgroup, pl.ds(block.head * plan.group, plan.group)
    # No keys, no weights: 0 then, for a padding row's result and for an empty split alike.
    inverse = jnp.where(total > 0.0, v_scale / total, 0.0)
    out = out * lax.broadcast_in_dim(inverse, out.shape, (0,))
    first = lax.rem(plan.first_query(block.row, block.head), jnp.int32(TILE_LINES))
    if plan.config.num_splits == 1:
        (result,) = outputs
        warpgroup.store_rows(result.at[block.row, heads], out.astype(result.dtype), first)
        return
    partial, lse = outputs
    warpgroup.store_rows(partial.at[block.split, block.row, heads], out, first)
    warpgroup.store_rows(lse.at[block.split, block.row, heads], highest + jnp.log2(total), first)
