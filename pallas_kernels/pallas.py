"""The Hopper path: what the Mosaic GPU kernels take, checked before they are called.

What a kernel cannot do is one thing, NotImplementedError while tracing, with what was given, what
is supported and what to use instead.  Nothing here depends on a device being present.

``write_kv`` is XLA's scatter: two kernels, which update a donated pool where it lies and have the
rotary embedding and the casts fused into them.  A Mosaic kernel that writes keys and values at
once is in place too (compiled for an H100, through Refs), but XLA fuses nothing into it: with
embedding and slices a layer then has four kernels instead of three.  Only a kernel that also
rotates, from the whole of q, k and v, could save any; whether it does is for a GPU to measure.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import paged_decode, paged_extend, xla
from pallas_kernels.add_rms_norm import add_rms_norm
from pallas_kernels.layout import KVLayout
from pallas_kernels.support import unsupported_reason
from pallas_kernels.tuning import (
    AttentionShape,
    DecodeConfig,
    ExtendConfig,
    decode_config,
    extend_config,
)

__all__ = ["add_rms_norm", "paged_decode_attention", "paged_extend_attention", "write_kv"]


def write_kv(
    k_pages: jax.Array,  # [P, K, page_size, H]
    v_pages: jax.Array,  # [P, K, page_size, H]
    k: jax.Array,  # [T, K, H]
    v: jax.Array,  # [T, K, H]
    write_slots: jax.Array,  # i32[T]
    *,
    k_scale: jax.Array | None = None,  # f32[]
    v_scale: jax.Array | None = None,  # f32[]
) -> tuple[jax.Array, jax.Array]:
    """XLA's scatter, of at least two tokens.

    Of one token XLA:GPU makes a slice update, whose clamps and selects are two kernels more: a
    lone token is written twice.
    """
    if write_slots.shape[0] == 1:
        k, v, write_slots = (jnp.repeat(array, 2, axis=0) for array in (k, v, write_slots))
    return xla.write_kv(k_pages, v_pages, k, v, write_slots, k_scale=k_scale, v_scale=v_scale)


def paged_decode_attention(
    q: jax.Array,  # [B, N, H]
    k_pages: jax.Array,  # [P, K, page_size, H]
    v_pages: jax.Array,  # [P, K, page_size, H]
    page_table: jax.Array,  # i32[B, W]
    kv_lens: jax.Array,  # i32[B]; 0 for padding rows, whose output is 0
    *,
    scale: float,
    logit_soft_cap: float | None = None,
    sliding_window: int | None = None,
    k_scale: jax.Array | None = None,  # f32[]
    v_scale: jax.Array | None = None,  # f32[]
    config: DecodeConfig | None = None,
    interpret: object = False,
) -> jax.Array:  # [B, N, H], dtype of q
    """Split-K flash decoding; ``config`` None takes the tuned or the reasoned one.

    ``interpret`` goes to ``plgpu.kernel``: the parameters of the GPU interpreter, or False.
    """
    _check_supported(q, k_pages)
    return paged_decode.paged_decode_attention(
        q,
        k_pages,
        v_pages,
        page_table,
        kv_lens,
        scale=scale,
        logit_soft_cap=logit_soft_cap,
        sliding_window=sliding_window,
        k_scale=k_scale,
        v_scale=v_scale,
        config=config or decode_config(AttentionShape.of(q, k_pages, page_table)),
        interpret=interpret,
    )


def paged_extend_attention(
    q: jax.Array,  # [T, N, H]
    k_pages: jax.Array,  # [P, K, page_size, H]
    v_pages: jax.Array,  # [P, K, page_size, H]
    page_table: jax.Array,  # i32[B, W]
    kv_lens: jax.Array,  # i32[B]; including this step's tokens
    q_starts: jax.Array,  # i32[B + 1]; row b owns queries [q_starts[b], q_starts[b + 1])
    *,
    scale: float,
    logit_soft_cap: float | None = None,
    sliding_window: int | None = None,
    k_scale: jax.Array | None = None,  # f32[]
    v_scale: jax.Array | None = None,  # f32[]
    config: ExtendConfig | None = None,
    interpret: object = False,
) -> jax.Array:  # [T, N, H], dtype of q; tokens of no row are 0
    """Ragged causal flash attention over pages; ``config`` and ``interpret`` as in decode."""
    _check_supported(q, k_pages)
    return paged_extend.paged_extend_attention(
        q,
        k_pages,
        v_pages,
        page_table,
        kv_lens,
        q_starts,
        scale=scale,
        logit_soft_cap=logit_soft_cap,
        sliding_window=sliding_window,
        k_scale=k_scale,
        v_scale=v_scale,
        config=config or extend_config(AttentionShape.of(q, k_pages, page_table)),
        interpret=interpret,
    )


def _check_supported(q: jax.Array, k_pages: jax.Array) -> None:
    layout = KVLayout.of(k_pages)
    reason = unsupported_reason(
        num_heads=q.shape[1],
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        page_size=layout.page_size,
        dtype=q.dtype,
        kv_dtype=k_pages.dtype,
    )
    if reason is not None:
        raise NotImplementedError(reason)
