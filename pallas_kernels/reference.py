"""The specification of every op, in plain jnp, written to be read rather than to be fast.

Scaled dot-product attention (https://arxiv.org/abs/1706.03762) with grouped queries
(https://arxiv.org/abs/2305.13245) over a paged cache (https://arxiv.org/abs/2309.06180).
Statistics and accumulation are f32 whatever the inputs are.

With s = scale * q k, in this order: a soft cap makes it cap * tanh(s / cap); a query at position
p sees the keys of its row in [0, p], with a sliding window those in (p - window, p].  An fp8 pool
holds value / scale: ``k_scale`` and ``v_scale`` f32[] give it back.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.layout import KVLayout, from_stored, to_stored

MASKED = -1e30  # finite: a row with nothing to attend to must not turn into NaN


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
    """Store one key and value per token; of two equal slots an unspecified one wins."""
    page_size = KVLayout.of(k_pages).page_size
    pages, offsets = write_slots // page_size, write_slots % page_size
    k_pages = k_pages.at[pages, :, offsets].set(to_stored(k, k_pages.dtype, k_scale))
    v_pages = v_pages.at[pages, :, offsets].set(to_stored(v, v_pages.dtype, v_scale))
    return k_pages, v_pages


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
) -> jax.Array:  # [B, N, H], dtype of q
    """One query per row, at the row's last position."""
    num_rows = q.shape[0]
    q_starts = jnp.arange(num_rows + 1, dtype=jnp.int32)
    out = paged_extend_attention(
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
    )
    return jnp.where((kv_lens > 0)[:, None, None], out, jnp.zeros((), out.dtype))


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
) -> jax.Array:  # [T, N, H], dtype of q; tokens of no row are 0
    """Causal attention of ragged queries, each row's ending at its ``kv_len``."""
    num_tokens, num_heads, head_dim = q.shape
    layout = KVLayout.of(k_pages)
    num_rows, pages_per_row = page_table.shape
    context = pages_per_row * layout.page_size

    tokens = jnp.arange(num_tokens, dtype=jnp.int32)
    row = jnp.searchsorted(q_starts[1:], tokens, side="right").astype(jnp.int32)  # [T]
    owned = row < num_rows
    row = jnp.minimum(row, num_rows - 1)
    q_lens = q_starts[1:] - q_starts[:-1]
    position = kv_lens[row] - q_lens[row] + tokens - q_starts[row]  # [T]

    def rows_of(pages: jax.Array, stored_scale: jax.Array | None) -> jax.Array:  # f32[B, S, N, H]
        tiles = from_stored(pages[page_table]).astype(jnp.float32)  # [B, W, K, page_size, H]
        if stored_scale is not None:
            tiles = tiles * stored_scale
        tiles = tiles.transpose(0, 1, 3, 2, 4).reshape(
            num_rows, context, layout.num_kv_heads, head_dim
        )
        return jnp.repeat(tiles, num_heads // layout.num_kv_heads, axis=2)

    keys, values = rows_of(k_pages, k_scale)[row], rows_of(v_pages, v_scale)[row]  # [T, S, N, H]
    scores = jnp.einsum("tnh,tsnh->tns", q.astype(jnp.float32), keys) * scale
    if logit_soft_cap is not None:
        scores = logit_soft_cap * jnp.tanh(scores / logit_soft_cap)
    kv_positions = jnp.arange(context, dtype=jnp.int32)[None, :]
    visible = (kv_positions <= position[:, None]) & owned[:, None]  # [T, S]
    if sliding_window is not None:
        visible &= kv_positions > position[:, None] - sliding_window
    scores = jnp.where(visible[:, None, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    # a page nobody owns may hold NaN, and 0 * NaN is NaN
    values = jnp.where(visible[:, :, None, None], values, 0.0)
    out = jnp.einsum("tns,tsnh->tnh", weights, values)
    return jnp.where(owned[:, None, None], out, 0.0).astype(q.dtype)


def add_rms_norm(
    x: jax.Array,  # [T, D]
    delta: jax.Array,  # [T, D], or f32[S, T, D]: parts of a sum
    weight: jax.Array,  # [D]
    *,
    epsilon: float,
) -> tuple[jax.Array, jax.Array]:  # [T, D] each, dtype of x
    """The sum of x and delta, and its root mean square norm; statistics in f32."""
    if delta.ndim == 3:
        delta = jnp.sum(delta, axis=0)
    total = x + delta.astype(x.dtype)
    values = total.astype(jnp.float32)
    values = values * jax.lax.rsqrt(jnp.mean(values * values, axis=-1, keepdims=True) + epsilon)
    return total, values.astype(x.dtype) * weight.astype(x.dtype)[None, :]
