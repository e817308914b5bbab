"""The public ops: checks with plain messages, then the implementation that was asked for."""

import jax

from pallas_kernels import reference, xla
from pallas_kernels.layout import KVLayout

IMPLEMENTATIONS = {"reference": reference, "xla": xla}
DEFAULT_IMPLEMENTATION = "xla"


def write_kv(
    k_pages: jax.Array,
    v_pages: jax.Array,
    k: jax.Array,
    v: jax.Array,
    write_slots: jax.Array,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Store the keys and values of a step's tokens in their pages.

    Args:
        k_pages, v_pages: pools ``[P, K, page_size, H]``; donate them to update in place.
            A pool of dtype uint16 (``BF16_BITS``) holds the bits of bfloat16.
        k, v: ``[T, K, H]``, cast to the pool's dtype.
        write_slots: ``i32[T]``, ``page * page_size + offset``; padding points at page 0.
        implementation: "xla", "reference" or None for the default.

    Returns:
        The two pools with the tokens written.

    Raises:
        ValueError: shapes that do not fit together, or an unknown implementation.
    """
    _check_pools(k_pages, v_pages)
    layout = KVLayout.of(k_pages)
    expected = (write_slots.shape[0], layout.num_kv_heads, layout.head_dim)
    for name, value in (("k", k), ("v", v)):
        if value.shape != expected:
            raise ValueError(f"{name} must have shape [T, K, H] = {expected}; got {value.shape}")
    return _module(implementation).write_kv(k_pages, v_pages, k, v, write_slots)


def paged_decode_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    *,
    scale: float,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of one query per row over the row's pages.

    Args:
        q: ``[B, N, H]``; N is a multiple of K, query head n reads kv head ``n // (N / K)``.
        k_pages, v_pages: pools ``[P, K, page_size, H]``.
        page_table: ``i32[B, W]``; entries past a row's length are not read as values.
        kv_lens: ``i32[B]``, including the query's own position; 0 marks a padding row.
        scale: factor on the scores, usually ``H ** -0.5``.
        implementation: "xla", "reference" or None for the default.

    Returns:
        ``[B, N, H]`` in the dtype of ``q``; padding rows are 0.

    Raises:
        ValueError: shapes that do not fit together, or an unknown implementation.
    """
    _check_attention(q, k_pages, v_pages, page_table, kv_lens)
    if q.shape[0] != page_table.shape[0]:
        raise ValueError(f"q has {q.shape[0]} rows and page_table {page_table.shape[0]}")
    return _module(implementation).paged_decode_attention(
        q, k_pages, v_pages, page_table, kv_lens, scale=scale
    )


def paged_extend_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    q_starts: jax.Array,
    *,
    scale: float,
    implementation: str | None = None,
) -> jax.Array:
    """Causal attention of ragged queries over paged keys: first, chunked and cached prefill.

    Row b owns queries ``[q_starts[b], q_starts[b + 1])``; they are the last ones of its
    ``kv_lens[b]`` positions, whose keys and values are all in the pages already.

    Args:
        q: ``[T, N, H]``, rows one behind the other, padding at the end.
        k_pages, v_pages: pools ``[P, K, page_size, H]``.
        page_table: ``i32[B, W]``.
        kv_lens: ``i32[B]``, including this step's tokens.
        q_starts: ``i32[B + 1]``, rising.
        scale: factor on the scores, usually ``H ** -0.5``.
        implementation: "xla", "reference" or None for the default.

    Returns:
        ``[T, N, H]`` in the dtype of ``q``; padding tokens are 0.

    Raises:
        ValueError: shapes that do not fit together, or an unknown implementation.
    """
    _check_attention(q, k_pages, v_pages, page_table, kv_lens)
    if q_starts.shape != (page_table.shape[0] + 1,):
        raise ValueError(
            f"q_starts must have shape [B + 1] = ({page_table.shape[0] + 1},); got {q_starts.shape}"
        )
    return _module(implementation).paged_extend_attention(
        q, k_pages, v_pages, page_table, kv_lens, q_starts, scale=scale
    )


def _module(implementation: str | None):
    name = implementation or DEFAULT_IMPLEMENTATION
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(sorted(IMPLEMENTATIONS))}; got {name!r}"
        )
    return IMPLEMENTATIONS[name]


def _check_pools(k_pages: jax.Array, v_pages: jax.Array) -> None:
    KVLayout.of(k_pages)
    if k_pages.shape != v_pages.shape or k_pages.dtype != v_pages.dtype:
        raise ValueError(
            f"k_pages and v_pages must agree; got {k_pages.dtype}{k_pages.shape} "
            f"and {v_pages.dtype}{v_pages.shape}"
        )


def _check_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
) -> None:
    _check_pools(k_pages, v_pages)
    layout = KVLayout.of(k_pages)
    if q.ndim != 3 or q.shape[2] != layout.head_dim:
        raise ValueError(f"q must have shape [tokens, N, H={layout.head_dim}]; got {q.shape}")
    if q.shape[1] % layout.num_kv_heads:
        raise ValueError(
            f"the number of query heads ({q.shape[1]}) must be a multiple of the number of "
            f"key/value heads ({layout.num_kv_heads})"
        )
    if page_table.ndim != 2 or page_table.dtype != "int32":
        raise ValueError(
            f"page_table must be int32 [B, W]; got {page_table.dtype}{page_table.shape}"
        )
    if kv_lens.shape != page_table.shape[:1]:
        raise ValueError(
            f"kv_lens must have shape [B] = {page_table.shape[:1]}; got {kv_lens.shape}"
        )
