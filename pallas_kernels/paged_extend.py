"""Extend attention over pages on Hopper: ragged, causal flash attention with a cached prefix.

For one query head, with s the scores of a row's queries against its keys in base 2,

    s = q K^T * scale * log2(e),   m = max s,   p = 2^(s - m),   l = sum p,   o = p V / l

is computed in tiles with a running m and l (FlashAttention-2, https://arxiv.org/abs/2307.08691).
First, chunked and cached prefill and decode rows differ only in where a row's queries begin: they
are its last positions.  ``extend_tiles`` says which queries and keys a block works on.

A block is three warpgroups (FlashAttention-3, https://arxiv.org/abs/2407.08608): two compute 64
queries each, one starts TMA copies, a page at a time, into a ring of tiles.  Softmax would leave
the tensor cores idle for nearly half of the time (at head dim 128 a tile of 64 x 128 takes 1024
cycles of products and about 800 of everything else), so it runs while products do:

    issue S[i + 1] = Q K[i + 1]^T;   p, m, l from S[i] meanwhile;   then   O += p V[i]

and while one warpgroup waits, the other's products fill the gap.  To run softmax beside ``p V``
too, two products would be in flight, the second with its left side in registers: ptxas serialises
those.

Tiles that every query sees whole take a loop without masks; the others are those on the diagonal
and at the edges of the window.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.extend_tiles import CONSUMERS, Block, ExtendPlan, Rows, tile_table
from pallas_kernels.hopper import (
    COMPILER_PARAMS,
    LOG2E,
    MMA_ROWS,
    Warpgroup,
    base2_scores,
    ceil_div,
    copy_pages,
    page_ids,
    tile_ref,
)
from pallas_kernels.layout import KVLayout
from pallas_kernels.tuning import ExtendConfig

LEAST = -1e30  # below every score, but finite: -inf - -inf is NaN
# Of a thread.  A block of 384 is launched with 168 each, and may share those out anew: 504 for
# one of each warpgroup.
CONSUMER_REGISTERS = 232
COPIER_REGISTERS = 40


def paged_extend_attention(
    q: jax.Array,  # [T, N, H]
    k_pages: jax.Array,  # [P, K, page_size, H]
    v_pages: jax.Array,  # [P, K, page_size, H]
    page_table: jax.Array,  # i32[B, W]
    kv_lens: jax.Array,  # i32[B]; including this step's tokens
    q_starts: jax.Array,  # i32[B + 1]; row b owns queries [q_starts[b], q_starts[b + 1])
    *,
    scale: float,
    logit_soft_cap: float | None,
    sliding_window: int | None,
    k_scale: jax.Array | None,
    v_scale: jax.Array | None,
    config: ExtendConfig,
    interpret: object,
) -> jax.Array:  # [T, N, H], dtype of q; tokens of no row are 0
    """Causal attention of ragged queries, each row's ending at its ``kv_len``.

    Raises:
        NotImplementedError: pools that are not of q's dtype, or scales.
    """
    if k_pages.dtype != q.dtype or k_scale is not None or v_scale is not None:
        # 8-bit wgmma wants V with its keys side by side in memory, where a page has H.
        raise NotImplementedError(
            f"pallas extend attention: given pools of {k_pages.dtype} for q of {q.dtype}; "
            "supported are pools of q's dtype, which have no scales; use implementation='xla'"
        )
    plan = ExtendPlan(
        num_tokens=q.shape[0],
        num_heads=q.shape[1],
        layout=KVLayout.of(k_pages),
        dtype=q.dtype,
        scale=scale,
        logit_soft_cap=logit_soft_cap,
        sliding_window=sliding_window,
        config=config,
        warpgroup=Warpgroup(interpreted=bool(interpret)),
    )
    return run(plan, q, k_pages, v_pages, page_table, kv_lens, q_starts, interpret)


def run(
    plan: ExtendPlan,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    q_starts: jax.Array,
    interpret: object,
) -> jax.Array:
    """The table of tiles and the kernel."""
    tiles = tile_table(q_starts, kv_lens, plan.padded_tokens)
    queries = jnp.pad(q, ((0, plan.padded_tokens - plan.num_tokens), (0, 0), (0, 0)))
    kernel = plgpu.kernel(
        functools.partial(_body, plan),
        out_type=jax.ShapeDtypeStruct(queries.shape, q.dtype),
        scratch_types=_scratch(plan),
        # Heads fastest: those that share a kv head run together and share its tiles in L2.
        grid=(tiles.shape[0], plan.num_heads),
        grid_names=("tile", "head"),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        compiler_params=COMPILER_PARAMS,
        kernel_name="paged_extend_attention",
        interpret=interpret,
    )
    return kernel(queries, k_pages, v_pages, page_table, tiles)[: plan.num_tokens]


@dataclass(frozen=True, slots=True)
class _Shared:
    """Shared memory of a block: tiles, and barriers that say when they are full and free."""

    q_tiles: jax.Array  # [CONSUMERS, 64, H]; the output at last
    k_tiles: jax.Array  # [num_stages, block_kv, H]
    v_tiles: jax.Array
    q_full: jax.Array  # [CONSUMERS]
    k_full: jax.Array  # [num_stages]
    v_full: jax.Array
    v_copied: jax.Array  # the last tile is here, but not yet without what lies behind its end
    k_free: jax.Array  # [num_stages]
    v_free: jax.Array


def _scratch(plan: ExtendPlan) -> dict[str, object]:
    """Types of ``_Shared``."""
    stages, head_dim = plan.config.num_stages, plan.layout.head_dim
    tiles = tile_ref((stages, plan.config.block_kv, head_dim), plan.dtype)
    full = plgpu.Barrier(num_barriers=stages, num_arrivals=plan.pages_per_tile)
    free = plgpu.Barrier(num_barriers=stages, num_arrivals=CONSUMERS)
    return {
        "q_tiles": tile_ref((CONSUMERS, MMA_ROWS, head_dim), plan.dtype),
        "k_tiles": tiles,
        "v_tiles": tiles,
        "q_full": plgpu.Barrier(num_barriers=CONSUMERS),
        "k_full": full,
        "v_full": full,
        "v_copied": plgpu.Barrier(num_arrivals=plan.pages_per_tile),
        "k_free": free,
        "v_free": free,
    }


def _body(plan: ExtendPlan, q, k_pages, v_pages, page_table, tiles, out, **scratch) -> None:
    """One block: (tile of queries, query head)."""
    shared, warpgroup = _Shared(**scratch), lax.axis_index("warpgroup")

    # Each role reads the table for itself: what both need would have to be kept in registers of
    # the lesser of the two.
    @pl.when(warpgroup < CONSUMERS)
    def _() -> None:
        plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
        block = Block.of(plan, tiles)

        @pl.when(block.count > 0)
        def _() -> None:
            values = _consume(plan, block, shared, q, warpgroup)
            # Read again rather than kept: all registers are taken in between.
            _store(plan, Block.of(plan, tiles), shared, values, out, warpgroup)

    @pl.when(warpgroup == CONSUMERS)
    def _() -> None:
        plgpu.set_max_registers(COPIER_REGISTERS, action="decrease")
        block = Block.of(plan, tiles)
        pl.when(block.count > 0)(lambda: _copy(plan, block, shared, k_pages, v_pages, page_table))


def _copy(plan: ExtendPlan, block: Block, shared: _Shared, k_pages, v_pages, page_table) -> None:
    """Keep the ring of tiles full."""
    head = lax.div(block.head, jnp.int32(plan.group))
    num_pages = ceil_div(jnp.maximum(block.end, 1), plan.layout.page_size)
    last = block.num_steps - 1

    def copy(step, pages, tiles, full, free) -> None:
        # The ids are asked for before the wait, which hides the time they take.
        tile = block.first_tile + step
        ids = page_ids(page_table, block.row, tile, num_pages, plan.pages_per_tile)
        slot = plan.slot(step)
        is_reused = step >= plan.config.num_stages
        pl.when(is_reused)(functools.partial(plgpu.barrier_wait, free.at[slot]))
        copy_pages(pages, ids, head, tiles.at[slot], full)

    def copy_k(step: jax.Array) -> None:
        full = shared.k_full.at[plan.slot(step)]
        copy(step, k_pages, shared.k_tiles, full, shared.k_free)

    def copy_v(step: jax.Array, full: jax.Array) -> None:
        copy(step, v_pages, shared.v_tiles, full, shared.v_free)

    @pl.when(block.num_steps > 0)
    def _() -> None:
        copy_k(jnp.int32(0))

        @pl.loop(0, last)
        def _(step: jax.Array) -> None:
            # In the order of their use: keys one step ahead of values.
            copy_k(step + 1)
            copy_v(step, shared.v_full.at[plan.slot(step)])

        slot = plan.slot(last)
        copy_v(last, shared.v_copied)
        plgpu.barrier_wait(shared.v_copied)
        rest = block.end - (block.first_tile + last) * plan.config.block_kv
        v_tile = shared.v_tiles.at[slot]
        pl.when(rest < plan.config.block_kv)(
            lambda: plan.warpgroup.zero_rows_outside(v_tile, 0, rest)
        )
        for _ in range(plan.pages_per_tile):
            plgpu.barrier_arrive(shared.v_full.at[slot])


def _consume(plan: ExtendPlan, block: Block, shared: _Shared, q, warpgroup):
    """Attention of one warpgroup's rows over the block's tiles of keys: ``[64, H]``."""
    rows = Rows.of(plan, block, warpgroup)
    q_tile, q_full = shared.q_tiles.at[warpgroup], shared.q_full.at[warpgroup]

    def attend() -> tuple[jax.Array, jax.Array]:
        plgpu.copy_gmem_to_smem(q.at[pl.ds(rows.token, MMA_ROWS), block.head], q_tile, q_full)
        plgpu.barrier_wait(q_full)
        return _attend(plan, block, rows, shared, q_tile)

    _pass_by(plan, block, shared, jnp.int32(0), rows.begin)
    out, total = lax.cond(rows.begin < rows.end, attend, lambda: _nothing(plan))
    _pass_by(plan, block, shared, rows.end, block.num_steps)
    inverse = jnp.where(total > 0.0, 1.0 / total, 0.0)
    return (out * lax.broadcast_in_dim(inverse, out.shape, (0,))).astype(plan.dtype)


def _nothing(plan: ExtendPlan) -> tuple[jax.Array, jax.Array]:
    """o and l before any step."""
    full = plan.warpgroup.full
    return full((MMA_ROWS, plan.layout.head_dim), 0.0), full((MMA_ROWS,), 0.0)


def _store(plan: ExtendPlan, block: Block, shared: _Shared, values, out, warpgroup) -> None:
    """Write a warpgroup's rows, and no others': by TMA if all 64 are its own."""
    rows = Rows.of(plan, block, warpgroup)
    target = out.at[pl.ds(rows.token, MMA_ROWS), block.head]
    is_whole = (rows.low == 0) & (rows.high == MMA_ROWS)

    @pl.when(is_whole)
    def _() -> None:
        staging = shared.q_tiles.at[warpgroup]
        staging[...] = values
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(staging, target)
        plgpu.wait_smem_to_gmem(0)

    @pl.when(~is_whole)
    def _() -> None:
        plan.warpgroup.store_rows_between(target, values, rows.low, rows.high)


def _pass_by(plan: ExtendPlan, block: Block, shared: _Shared, begin, end) -> None:
    """Let the steps ``[begin, end)`` go, of which no query here sees a key."""

    @pl.loop(begin, end)
    def _(step: jax.Array) -> None:
        slot = plan.slot(step)
        plgpu.barrier_wait(shared.k_full.at[slot])
        _free(plan, block, shared.k_free, step)
        plgpu.barrier_wait(shared.v_full.at[slot])
        _free(plan, block, shared.v_free, step)


def _free(plan: ExtendPlan, block: Block, free: jax.Array, step: jax.Array) -> None:
    """Tell the copier that this warpgroup is done with the tile of a step.

    Only if a later step will take its place: the interpreter wants every completion of a barrier
    to be waited for.
    """
    is_awaited = step + plan.config.num_stages < block.num_steps
    pl.when(is_awaited)(functools.partial(plgpu.barrier_arrive, free.at[plan.slot(step)]))


Carry = tuple[jax.Array, jax.Array, jax.Array]  # o f32[64, H], m f32[64], l f32[64]


def _attend(plan: ExtendPlan, block: Block, rows: Rows, shared: _Shared, q_tile):
    """Unnormalised o ``f32[64, H]`` and l ``f32[64]`` of the steps ``[begin, end)``."""
    rounds = _Rounds(plan, block, rows, shared, q_tile)
    at_edge, inside = (functools.partial(rounds.one, is_whole=whole) for whole in (False, True))
    out, total = _nothing(plan)
    carry = (out, plan.warpgroup.full((MMA_ROWS,), LEAST), total)
    if plan.sliding_window is not None:
        carry = lax.fori_loop(rows.begin, rows.whole_begin, at_edge, carry)
    if plan.overlaps:
        is_any = rows.whole_begin < rows.whole_end
        carry = lax.cond(is_any, rounds.overlapped, lambda same: same, carry)
    else:
        carry = lax.fori_loop(rows.whole_begin, rows.whole_end, inside, carry)
    out, _, total = lax.fori_loop(rows.whole_end, rows.end, at_edge, carry)
    return out, total


@dataclass(frozen=True, slots=True)
class _Rounds:
    """Steps of one warpgroup: a tile of keys and values each."""

    plan: ExtendPlan
    block: Block
    rows: Rows
    shared: _Shared
    q_tile: jax.Array

    def one(self, step: jax.Array, carry: Carry, is_whole: bool) -> Carry:
        """A step from its scores to its values."""
        scores, _ = self._scores_during(step, lambda: None)
        *carry, weights = self._softmax(step, (*carry, scores), is_whole)
        return self._add_values(step, weights, *carry)

    def overlapped(self, carry: Carry) -> Carry:
        """The steps ``[whole_begin, whole_end)``, each softmax beside the next step's scores."""

        def advance(step: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            softmax = functools.partial(self._softmax, step, carry, True)
            scores, (*carry, weights) = self._scores_during(step + 1, softmax)
            return *self._add_values(step, weights, *carry), scores

        first, last = self.rows.whole_begin, self.rows.whole_end - 1
        scores, _ = self._scores_during(first, lambda: None)
        carry = lax.fori_loop(first, last, advance, (*carry, scores))
        *carry, weights = self._softmax(last, carry, True)
        return self._add_values(last, weights, *carry)

    def _scores_during(self, step: jax.Array, work: Callable) -> tuple[jax.Array, Any]:
        """The scores of a step, and what ``work`` returns, done while they are computed."""

        def product(slot: jax.Array) -> tuple[jax.Array, Any]:
            tile = self.shared.k_tiles.at[slot]
            return self.plan.warpgroup.scores_during(self.q_tile, tile, work)

        return self._using(self.shared.k_full, self.shared.k_free, step, product)

    def _softmax(self, step: jax.Array, carry: tuple[jax.Array, ...], is_whole: bool):
        """One round of the running softmax.

        Args:
            carry: o ``f32[64, H]``, m and l ``f32[64]``, scores ``f32[64, block_kv]`` of the step.
            is_whole: whether all rows see all of its keys.

        Returns:
            o, m, l, and the step's weights ``[64, block_kv]`` in the dtype of the values.
        """
        plan, (out, highest, total, scores) = self.plan, carry
        # Without a cap the factor is left to the fused multiply-add in the exponent.
        factor = plan.scale * LOG2E
        if plan.logit_soft_cap is not None or factor <= 0.0:
            scores, factor = base2_scores(scores, plan.scale, plan.logit_soft_cap), 1.0
        if not is_whole:
            first_key = (self.block.first_tile + step) * plan.config.block_kv
            queries = plan.warpgroup.iota(scores.shape, 0) + (self.rows.position - first_key)
            distance = queries - plan.warpgroup.iota(scores.shape, 1)
            is_visible = distance >= 0
            if plan.sliding_window is not None:
                is_visible &= distance < plan.sliding_window
            scores = jnp.where(is_visible, scores, -jnp.inf)
        new_highest = jnp.maximum(highest, jnp.max(scores, axis=1) * factor)
        weights = jnp.exp2(scores * factor - lax.broadcast_in_dim(new_highest, scores.shape, (0,)))
        decay = jnp.exp2(highest - new_highest)
        total = total * decay + jnp.sum(weights, axis=1)
        out = out * lax.broadcast_in_dim(decay, out.shape, (0,))
        return out, new_highest, total, weights.astype(plan.dtype)

    def _add_values(self, step: jax.Array, weights: jax.Array, out, highest, total) -> Carry:
        def product(slot: jax.Array) -> jax.Array:
            return self.plan.warpgroup.weighted(out, weights, self.shared.v_tiles.at[slot])

        return self._using(self.shared.v_full, self.shared.v_free, step, product), highest, total

    def _using(self, full, free, step: jax.Array, product: Callable) -> Any:
        """What a product with the step's tile gives: waited for before, given back after."""
        plan, slot = self.plan, self.plan.slot(step)
        if plan.waits_for_data:
            plgpu.barrier_wait(full.at[slot])
        if plan.frees_early:
            _free(plan, self.block, free, step)
        results = product(slot)
        if not plan.frees_early:
            _free(plan, self.block, free, step)
        return results
