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
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

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
    tile_ref,
)
from pallas_kernels.layout import KVLayout
from pallas_kernels.tuning import DecodeConfig

COMPUTES, COPIES = 0, 1  # the two warpgroups of a block
COPIER_REGISTERS = 40


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

    Raises:
        NotImplementedError: scales of an fp8 pool.  wgmma takes its right side from shared memory
            in the dtype of q, and Mosaic turns e4m3 into it one element at a time: about 1000
            clocks a tile of 64 keys at head dim 128, whose bytes arrive in 1250.
    """
    if k_scale is not None or v_scale is not None:
        raise NotImplementedError(
            "pallas attention: given k_scale or v_scale; supported pools of bfloat16, float16 "
            "without scales; use implementation='xla'"
        )
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
    )
    return run(plan, q, k_pages, v_pages, page_table, kv_lens, interpret)


def run(
    plan: DecodePlan,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    interpret: object,
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
    results = kernel(queries, k_pages, v_pages, page_table, kv_lens)
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
class _Shared:
    """Shared memory of a block: tiles, and barriers that say when they are full and free."""

    q_tile: jax.Array  # [64, H]
    k_tiles: jax.Array  # [num_stages, block_kv, H]
    v_tiles: jax.Array
    q_full: jax.Array
    k_full: jax.Array  # [num_stages]
    v_full: jax.Array
    k_free: jax.Array
    v_free: jax.Array


def _scratch(plan: DecodePlan, dtype: jnp.dtype) -> dict[str, object]:
    """Types of ``_Shared``."""
    stages, head_dim = plan.config.num_stages, plan.layout.head_dim
    tiles = tile_ref((stages, plan.config.block_kv, head_dim), dtype)
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
    }


@dataclass(frozen=True, slots=True)
class _Block:
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
    def of(cls, plan: DecodePlan, kv_lens: jax.Array) -> "_Block":
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


def _body(plan: DecodePlan, q, k_pages, v_pages, page_table, kv_lens, *outputs, **scratch) -> None:
    """One block: (row, split, kv head)."""
    block, shared = _Block.of(plan, kv_lens), _Shared(**scratch)
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup == COPIES)
    def _() -> None:
        plgpu.set_max_registers(COPIER_REGISTERS, action="decrease")

        @pl.when(block.num_tiles > 0)
        def _() -> None:
            _copy(plan, block, shared, q, k_pages, v_pages, page_table)

    @pl.when(warpgroup == COMPUTES)
    def _() -> None:
        plgpu.set_max_registers(plan.registers, action="increase")
        out, highest, total = _attend(plan, block, shared)
        _store(plan, block, outputs, out, highest, total)


def _copy(plan: DecodePlan, block: _Block, shared: _Shared, q, k_pages, v_pages, page_table):
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
        for pages, tiles, full, free in (
            (k_pages, shared.k_tiles, shared.k_full, shared.k_free),
            (v_pages, shared.v_tiles, shared.v_full, shared.v_free),
        ):
            pl.when(is_reused)(functools.partial(plgpu.barrier_wait, free.at[slot]))
            copy_pages(pages, ids, block.head, tiles.at[slot], full.at[slot])
        return next_ids

    first = plan.first_query(block.row, block.head)
    first = lax.div(first, jnp.int32(TILE_LINES)) * TILE_LINES
    rows = pl.ds(0, plan.query_rows)
    plgpu.copy_gmem_to_smem(
        q.at[pl.ds(first, plan.query_rows)], shared.q_tile.at[rows], shared.q_full
    )
    lax.fori_loop(0, block.num_tiles, step, ids_of(jnp.int32(0)))


def _attend(plan: DecodePlan, block: _Block, shared: _Shared) -> tuple[jax.Array, ...]:
    """Unnormalised o ``f32[64, H]``, m and l ``f32[64]`` of the block's tiles."""
    warpgroup, stages = plan.warpgroup, plan.config.num_stages
    block_kv, window = plan.config.block_kv, plan.sliding_window

    def step(is_edge: bool, i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, highest, total = carry
        slot = lax.rem(i, jnp.int32(stages))
        k_tile, v_tile = shared.k_tiles.at[slot], shared.v_tiles.at[slot]
        end = block.end_key - i * block_kv  # visible are the tile's keys in [first, end)
        first = 0 if window is None else end - window
        # A barrier must not run ahead of its last wait: say "free" only to a copy that will come.
        is_awaited = i + stages < block.num_tiles if plan.waits_for_slot else False

        if plan.waits_for_data:
            plgpu.barrier_wait(shared.k_full.at[slot])
        scores = warpgroup.scores(shared.q_tile, k_tile)  # [64, block_kv]
        pl.when(is_awaited)(functools.partial(plgpu.barrier_arrive, shared.k_free.at[slot]))
        scores = base2_scores(scores, plan.scale, plan.logit_soft_cap)
        if is_edge:
            columns = warpgroup.iota(scores.shape, 1)
            scores = jnp.where(is_between(columns, first, end), scores, -jnp.inf)

        new_highest = jnp.maximum(highest, jnp.max(scores, axis=1))
        weights = jnp.exp2(scores - lax.broadcast_in_dim(new_highest, scores.shape, (0,)))
        decay = jnp.exp2(highest - new_highest)
        total = total * decay + jnp.sum(weights, axis=1)
        weights = weights.astype(shared.v_tiles.dtype)
        out = out * lax.broadcast_in_dim(decay, out.shape, (0,))

        if plan.waits_for_data:
            plgpu.barrier_wait(shared.v_full.at[slot])
        if is_edge:
            warpgroup.zero_rows_outside(v_tile, first, end)
        out = warpgroup.weighted(out, weights, v_tile)
        pl.when(is_awaited)(functools.partial(plgpu.barrier_arrive, shared.v_free.at[slot]))
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


def _store(plan: DecodePlan, block: _Block, outputs, out, highest, total) -> None:
    """Normalise, and write the group's rows: the result itself, or a split's share of it."""
    warpgroup, heads = plan.warpgroup, pl.ds(block.head * plan.group, plan.group)
    # No keys, no weights: 0 then, for a padding row's result and for an empty split alike.
    inverse = jnp.where(total > 0.0, 1.0 / total, 0.0)
    out = out * lax.broadcast_in_dim(inverse, out.shape, (0,))
    first = lax.rem(plan.first_query(block.row, block.head), jnp.int32(TILE_LINES))
    if plan.config.num_splits == 1:
        (result,) = outputs
        warpgroup.store_rows(result.at[block.row, heads], out.astype(result.dtype), first)
        return
    partial, lse = outputs
    warpgroup.store_rows(partial.at[block.split, block.row, heads], out, first)
    warpgroup.store_rows(lse.at[block.split, block.row, heads], highest + jnp.log2(total), first)
