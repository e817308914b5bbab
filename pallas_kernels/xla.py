"""The portable path: the ops in plain XLA, for CPUs and for GPUs without a kernel of ours.

Both attentions walk the keys in blocks of pages with a running maximum and sum (online softmax,
https://arxiv.org/abs/1805.02867), so that their time follows the tokens that exist and not the
width of the page table: one bucket serves every context length.
"""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.layout import KVLayout, compute_dtype, from_stored, to_stored
from pallas_kernels.reference import MASKED, add_rms_norm

__all__ = ["add_rms_norm", "paged_decode_attention", "paged_extend_attention", "write_kv"]

KV_BLOCK = 64  # tokens of a row brought in at a time; less of a short one is padding of the last
BLOCK_TOKENS = 2048  # of all rows of DECODE: where they are few, twice KV_BLOCK halves the ops
QUERY_TILE = 64  # queries of a row worked on at a time


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
    """Store one key and value per token, in place when the pools are donated."""
    page_size = KVLayout.of(k_pages).page_size
    pages, offsets = write_slots // page_size, write_slots % page_size
    k, v = to_stored(k, k_pages.dtype, k_scale), to_stored(v, v_pages.dtype, v_scale)
    return (
        k_pages.at[pages, :, offsets].set(k, mode="promise_in_bounds"),
        v_pages.at[pages, :, offsets].set(v, mode="promise_in_bounds"),
    )


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
    """One query per row; all rows advance together over blocks of tokens."""
    layout = KVLayout.of(k_pages)
    num_rows, num_heads, head_dim = q.shape
    group = num_heads // layout.num_kv_heads
    wanted = KV_BLOCK if num_rows * 2 * KV_BLOCK > BLOCK_TOKENS else 2 * KV_BLOCK
    table, pages_per_block = _whole_blocks(page_table, layout.page_size, wanted)
    block = pages_per_block * layout.page_size
    queries = _scaled(q, scale, k_scale, compute_dtype(k_pages.dtype)).reshape(
        num_rows, layout.num_kv_heads, group, head_dim
    )
    offsets = jnp.arange(block, dtype=jnp.int32)

    first = _first_blocks(kv_lens, sliding_window, block)

    def attend(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        if first is None:
            width = (num_rows, pages_per_block)
            ids = lax.dynamic_slice(table, (0, index * pages_per_block), width)
            visible = (offsets + index * block)[None, :] < kv_lens[:, None]  # [B, S]
        else:
            ids = _blocks_of_rows(table, first + index, pages_per_block)
            behind = kv_lens[:, None] - offsets[None, :] - ((first + index) * block)[:, None]
            visible = (behind > 0) & (behind <= sliding_window)  # tokens up to the query, counted
        keys = _gather_tiles(k_pages, ids)  # [B, K, S, H]
        values = _gather_tiles(v_pages, ids)
        scores = jnp.einsum("bkgh,bksh->bkgs", queries, keys, preferred_element_type=jnp.float32)
        scores = _capped(scores, logit_soft_cap)
        values = jnp.where(visible[:, None, :, None], values, jnp.zeros((), values.dtype))
        scores = jnp.where(visible[:, None, None, :], scores, MASKED)
        return _accumulate(carry, scores, values, "bkgs,bksh->bkgh")

    shape = (num_rows, layout.num_kv_heads, group)
    num_blocks = _num_blocks(kv_lens, first, block)
    out = _normalised(lax.fori_loop(0, num_blocks, attend, _empty(shape, head_dim)), v_scale)
    out = jnp.where((kv_lens > 0)[:, None, None, None], out, 0.0)
    return out.reshape(q.shape).astype(q.dtype)


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
    """Ragged causal attention, one tile of ``QUERY_TILE`` queries of one row at a time.

    A tile that would reach beyond the last token is moved back to end there, and no tile writes
    what is not its row's: nothing is padded, so nothing is copied for it.
    """
    layout = KVLayout.of(k_pages)
    num_tokens, num_heads, head_dim = q.shape
    tile = min(QUERY_TILE, num_tokens)
    group = num_heads // layout.num_kv_heads
    table, pages_per_block = _whole_blocks(page_table, layout.page_size, KV_BLOCK)
    block = pages_per_block * layout.page_size
    queries = _scaled(q, scale, k_scale, compute_dtype(k_pages.dtype))
    q_lens = q_starts[1:] - q_starts[:-1]  # [B]
    tile_ends = jnp.cumsum((q_lens + tile - 1) // tile, dtype=jnp.int32)  # [B]
    tile_offsets = jnp.arange(tile, dtype=jnp.int32)
    offsets = jnp.arange(block, dtype=jnp.int32)

    def one_tile(index: jax.Array, out: jax.Array) -> jax.Array:
        row = jnp.sum(tile_ends <= index, dtype=jnp.int32)  # searchsorted would be a loop
        nth = index - (tile_ends[row] - (q_lens[row] + tile - 1) // tile)
        start = q_starts[row] + nth * tile
        moved = jnp.maximum(start + tile - num_tokens, 0)
        begin = start - moved
        first_position = kv_lens[row] - q_lens[row] + nth * tile - moved
        mine = lax.dynamic_slice(queries, (begin, 0, 0), (tile, num_heads, head_dim))
        mine = mine.reshape(tile, layout.num_kv_heads, group, head_dim).transpose(1, 2, 0, 3)
        positions = first_position + tile_offsets  # [Tq]

        def attend(step: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            ids = lax.dynamic_slice(table, (row, step * pages_per_block), (1, pages_per_block))
            keys = _gather_tiles(k_pages, ids)[0]  # [K, S, H]
            values = _gather_tiles(v_pages, ids)[0]
            kv_positions = offsets + step * block  # [S]
            scores = jnp.einsum("kgth,ksh->kgts", mine, keys, preferred_element_type=jnp.float32)
            scores = _capped(scores, logit_soft_cap)
            visible = kv_positions[None, :] <= positions[:, None]  # [Tq, S]
            written = kv_positions < kv_lens[row]
            if sliding_window is not None:
                visible &= kv_positions[None, :] > positions[:, None] - sliding_window
                written &= kv_positions > first_position - sliding_window
            values = jnp.where(written[None, :, None], values, jnp.zeros((), values.dtype))
            scores = jnp.where((visible & written[None, :])[None, None], scores, MASKED)
            return _accumulate(carry, scores, values, "kgts,ksh->kgth")

        last_position = jnp.minimum(first_position + tile, kv_lens[row])
        num_blocks = (last_position + block - 1) // block
        shape = (layout.num_kv_heads, group, tile)
        first = 0
        if sliding_window is not None:
            first = jnp.maximum(first_position - sliding_window + 1, 0) // block
        done = lax.fori_loop(first, num_blocks, attend, _empty(shape, head_dim))
        done = _normalised(done, v_scale)
        done = done.transpose(2, 0, 1, 3).reshape(tile, num_heads, head_dim)
        before = lax.dynamic_slice(out, (begin, 0, 0), done.shape)
        tokens = begin + tile_offsets
        is_mine = (tokens >= start) & (tokens < q_starts[row + 1])
        done = jnp.where(is_mine[:, None, None], done, before)
        return lax.dynamic_update_slice(out, done, (begin, 0, 0))

    out = jnp.zeros((num_tokens, num_heads, head_dim), jnp.float32)
    return lax.fori_loop(0, tile_ends[-1], one_tile, out).astype(q.dtype)


def _whole_blocks(page_table: jax.Array, page_size: int, block: int) -> tuple[jax.Array, int]:
    """Pad the table with null pages to a multiple of the pages in a block of so many tokens."""
    pages_per_row = page_table.shape[1]
    pages_per_block = min(pages_per_row, max(1, block // page_size))
    missing = -pages_per_row % pages_per_block
    return jnp.pad(page_table, ((0, 0), (0, missing))), pages_per_block


def _first_blocks(kv_lens: jax.Array, window: int | None, block: int) -> jax.Array | None:
    """``i32[B]``: the block in which each row's window begins; None without a window."""
    return None if window is None else jnp.maximum(kv_lens - window, 0) // block


def _num_blocks(kv_lens: jax.Array, first: jax.Array | None, block: int) -> jax.Array:
    """Blocks of the row that has most, each counted from the row's first."""
    if first is None:
        return (jnp.max(kv_lens) + block - 1) // block
    return jnp.max((kv_lens + block - 1) // block - first)


def _blocks_of_rows(table: jax.Array, blocks: jax.Array, pages_per_block: int) -> jax.Array:
    """Page ids ``[B, pages_per_block]`` of block ``blocks[b]`` of row b; past the end the last."""
    pages = jnp.arange(pages_per_block, dtype=jnp.int32)
    columns = blocks[:, None] * pages_per_block + pages[None, :]
    columns = jnp.minimum(columns, table.shape[1] - 1)
    return jnp.take_along_axis(table, columns, axis=1, mode="promise_in_bounds")


def _gather_tiles(pages: jax.Array, ids: jax.Array) -> jax.Array:
    """Tiles of the pages ``ids`` [B, W] as ``[B, K, W * page_size, H]``.

    The pool is seen as [P * K, page_size * H]: XLA:CPU copies one long contiguous run per tile,
    2x faster than gathering [P] pages and moving K in front of W.
    """
    layout = KVLayout.of(pages)
    tile = layout.page_size * layout.head_dim
    heads = jnp.arange(layout.num_kv_heads, dtype=jnp.int32)
    index = ids[:, None, :] * layout.num_kv_heads + heads[None, :, None]  # [B, K, W]
    flat = pages.reshape(layout.num_pages * layout.num_kv_heads, tile)
    tiles = flat.at[index].get(mode="promise_in_bounds")  # [B, K, W, page_size * H]
    rows, pages_per_row = ids.shape
    return from_stored(tiles).reshape(
        rows, layout.num_kv_heads, pages_per_row * layout.page_size, layout.head_dim
    )


def _scaled(q: jax.Array, scale: float, k_scale: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    """The queries with every factor of the scores in them: one product for many."""
    q = q.astype(jnp.float32) * scale
    return (q if k_scale is None else q * k_scale).astype(dtype)


def _capped(scores: jax.Array, cap: float | None) -> jax.Array:
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def _empty(shape: tuple[int, ...], head_dim: int) -> tuple[jax.Array, ...]:
    """Running maximum, running sum, unnormalised output."""
    return (
        jnp.full(shape, MASKED, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, head_dim), jnp.float32),
    )


def _accumulate(
    carry: tuple[jax.Array, ...], scores: jax.Array, values: jax.Array, spec: str
) -> tuple[jax.Array, ...]:
    maximum, total, out = carry
    new_maximum = jnp.maximum(maximum, scores.max(axis=-1))
    weights = jnp.exp(scores - new_maximum[..., None])
    decay = jnp.exp(maximum - new_maximum)
    total = total * decay + weights.sum(axis=-1)
    added = jnp.einsum(
        spec, weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return new_maximum, total, out * decay[..., None] + added


def _normalised(carry: tuple[jax.Array, ...], v_scale: jax.Array | None) -> jax.Array:
    _, total, out = carry
    out = out / jnp.maximum(total, 1e-30)[..., None]  # a row of length 0 divides 0 by this
    return out if v_scale is None else out * v_scale
