"""Adding to the residual stream and normalising it, in one kernel instead of two.

    sum  = x + delta
    norm = sum * rsqrt(mean(sum^2) + epsilon) * weight      (https://arxiv.org/abs/1910.07467)

XLA makes a kernel of the addition and another of the norm, because the sum has two readers.
Between two matrix products of a decode step each is a launch that moves a few kilobytes.

``delta`` may come as the f32 partial sums of a split-K product, ``[S, T, D]``: they are added up
here, where XLA would add them up in the kernel of the addition.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

WARPGROUP = 128  # threads
# A row stays in registers: at 16384 elements with 4 parts some are spilled.
MAX_SIZE = 64 * WARPGROUP
_VECTOR = 4  # elements that a thread loads at once: 16 bytes of f32
COMPILER_PARAMS = plgpu.CompilerParams(
    approx_math=True,  # rsqrt.approx
    lowering_semantics=plgpu.LoweringSemantics.Lane,
)


def supports_add_rms_norm(size: int, dtype: jnp.dtype) -> bool:
    """Whether the kernel takes rows of ``size`` elements of ``dtype``."""
    return size % WARPGROUP == 0 and size <= MAX_SIZE and dtype in (jnp.bfloat16, jnp.float16)


def add_rms_norm(
    x: jax.Array,  # [T, D]
    delta: jax.Array,  # [T, D], or f32[S, T, D] of partial sums
    weight: jax.Array,  # [D]
    *,
    epsilon: float,
    interpret: object = False,
) -> tuple[jax.Array, jax.Array]:  # [T, D] each, dtype of x
    """One warpgroup per row, which stays in its registers between the two.

    Raises:
        NotImplementedError: rows that are not a whole number of warpgroups, or other dtypes.
    """
    num_rows, size = x.shape
    if not supports_add_rms_norm(size, x.dtype):
        raise NotImplementedError(
            f"pallas add_rms_norm: given rows of {size} {x.dtype}; supported multiples of "
            f"{WARPGROUP} up to {MAX_SIZE} of bfloat16 or float16; use implementation='xla'"
        )
    parts = delta if delta.ndim == 3 else delta[None]
    kernel = plgpu.kernel(
        functools.partial(_body, parts.shape[0], epsilon, interpret is not False),
        out_type=(jax.ShapeDtypeStruct(x.shape, x.dtype),) * 2,
        grid=(num_rows,),
        grid_names=("row",),
        compiler_params=COMPILER_PARAMS,
        kernel_name="add_rms_norm",
        interpret=interpret,
    )
    total, norm = kernel(x, parts, weight.astype(x.dtype))
    return total, norm


def _body(num_parts, epsilon, is_interpreted, x_ref, parts_ref, weight_ref, total_ref, norm_ref):
    row = lax.axis_index("row")
    size = weight_ref.shape[0]
    # One layout for both widths of elements, so that a thread holds the same ones of each array.
    vector = math.gcd(size // WARPGROUP, _VECTOR)
    layout = plgpu.Layout.WG_STRIDED((size,), vec_size=vector)

    def load(values: jax.Array) -> jax.Array:
        # layout_cast is not known to the interpreter, where there is no layout
        return (values if is_interpreted else plgpu.layout_cast(values, layout)).astype(jnp.float32)

    delta = load(parts_ref[0, row])
    for part in range(1, num_parts):
        delta += load(parts_ref[part, row])
    delta = delta.astype(total_ref.dtype).astype(jnp.float32)
    total = (load(x_ref[row]) + delta).astype(total_ref.dtype)
    total_ref[row] = total
    values = total.astype(jnp.float32)
    mean = jnp.sum(values * values) / size
    norm = (values * lax.rsqrt(mean + epsilon)).astype(norm_ref.dtype).astype(jnp.float32)
    norm_ref[row] = (norm * load(weight_ref[...])).astype(norm_ref.dtype)
