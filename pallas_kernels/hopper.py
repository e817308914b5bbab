"""What the Mosaic GPU kernels for Hopper share: tiles, copies of pages, arithmetic of a warpgroup.

A kernel is written once and runs in two ways: compiled, where products are ``wgmma`` on swizzled
shared memory and arrays live in the registers of a warpgroup; or under JAX's GPU interpreter on a
CPU, which runs copies, barriers and warpgroups but not every form of ``wgmma`` and no register
layouts.  ``Warpgroup`` is the seam: everything that differs between the two is a method of it.

Lowering semantics are ``Lane`` everywhere: the default changed between jax 0.10 and 0.11.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector

from pallas_kernels.layout import FP8

try:
    from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams
except ImportError:  # jax 0.10 has it, but not under a public name
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

TILE_LINES = 8  # rows of a swizzled tile come in eights, in device memory too: TMA cuts lines off
MMA_ROWS = 64  # rows of A and of the accumulator in one wgmma
LOG2E = math.log2(math.e)  # exp2 is one instruction, exp is two: scores are kept in base 2

Results = TypeVar("Results")

# f32 [64, n] as wgmma accumulates it, and f32 [64] with one value per row of that.
MATRIX = plgpu.Layout.WGMMA
ROWS = plgpu.Layout.WGMMA.reduce(1)

COMPILER_PARAMS = plgpu.CompilerParams(
    approx_math=True,  # ex2.approx and friends, with relative errors near 2 ** -22
    lowering_semantics=plgpu.LoweringSemantics.Lane,
    # Shared memory for reductions across warps.  Ours are along rows, within a quad of lanes,
    # and use none; what is asked for is rounded up to 1 KB, which costs the second block of an SM.
    reduction_scratch_bytes=0,
)


def is_between(positions: jax.Array, first: jax.Array | int, end: jax.Array) -> jax.Array:
    """``first <= positions < end`` of positions >= 0; an int ``first`` <= 0 costs nothing."""
    is_before = positions < end
    if isinstance(first, int) and first <= 0:
        return is_before
    return (positions >= first) & is_before


def interpreter_params(*, detect_races: bool = True) -> InterpretGPUParams:
    """What to pass as ``interpret`` to run a kernel on a CPU."""
    return InterpretGPUParams(detect_races=detect_races)


def swizzle_bytes(head_dim: int, dtype: jnp.dtype) -> int:
    """The widest swizzle whose lines divide a row of ``head_dim`` elements."""
    return next(s for s in (128, 64, 32) if head_dim * jnp.dtype(dtype).itemsize % s == 0)


def tile_transforms(head_dim: int, dtype: jnp.dtype) -> tuple[plgpu.Transform, ...]:
    """How a ``[rows, head_dim]`` tile lies in shared memory so that TMA and wgmma agree.

    Rows are cut into lines of one swizzle width: at 16 bits head dim 96 is three lines of 64
    bytes, the other head dims are whole lines of 128.
    """
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = swizzle_bytes(head_dim, dtype)
    return plgpu.TilingTransform((8, swizzle // itemsize)), plgpu.SwizzleTransform(swizzle)


def tile_ref(shape: Sequence[int], dtype: jnp.dtype) -> pl.MemoryRef:
    """A tile or a ring of tiles ``[..., rows, head_dim]`` in shared memory."""
    return plgpu.SMEM(tuple(shape), dtype, transforms=tile_transforms(shape[-1], dtype))


WIDEN_ELEMENTS = 1024  # that a warpgroup loads at once, eight each


def widen_columns(head_dim: int) -> int:
    """Columns that ``Warpgroup.widen`` takes at once: whole lines of the tile it writes."""
    return 32 if head_dim % 64 else min(head_dim, 128)


def widen_layout(width: int) -> plgpu.Layout:
    """Eight elements a thread, a warp a run of whole rows of ``width`` columns."""
    vector = 8
    rows = 32 * vector // width
    tiling = plgpu.Tiling(((4 * rows, width), (rows, width), (vector,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)


def stored_ref(shape: Sequence[int]) -> pl.MemoryRef:
    """A ring of tiles ``[..., rows, head_dim]`` of e4m3 as a pool has them, row by row."""
    return plgpu.SMEM(tuple(shape), FP8)


def stacked_scales(k_scale: jax.Array | None, v_scale: jax.Array | None) -> jax.Array | None:
    """``f32[2]`` for a kernel to read, 1 where there is none; None if there are none at all.

    Even two constants would be a launch of their own before each call.
    """
    if k_scale is None and v_scale is None:
        return None
    scales = (jnp.float32(1.0) if scale is None else scale for scale in (k_scale, v_scale))
    return jnp.stack(list(scales))


def page_ids(
    page_table: jax.Array,  # i32[B, W] in device memory
    row: jax.Array,
    tile: jax.Array,
    num_pages: jax.Array,  # pages that the row owns, >= 1
    pages_per_tile: int,
) -> tuple[jax.Array, ...]:
    """Ids of the pages of one tile of a row; past the row's end its last page again.

    So nothing is read that the row does not own, and the copy of a whole tile is always the same
    number of bytes; what it brings in twice comes from the L2 cache and is masked.
    """
    first, last = tile * pages_per_tile, num_pages - 1
    return tuple(page_table[row, jnp.minimum(first + i, last)] for i in range(pages_per_tile))


def copy_pages(
    pages: jax.Array,  # [P, K, page_size, H] in device memory
    ids: Sequence[jax.Array],
    head: jax.Array,
    tile: jax.Array,  # [len(ids) * page_size, H] in shared memory
    barrier: jax.Array,  # completes after len(ids) arrivals
) -> None:
    """Start one TMA copy per page into the page's rows of a tile."""
    page_size = pages.shape[2]
    for i, page in enumerate(ids):
        rows = pl.ds(i * page_size, page_size)
        plgpu.copy_gmem_to_smem(pages.at[page, head], tile.at[rows], barrier)


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below ``value``."""
    return -(-value // multiple) * multiple


def ceil_div(value: jax.Array, divisor: int) -> jax.Array:
    """``value / divisor`` rounded up; of values that are not negative."""
    return lax.div(value + (divisor - 1), jnp.int32(divisor))


def base2_scores(
    scores: jax.Array, scale: float | jax.Array, logit_soft_cap: float | None
) -> jax.Array:
    """Products ``q k`` times ``scale``, soft-capped, times log2(e).

    With cap c, c tanh(x / c) = c - 2 c / (1 + e^(2 x / c)): the hardware's own tanh is good to
    11 bits only, which times a cap of 50 would be felt in the weights.
    """
    if logit_soft_cap is None:
        return scores * (scale * LOG2E)
    root = lax.rsqrt(1.0 + jnp.exp2(scores * (2.0 * scale / logit_soft_cap * LOG2E)))
    cap = logit_soft_cap * LOG2E
    return cap - (2.0 * cap) * (root * root)


@dataclass(frozen=True, slots=True)
class Warpgroup:
    """Arithmetic of one warpgroup on tiles of 64 rows.

    Attributes:
        interpreted: whether the kernel runs under the interpreter.
    """

    interpreted: bool

    def full(self, shape: tuple[int, ...], value: float) -> jax.Array:
        """f32 ``[64, n]`` or ``[64]`` of one value."""
        array = jnp.full(shape, value, jnp.float32)
        return self._cast(array, MATRIX if len(shape) == 2 else ROWS)

    def iota(self, shape: tuple[int, int], axis: int) -> jax.Array:
        """i32 ``[64 * i, n]`` that counts along ``axis``."""
        return self._cast(lax.broadcasted_iota(jnp.int32, shape, axis), MATRIX)

    def scores(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """``q @ k.T`` in f32, from tiles ``q [64, H]`` and ``k [n, H]`` in shared memory."""
        return self.scores_during(q, k, lambda: None)[0]

    def scores_during(
        self, q: jax.Array, k: jax.Array, work: Callable[[], Results]
    ) -> tuple[jax.Array, Results]:
        """``scores``, and what ``work`` returns, done while the tensor cores compute them.

        ``work`` must not start a product of its own whose left side is in registers: ptxas would
        make both wait for each other's end.
        """
        if self.interpreted:
            done = work()
            return jnp.dot(self._read(q), self._read(k).T), done

        def multiply(accumulator: jax.Array) -> tuple[jax.Array, Results]:
            plgpu.wgmma(accumulator, q, k.transpose((1, 0)))
            done = work()
            return accumulator[...], done

        return pl.run_scoped(multiply, plgpu.ACC((q.shape[0], k.shape[0]), jnp.float32))

    def weighted(self, out: jax.Array, weights: jax.Array, v: jax.Array) -> jax.Array:
        """``out + weights @ v``: f32 ``[64, H]``, weights ``[64, n]``, a tile ``v [n, H]``."""
        if self.interpreted:
            return out + jnp.dot(weights.astype(jnp.float32), self._read(v))

        def multiply(accumulator: jax.Array) -> None:
            plgpu.wgmma(accumulator, weights, v)

        return pl.run_state(multiply)(plgpu.ACC.init(out))

    def zero_rows_outside(self, tile: jax.Array, first: jax.Array | int, end: jax.Array) -> None:
        """Make the rows of a tile ``[n, H]`` that are not in ``[first, end)`` 0, where it lies.

        A masked key has weight 0, but 0 times the NaN that an unused slot may hold is NaN.
        """
        num_rows, head_dim = tile.shape
        swizzle = swizzle_bytes(head_dim, tile.dtype)
        # A piece of this size costs few registers beside the accumulators.
        height, width = 32, swizzle // tile.dtype.itemsize
        layout = plgpu.Layout.SMEM_GMEM_COPY((height, width), tile.dtype, swizzle)
        rows = self._cast(lax.broadcasted_iota(jnp.int32, (height, width), 0), layout)
        for row in range(0, num_rows, height):
            is_kept = is_between(rows, first - row, end - row)
            for column in range(0, head_dim, width):
                piece = tile.at[pl.ds(row, height), pl.ds(column, width)]
                values = self._cast(piece[...], layout)
                piece[...] = jnp.where(is_kept, values, jnp.zeros((), values.dtype))
        plgpu.commit_smem()  # wgmma reads through another proxy than these stores wrote through

    def widen(
        self,
        stored: jax.Array,
        tile: jax.Array,
        visible: tuple[jax.Array | int, jax.Array] | None = None,
        *,
        num_loads: int = 1,
    ) -> None:
        """Write the e4m3 rows ``stored [n, H]`` into ``tile [n, H]`` as numbers of its dtype.

        Exact: a float16 or bfloat16 has every value of e4m3.  Both lie in shared memory, the
        tile as ``wgmma`` wants it.  Rows that are not in ``visible``, [first, end), become 0.

        A thread takes eight elements at a time, ``num_loads`` times before it stores: more hide
        more of their latency, and cost registers.  Its loads are side by side, its stores whole
        chunks of a swizzled line, and neither meets a bank conflict.  Pairs become f16 by one
        instruction (PTX ISA, ``cvt.rn.f16x2.e4m3x2``), and bfloat16 through f32 by three more.
        """
        if self.interpreted:
            values = stored[...].astype(tile.dtype)
            if visible is not None:
                rows = lax.broadcasted_iota(jnp.int32, values.shape, 0)
                values = jnp.where(is_between(rows, *visible), values, jnp.zeros((), tile.dtype))
            tile[...] = values
            plgpu.commit_smem()
            return
        num_rows, head_dim = stored.shape
        width, is_f16 = widen_columns(head_dim), tile.dtype == jnp.float16
        layout = widen_layout(width)
        height = min(num_rows, num_loads * WIDEN_ELEMENTS // width)
        rows = None
        if visible is not None:
            rows = self._cast(lax.broadcasted_iota(jnp.int32, (height, width), 0), layout)
        for row in range(0, num_rows, height):
            for column in range(0, head_dim, width):
                piece = pl.ds(row, height), pl.ds(column, width)
                values = self._cast(stored.at[piece][...], layout).astype(jnp.float16)
                if not is_f16:
                    values = values.astype(jnp.float32).astype(tile.dtype)
                if visible is not None:
                    first, end = visible
                    is_kept = is_between(rows, first - row, end - row)
                    values = jnp.where(is_kept, values, jnp.zeros((), tile.dtype))
                tile[piece] = values
        plgpu.commit_smem()  # wgmma reads through another proxy than these stores wrote through

    def store_rows_between(
        self, ref: jax.Array, values: jax.Array, first: jax.Array, end: jax.Array
    ) -> None:
        """``ref[first:end] = values[first:end]`` of ``[64, n]``, straight from registers."""
        if self.interpreted:

            @pl.loop(first, end)
            def _(row: jax.Array) -> None:
                ref[row] = lax.dynamic_index_in_dim(values, row, keepdims=False)

            return
        bound = plgpu.Layout.WG_SPLAT(())
        arg_types = (plgpu.RefType(), MATRIX, bound, bound)
        plgpu.inline_mgpu(arg_types=arg_types)(_store_rows_between)(ref, values, first, end)

    def store_rows(self, ref: jax.Array, values: jax.Array, first: jax.Array) -> None:
        """``ref[...] = values[first : first + len(ref)]`` of ``[64, n]`` or ``[64]``.

        Straight from registers to device memory.  A copy through shared memory would need 64
        rows of it, of which a group of query heads fills at most 16.
        """
        if self.interpreted:
            ref[...] = lax.dynamic_slice_in_dim(values, first, ref.shape[0])
            return
        layout = MATRIX if values.ndim == 2 else ROWS
        arg_types = (plgpu.RefType(), layout, plgpu.Layout.WG_SPLAT(()))
        plgpu.inline_mgpu(arg_types=arg_types)(_store_rows)(ref, values, first)

    def _read(self, tile: jax.Array) -> jax.Array:
        """A tile in f32, for the interpreter to multiply."""
        values = tile[...].astype(jnp.float32)
        # Unlike wgmma this reads through the generic proxy; TMA must not overtake it.
        plgpu.commit_smem()
        return values

    def _cast(self, array: jax.Array, layout: plgpu.Layout) -> jax.Array:
        return array if self.interpreted else plgpu.layout_cast(array, layout)


def _store_rows(
    _: object, ref: ir.Value, values: mgpu.FragmentedArray, first: mgpu.FragmentedArray
) -> None:
    """Each thread stores those of its registers that lie in the rows meant for ``ref``."""
    num_rows = mgpu.c(ir.MemRefType(ref.type).shape[0], ir.IndexType.get())
    first = arith.index_cast(ir.IndexType.get(), first.registers.item())
    for index, register in zip(
        values.layout.thread_idxs(values.shape), values.registers.flat, strict=True
    ):
        row = arith.subi(index[0], first)  # before the first it wraps: unsigned it is large
        with mgpu.when(arith.cmpi(arith.CmpIPredicate.ult, row, num_rows)):
            vector.store(register, ref, (row, *index[1:]))


def _store_rows_between(
    _: object,
    ref: ir.Value,
    values: mgpu.FragmentedArray,
    first: mgpu.FragmentedArray,
    end: mgpu.FragmentedArray,
) -> None:
    """``_store_rows`` with bounds of run time."""
    first, end = (
        arith.index_cast(ir.IndexType.get(), bound.registers.item()) for bound in (first, end)
    )
    for index, register in zip(
        values.layout.thread_idxs(values.shape), values.registers.flat, strict=True
    ):
        is_inside = arith.andi(
            arith.cmpi(arith.CmpIPredicate.sge, index[0], first),
            arith.cmpi(arith.CmpIPredicate.slt, index[0], end),
        )
        with mgpu.when(is_inside):
            vector.store(register, ref, index)
