"""What the Hopper kernels take: plain numbers, asked before anything is traced."""

import jax.numpy as jnp

HEAD_DIMS = (64, 96, 128, 256)
PAGE_SIZES = (16, 32, 64)
DTYPES = ("bfloat16", "float16")
KV_DTYPES = (*DTYPES, "float8_e4m3fn")
MAX_GROUP = 16


def unsupported_reason(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: object,
    kv_dtype: object = None,
) -> str | None:
    """Why the kernels cannot serve these static sizes, or None if they can.

    Args:
        num_heads, num_kv_heads: N and K of one device.
        head_dim, page_size: H and tokens per page.
        dtype: of the queries.
        kv_dtype: of the pools; None means ``dtype``.

    Returns:
        The text of the NotImplementedError that both attentions raise for them.
    """
    dtype = jnp.dtype(dtype).name
    kv_dtype = dtype if kv_dtype is None else jnp.dtype(kv_dtype).name
    group = num_heads // num_kv_heads
    limits = (
        ("head_dim", head_dim, HEAD_DIMS),
        ("page_size", page_size, PAGE_SIZES),
        ("dtype of q", dtype, DTYPES),
        ("dtype of the pools", kv_dtype, KV_DTYPES),
    )
    for name, given, supported in limits:
        if given not in supported:
            return _refusal(f"{name} {given}", ", ".join(map(str, supported)))
    if group > MAX_GROUP:
        return _refusal(f"{group} query heads per kv head", f"1 to {MAX_GROUP}")
    if kv_dtype in DTYPES and kv_dtype != dtype:
        return _refusal(f"q of {dtype} with pools of {kv_dtype}", "one dtype for both")
    return None


def _refusal(given: str, supported: str) -> str:
    return f"pallas attention: given {given}; supported {supported}; use implementation='xla'"
