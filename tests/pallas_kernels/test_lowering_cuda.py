"""Every supported shape of the kernels lowers for CUDA on a machine without a GPU.

Lowering is where Mosaic refuses a tile, a swizzle or a layout.  What it compiles to, registers
and spills, is what the tests of the ahead-of-time compiler look at.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import paged_decode_attention, paged_extend_attention, unsupported_reason
from pallas_kernels.support import DTYPES, HEAD_DIMS, KV_DTYPES, MAX_GROUP, PAGE_SIZES

FP8 = "float8_e4m3fn"
CALL = "stablehlo.custom_call @mosaic_gpu"


@dataclass(frozen=True)
class Call:
    head_dim: int = 128
    page_size: int = 16
    group: int = 4
    dtype: str = "bfloat16"
    kv_dtype: str = ""  # of the pools; "": dtype
    num_kv_heads: int = 2
    num_rows: int = 4
    num_tokens: int = 128  # of extend
    pages_per_row: int = 8
    logit_soft_cap: float | None = None
    sliding_window: int | None = None


# Page size changes the copies, head dim the tiles: all pairs.  The rest one at a time.
CALLS = [Call(head_dim, page_size) for head_dim in HEAD_DIMS for page_size in PAGE_SIZES]
CALLS += [Call(group=1), Call(group=MAX_GROUP)]
CALLS += [Call(dtype=dtype) for dtype in DTYPES if dtype != "bfloat16"]
CALLS += [Call(64, logit_soft_cap=30.0), Call(96, sliding_window=100)]
CALLS += [Call(head_dim, logit_soft_cap=30.0, sliding_window=100) for head_dim in (128, 256)]
# Sizes that are no multiple of 8; one row of Qwen2.5-0.5B and -7B; a table of 32k tokens.
CALLS += [Call(64, group=7, num_rows=1, num_tokens=1), Call(group=7, num_kv_heads=4, num_rows=1)]
CALLS += [Call(num_kv_heads=1, num_rows=3, num_tokens=150, pages_per_row=2048)]
# e4m3, with a scale and without
CALLS += [
    Call(head_dim, page_size, kv_dtype=FP8) for head_dim in HEAD_DIMS for page_size in (16, 64)
]
CALLS += [
    Call(64, dtype="float16", kv_dtype=FP8),
    Call(96, 32, group=MAX_GROUP, kv_dtype=FP8, sliding_window=100),
    Call(group=1, kv_dtype=FP8, logit_soft_cap=30.0),
]


def lowered(op: str, call: Call) -> str:
    """The StableHLO for CUDA of ``op`` through the kernels."""
    num_tokens = call.num_rows if op == "decode" else call.num_tokens
    q = jax.ShapeDtypeStruct(
        (num_tokens, call.num_kv_heads * call.group, call.head_dim), call.dtype
    )
    pool = jax.ShapeDtypeStruct(
        (9, call.num_kv_heads, call.page_size, call.head_dim), call.kv_dtype or call.dtype
    )
    shapes = [(call.num_rows, call.pages_per_row), (call.num_rows,), (call.num_rows + 1,)]
    tables = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]
    function = paged_extend_attention
    if op == "decode":
        function, tables = paged_decode_attention, tables[:2]
    attend = partial(
        function,
        scale=0.125,
        logit_soft_cap=call.logit_soft_cap,
        sliding_window=call.sliding_window,
        implementation="pallas",
    )
    scales = {}
    if call.kv_dtype and call.page_size == 16:
        scales = dict.fromkeys(("k_scale", "v_scale"), jax.ShapeDtypeStruct((), jnp.float32))
    traced = jax.jit(attend).trace(q, pool, pool, *tables, **scales)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("op", ["decode", "extend"])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_supported_shapes_lower(op: str, call: Call) -> None:
    text = lowered(op, call)
    assert text.count(CALL) == 1, "one kernel per attention"


def test_the_grid_is_the_supported_set() -> None:
    """Nothing supported is left out of the grid above, nothing in it is refused."""
    assert {call.head_dim for call in CALLS} == set(HEAD_DIMS)
    assert {call.page_size for call in CALLS} == set(PAGE_SIZES)
    assert {call.dtype for call in CALLS} == set(DTYPES)
    assert {call.kv_dtype or call.dtype for call in CALLS} == set(KV_DTYPES)
    for call in CALLS:
        reason = unsupported_reason(
            num_heads=call.num_kv_heads * call.group,
            num_kv_heads=call.num_kv_heads,
            head_dim=call.head_dim,
            page_size=call.page_size,
            dtype=call.dtype,
            kv_dtype=call.kv_dtype or None,
        )
        assert reason is None


def test_what_is_not_supported_does_not_reach_the_lowering() -> None:
    for call in (Call(head_dim=80), Call(page_size=8), Call(group=17), Call(dtype="float32")):
        with pytest.raises(NotImplementedError, match="pallas attention: given .*; supported"):
            lowered("decode", call)
        with pytest.raises(NotImplementedError, match="pallas attention: given .*; supported"):
            lowered("extend", replace(call, num_tokens=8))
