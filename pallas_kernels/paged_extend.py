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

from pallas_kernels.extend_ring import Shared, bring, scratch_types
from pallas_kernels.extend_tiles import CONSUMERS, Block, ExtendPlan, Rows, tile_table
from pallas_kernels.hopper import (
    COMPILER_PARAMS,
    LOG2E,
    MMA_ROWS,
    Warpgroup,
    base2_scores,
    stacked_scales,
)
from pallas_kernels.layout import FP8, KVLayout
from pallas_kernels.tuning import ExtendConfig

LEAST = -1e30  # below every score, but finite: -inf - -inf is NaN


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

    ``k_scale`` and ``v_scale``, both > 0, are of pools of e4m3 and of no others; None is 1.
    """
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
        is_fp8=k_pages.dtype == FP8,
    )
    scales = stacked_scales(k_scale, v_scale)
    return run(plan, q, k_pages, v_pages, page_table, kv_lens, q_starts, interpret, scales)


def run(
    plan: ExtendPlan,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    q_starts: jax.Array,
    interpret: object,
    scales: jax.Array | None = None,  # f32[2] of the keys and of the values; of e4m3 only
) -> jax.Array:
    """The table of tiles and the kernel."""
    tiles = tile_table(q_starts, kv_lens, plan.padded_tokens)
    queries = jnp.pad(q, ((0, plan.padded_tokens - plan.num_tokens), (0, 0), (0, 0)))
    kernel = plgpu.kernel(
        functools.partial(_body, plan),
        out_type=jax.ShapeDtypeStruct(queries.shape, q.dtype),
        scratch_types=scratch_types(plan),
        # Heads fastest: those that share a kv head run together and share its tiles in L2.
        grid=(tiles.shape[0], plan.num_heads),
        grid_names=("tile", "head"),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        compiler_params=COMPILER_PARAMS,
        kernel_name="paged_extend_attention",
        interpret=interpret,
    )
    operands = (queries, k_pages, v_pages, page_table, tiles)
    return kernel(*operands, *(() if scales is None else (scales,)))[: plan.num_tokens]


def _body(plan: ExtendPlan, q, k_pages, v_pages, page_table, tiles, *refs, **scratch) -> None:
    """One block: (tile of queries, query head)."""
    shared, warpgroup = Shared(**scratch), lax.axis_index("warpgroup")
    *scales, out = refs

    # Each role reads the table for itself: what both need would have to be kept in registers of
    # the lesser of the two.
    @pl.when(warpgroup < CONSUMERS)
    def _() -> None:
        plgpu.set_max_registers(plan.consumer_registers, action="increase")
        block = Block.of(plan, tiles)

        @pl.when(block.count > 0)
        def _() -> None:
            values = _consume(plan, block, shared, q, warpgroup, *scales)
            # Read again rather than kept: all registers are taken in between.
            _store(plan, Block.of(plan, tiles), shared, values, out, warpgroup)

    @pl.when(warpgroup == CONSUMERS)
    def _() -> None:
        plgpu.set_max_registers(plan.copier_registers, action="decrease")
        block = Block.of(plan, tiles)
        pl.when(block.count > 0)(lambda: bring(plan, block, shared, k_pages, v_pages, page_table))


def _consume(plan: ExtendPlan, block: Block, shared: Shared, q, warpgroup, scales=None):
    """Attention of one warpgroup's rows over the block's tiles of keys: ``[64, H]``."""
    rows = Rows.of(plan, block, warpgroup)
    q_tile, q_full = shared.q_tiles.at[warpgroup], shared.q_full.at[warpgroup]

    def attend() -> tuple[jax.Array, jax.Array]:
        plgpu.copy_gmem_to_smem(q.at[pl.ds(rows.token, MMA_ROWS), block.head], q_tile, q_full)
        plgpu.barrier_wait(q_full)
        scale = plan.scale if scales is None else plan.scale * scales[0]
        return _attend(plan, block, rows, shared, q_tile, scale)

    _pass_by(plan, block, shared, jnp.int32(0), rows.begin)
    out, total = lax.cond(rows.begin < rows.end, attend, lambda: _nothing(plan))
    _pass_by(plan, block, shared, rows.end, block.num_steps)
    v_scale = 1.0 if scales is None else scales[1]
    inverse = jnp.where(total > 0.0, v_scale / total, 0.0)
    return (out * lax.broadcast_in_dim(inverse, out.shape, (0,))).astype(plan.dtype)


def _nothing(plan: ExtendPlan) -> tuple[jax.Array, jax.Array]:
    """o and l before any step."""
    full = plan.warpgroup.full
    return full((MMA_ROWS, plan.layout.head_dim), 0.0), full((MMA_ROWS,), 0.0)


def _store(plan: ExtendPlan, block: Block, shared: Shared, values, out, warpgroup) -> None:
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


def _pass_by(plan: ExtendPlan, block: Block, shared: Shared, begin, end) -> None:
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


def _attend(plan: ExtendPlan, block: Block, rows: Rows, shared: Shared, q_tile, scale):
    """Unnormalised o ``f32[64, H]`` and l ``f32[64]`` of the steps ``[begin, end)``."""
    rounds = _Rounds(plan, block, rows, shared, q_tile, scale)
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
    shared: Shared
    q_tile: jax.Array
    scale: float | jax.Array  # the plan's, times that of the keys

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
        factor = self.scale * LOG2E
        if plan.logit_soft_cap is not None or plan.scale <= 0.0:
            scores, factor = base2_scores(scores, self.scale, plan.logit_soft_cap), 1.0
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
