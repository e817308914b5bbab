"""The same attention by what jax ships: cuDNN, and its own Mosaic kernel.

Both read contiguous keys, except cuDNN's paged attention, which is private to jax and therefore
looked up by name.
"""

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from gpu.kernel_cases import DTYPES, KernelCase
from gpu.kernel_timing import num_calls
from gpu.timing import Timing, measure

CUDNN = "jax._src.cudnn.fused_attention_stablehlo"
MOSAIC = "jax.experimental.pallas.ops.gpu.attention_mgpu"
Specs = dict[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True, slots=True)
class Baseline:
    """One other implementation of a case.

    ``specs``: its arguments; ``call``: ``f(**arguments) -> out`` of the shape of ``q``.
    ``flops``: what it does, where that is not what the case does.
    """

    name: str
    case: KernelCase
    specs: Specs
    call: Callable[..., jax.Array]
    flops: int | None = None

    def lower(self) -> list[Any]:
        def run(arguments: dict[str, jax.Array]) -> jax.Array:
            q = arguments["q"]
            for _ in range(num_calls(self.case)):
                q = self.call(**(arguments | {"q": q}))
            return q

        return [jax.jit(run).lower(self.specs)]

    def time(self, program: Any, seed: int, budget_s: float) -> Timing:
        arguments = {name: _argument(self.case, name, spec, seed)
                     for name, spec in self.specs.items()}  # fmt: skip
        return measure(
            lambda: program(arguments),
            jax.block_until_ready,
            calls_per_launch=num_calls(self.case),
            budget_s=budget_s,
        )


def _argument(case: KernelCase, name: str, spec: jax.ShapeDtypeStruct, seed: int) -> jax.Array:
    key = jax.random.key(seed + len(name))
    if name == "page_table":
        pages = jax.random.permutation(key, math.prod(spec.shape))
        return pages.reshape(spec.shape).astype(jnp.int32)
    if name == "kv_lens":
        return jnp.asarray(case.kv_lens, jnp.int32)
    return jax.random.normal(key, spec.shape, jnp.float32).astype(spec.dtype)


def cudnn_paged_decode(case: KernelCase) -> Baseline:
    """jax's private cuDNN paged attention: every row's pages, and no others, in the pool."""
    batch, width, dtype = len(case.rows), case.pages_per_row, DTYPES[case.dtype]
    paged = importlib.import_module(CUDNN)

    def call(
        q: jax.Array, k: jax.Array, v: jax.Array, page_table: jax.Array, kv_lens: jax.Array
    ) -> jax.Array:
        return paged.paged_attention(
            q, k, v, jnp.ones((batch,), jnp.int32), kv_lens, page_table, page_table,
            scale=case.scale, mask_type=paged.MaskType.PADDING, qkv_layout="BNTH",
        )  # fmt: skip

    pool = jax.ShapeDtypeStruct(case.pool_shape(batch * width), dtype)
    specs = {
        "q": jax.ShapeDtypeStruct((batch, case.num_heads, 1, case.head_dim), dtype),
        "k": pool,
        "v": pool,
        "page_table": jax.ShapeDtypeStruct((batch, 1, width, 1), jnp.int32),
        "kv_lens": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    return Baseline("cuDNN paged", case, specs, call)


def cudnn_extend(case: KernelCase) -> Baseline:
    """``jax.nn.dot_product_attention`` on one row; behind a prefix without a mask.

    Its causal mask starts at the first key, so behind a prefix the whole rectangle is computed
    and counted.
    """
    ((before, new),) = case.rows
    call = functools.partial(_dot_product, is_causal=before == 0, scale=case.scale)
    flops = 4 * new * (before + new) * case.num_heads * case.head_dim if before else None
    return Baseline("cuDNN", case, _dense_specs(case), call, flops)


def mosaic_extend(case: KernelCase) -> Baseline:
    """jax's own Mosaic GPU attention: one causal prompt, no pages, no prefix, and only f16."""
    mosaic = importlib.import_module(MOSAIC)
    config = mosaic.TuningConfig(block_q=64, block_kv=128, max_concurrent_steps=2, causal=True)

    def call(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return mosaic.attention(q, k, v, config)

    specs = _dense_specs(replace(case, dtype="float16"))
    return Baseline("jax's attention_mgpu, f16", case, specs, call)


def _dot_product(
    q: jax.Array, k: jax.Array, v: jax.Array, *, is_causal: bool, scale: float
) -> jax.Array:
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=is_causal, scale=scale, implementation="cudnn"
    )


def _dense_specs(case: KernelCase) -> Specs:
    ((before, new),) = case.rows
    dtype = DTYPES[case.dtype]
    keys = jax.ShapeDtypeStruct((1, before + new, case.num_kv_heads, case.head_dim), dtype)
    query = jax.ShapeDtypeStruct((1, new, case.num_heads, case.head_dim), dtype)
    return {"q": query, "k": keys, "v": keys}
