"""What is wrong with the arguments of an op, said plainly: given, allowed, what to do."""

import math
from numbers import Integral, Real

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.layout import BF16_BITS, FP8, FP8_BITS, KVLayout

FLOATS = tuple(map(jnp.dtype, (jnp.float32, jnp.bfloat16, jnp.float16)))
POOL_DTYPES = (*FLOATS, FP8, BF16_BITS, FP8_BITS)


def check_write(
    k_pages: jax.Array, v_pages: jax.Array, k: jax.Array, v: jax.Array, write_slots: jax.Array
) -> None:
    """Raise ValueError unless these are arguments of ``write_kv``."""
    layout = check_pools(k_pages, v_pages)
    check_int32("write_slots", write_slots, "[T]", (write_slots.size,))
    expected = (write_slots.size, layout.num_kv_heads, layout.head_dim)
    for name, value in (("k", k), ("v", v)):
        if value.shape != expected:
            raise ValueError(
                f"{name} must have shape [T, K, H] = {expected}: a row per write slot, a head per "
                f"kv head of the pools; got {value.shape}"
            )
        check_float(name, value)


def check_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
) -> None:
    """Raise ValueError unless these fit together as arguments of either attention."""
    layout = check_pools(k_pages, v_pages)
    if q.ndim != 3 or q.shape[2] != layout.head_dim:
        raise ValueError(
            f"q must have shape [tokens, N, H] with the pools' H = {layout.head_dim}; got {q.shape}"
        )
    check_float("q", q)
    if q.shape[1] % layout.num_kv_heads:
        raise ValueError(
            f"the number of query heads ({q.shape[1]}) must be a multiple of the number of "
            f"key/value heads ({layout.num_kv_heads}); pad the query heads or repeat the kv heads"
        )
    if page_table.ndim != 2 or page_table.dtype != "int32" or not page_table.size:
        raise ValueError(
            f"page_table must be int32 [B, W] with at least one row and one column; "
            f"got {page_table.dtype}{page_table.shape}"
        )
    check_int32("kv_lens", kv_lens, "[B]", page_table.shape[:1])


def check_options(scale: object, logit_soft_cap: object, sliding_window: object) -> None:
    """Raise ValueError unless the static options are numbers in their ranges."""
    _check_static("scale", scale, Real, "a finite number, usually H ** -0.5")
    if logit_soft_cap is not None:
        allowed = "a finite number > 0, or None for no cap"
        _check_static("logit_soft_cap", logit_soft_cap, Real, allowed)
        if logit_soft_cap <= 0:
            raise ValueError(f"logit_soft_cap must be {allowed}; got {logit_soft_cap}")
    if sliding_window is not None:
        allowed = "a whole number of positions >= 1, or None for all"
        _check_static("sliding_window", sliding_window, Integral, allowed)
        if sliding_window < 1:
            raise ValueError(f"sliding_window must be {allowed}; got {sliding_window}")


def check_stored_scales(
    k_pages: jax.Array, k_scale: jax.Array | None, v_scale: jax.Array | None
) -> None:
    """Raise ValueError unless the scales are ``f32[]`` and the pools fp8, or there are none."""
    for name, value in (("k_scale", k_scale), ("v_scale", v_scale)):
        if value is None:
            continue
        if k_pages.dtype not in (FP8, FP8_BITS):
            raise ValueError(
                f"{name} is for pools of {FP8.name}; these are {k_pages.dtype}: leave it None"
            )
        if jnp.shape(value) != () or jnp.result_type(value) != jnp.float32:
            raise ValueError(
                f"{name} must be a float32 array of shape (); got "
                f"{jnp.result_type(value)}{jnp.shape(value)}"
            )


def check_pools(k_pages: jax.Array, v_pages: jax.Array) -> KVLayout:
    """The layout that both pools share; ValueError if they are no pools or differ."""
    layout = KVLayout.of(k_pages)
    if k_pages.shape != v_pages.shape or k_pages.dtype != v_pages.dtype:
        raise ValueError(
            f"k_pages and v_pages must agree in shape and dtype; got "
            f"{k_pages.dtype}{k_pages.shape} and {v_pages.dtype}{v_pages.shape}"
        )
    if k_pages.dtype not in POOL_DTYPES:
        raise ValueError(
            f"the pools' dtype must be one of {_names(POOL_DTYPES)} (uint16 holds the bits of "
            f"bfloat16, uint8 those of {FP8.name}); got {k_pages.dtype}"
        )
    return layout


def check_float(name: str, value: jax.Array) -> None:
    """Raise ValueError unless ``value`` is of a float dtype that the ops compute in."""
    if value.dtype not in FLOATS:
        raise ValueError(f"{name} must be one of {_names(FLOATS)}; got {value.dtype}")


def check_int32(name: str, value: jax.Array, axes: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless ``value`` is ``i32`` of ``shape``, whose axes are ``axes``."""
    if value.shape != shape or value.dtype != "int32":
        raise ValueError(
            f"{name} must be int32 {axes} of shape {shape}; got {value.dtype}{value.shape}"
        )


def check_page_table(
    page_table: np.ndarray, kv_lens: np.ndarray, num_pages: int, page_size: int
) -> None:
    """Check on the host what no kernel can: every page id that a step will read.

    A kernel reads at the ids it is given; one out of range is memory of somebody else.

    Args:
        page_table: ``i32[B, W]``.
        kv_lens: ``i32[B]``; row b owns its first ``ceil(kv_lens[b] / page_size)`` columns.
        num_pages: P of the pools.
        page_size: tokens per page.

    Raises:
        ValueError: a length that the table cannot hold, an owned entry outside
            ``[1, num_pages)`` (page 0 is the null page), or another outside ``[0, num_pages)``;
            the first one is named by row and column.
    """
    table, lens = np.asarray(page_table), np.asarray(kv_lens)
    if table.ndim != 2 or lens.shape != table.shape[:1]:
        raise ValueError(
            f"page_table must be [B, W] and kv_lens [B]; got {table.shape} and {lens.shape}"
        )
    longest = table.shape[1] * page_size
    for row in np.flatnonzero((lens < 0) | (lens > longest))[:1]:
        raise ValueError(
            f"kv_lens[{row}] is {lens[row]}; allowed is 0 to {longest}, what {table.shape[1]} "
            f"pages of {page_size} tokens hold: give the row more columns"
        )
    owned = np.arange(table.shape[1])[None, :] < -(-lens[:, None] // page_size)
    wrong = (table < owned) | (table >= num_pages)
    for row, column in np.argwhere(wrong)[:1]:
        lowest = int(owned[row, column])
        what = f"a page of its {lens[row]} tokens" if lowest else "past its length"
        raise ValueError(
            f"page_table[{row}, {column}] is {table[row, column]} ({what}); allowed is {lowest} to "
            f"{num_pages - 1}" + (": page 0 is the null page, nobody owns it" if lowest else "")
        )


def _check_static(name: str, value: object, kind: type, allowed: str) -> None:
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ValueError(
            f"{name} must be {allowed}; got {value!r} (it is static: no array, no tracer)"
        )


def _names(dtypes: tuple[jnp.dtype, ...]) -> str:
    return ", ".join(dtype.name for dtype in dtypes)
