"""The public ops: checks with plain messages, then the implementation that was asked for.

``implementation=None`` takes the first of the platform's order that supports the call: on a
Hopper GPU ``pallas`` then ``xla``, elsewhere ``xla``.  The platform is that of this process's
default backend; whoever traces for another device (ahead of time, or a GPU program on a machine
without one) names the implementation.  A named one is never swapped for another: what it does not
support is its NotImplementedError.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax

from pallas_kernels import pallas, reference, xla
from pallas_kernels.checks import (
    check_attention,
    check_float,
    check_int32,
    check_options,
    check_stored_scales,
    check_write,
)

IMPLEMENTATIONS: dict[str, ModuleType] = {
    "pallas": pallas,
    "reference": reference,
    "xla": xla,
}
HOPPER = "9.0"  # compute capability


def write_kv(
    k_pages: jax.Array,
    v_pages: jax.Array,
    k: jax.Array,
    v: jax.Array,
    write_slots: jax.Array,
    *,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Store the keys and values of a step's tokens in their pages.

    Args:
        k_pages, v_pages: pools ``[P, K, page_size, H]``; donate them to update in place.
            f32, bf16, f16, fp8 e4m3, or uint16 (``BF16_BITS``): the bits of bfloat16, or
            uint8 (``FP8_BITS``): those of e4m3.
        k, v: ``[T, K, H]`` f32, bf16 or f16, cast to the pool's dtype.
        write_slots: ``i32[T]``, ``page * page_size + offset``; padding points at page 0.
        k_scale, v_scale: ``f32[]`` > 0, only with fp8 pools: what is stored is value / scale,
            held to the finite range of e4m3 (448).  None is 1.
        implementation: "pallas", "xla", "reference" or None for the first that supports it.

    Returns:
        The two pools with the tokens written.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or an unknown implementation.
    """
    check_write(k_pages, v_pages, k, v, write_slots)
    check_stored_scales(k_pages, k_scale, v_scale)
    return _call(
        implementation,
        lambda module: module.write_kv(
            k_pages, v_pages, k, v, write_slots, k_scale=k_scale, v_scale=v_scale
        ),
    )


def paged_decode_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_lens: jax.Array,
    *,
    scale: float,
    logit_soft_cap: float | None = None,
    sliding_window: int | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of one query per row, at the row's last position, over the row's pages.

    Args:
        q: ``[B, N, H]`` f32, bf16 or f16; query head n reads kv head ``n // (N / K)``.
        k_pages, v_pages: pools ``[P, K, page_size, H]``, dtypes as in ``write_kv``.
        page_table: ``i32[B, W]``; entries past a row's length are not read as values.
        kv_lens: ``i32[B]``, including the query's own position; 0 marks a padding row.
        scale: factor on the scores, usually ``H ** -0.5``.
        logit_soft_cap: scores s become ``cap * tanh(s / cap)``; None for none.
        sliding_window: the query sees only the last so many positions, its own among them;
            None for all.
        k_scale, v_scale: ``f32[]`` > 0, only with fp8 pools: what is read is stored * scale.
        implementation: "pallas", "xla", "reference" or None for the first that supports it.

    Returns:
        ``[B, N, H]`` in the dtype of ``q``; padding rows are 0.

    Raises:
        ValueError: arguments that do not fit together, or an unknown implementation.
        NotImplementedError: the named implementation does not support the call.
    """
    check_attention(q, k_pages, v_pages, page_table, kv_lens)
    check_options(scale, logit_soft_cap, sliding_window)
    check_stored_scales(k_pages, k_scale, v_scale)
    if q.shape[0] != page_table.shape[0]:
        raise ValueError(
            f"q has {q.shape[0]} rows and page_table {page_table.shape[0]}; decode takes one "
            f"query per row: use paged_extend_attention for more"
        )
    options = {"scale": scale, "logit_soft_cap": logit_soft_cap, "sliding_window": sliding_window}
    return _call(
        implementation,
        lambda module: module.paged_decode_attention(
            q, k_pages, v_pages, page_table, kv_lens, **options, k_scale=k_scale, v_scale=v_scale
        ),
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
    logit_soft_cap: float | None = None,
    sliding_window: int | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Causal attention of ragged queries over paged keys: first, chunked and cached prefill.

    Row b owns queries ``[q_starts[b], q_starts[b + 1])``; they are the last ones of its
    ``kv_lens[b]`` positions, whose keys and values are all in the pages already.  A row with one
    query is a decode row, a row with none is padding; any mix may share a call.

    Args:
        q: ``[T, N, H]``, rows one behind the other, padding at the end.
        k_pages, v_pages, page_table, scale, logit_soft_cap, sliding_window, k_scale, v_scale,
            implementation: as in ``paged_decode_attention``; the window of each query ends at
            its own position.
        kv_lens: ``i32[B]``, including this step's tokens.
        q_starts: ``i32[B + 1]``, rising.

    Returns:
        ``[T, N, H]`` in the dtype of ``q``; padding tokens are 0.

    Raises:
        ValueError, NotImplementedError: as in ``paged_decode_attention``.
    """
    check_attention(q, k_pages, v_pages, page_table, kv_lens)
    check_options(scale, logit_soft_cap, sliding_window)
    check_stored_scales(k_pages, k_scale, v_scale)
    check_int32("q_starts", q_starts, "[B + 1]", (page_table.shape[0] + 1,))
    options = {"scale": scale, "logit_soft_cap": logit_soft_cap, "sliding_window": sliding_window}
    options |= {"k_scale": k_scale, "v_scale": v_scale}
    return _call(
        implementation,
        lambda module: module.paged_extend_attention(
            q, k_pages, v_pages, page_table, kv_lens, q_starts, **options
        ),
    )


def add_rms_norm(
    x: jax.Array,
    delta: jax.Array,
    weight: jax.Array,
    *,
    epsilon: float,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Add to the residual stream, and normalise the sum by its root mean square.

    Args:
        x: ``[T, D]`` f32, bf16 or f16.
        delta: ``[T, D]`` of the same dtype, or ``f32[S, T, D]``: the parts of a sum, as a
            product that is split along the summed axis leaves them.
        weight: ``[D]``, cast to the dtype of ``x``.
        epsilon: added to the mean square.
        implementation: as in ``paged_decode_attention``.

    Returns:
        ``x + delta`` and its norm times ``weight``, ``[T, D]`` each in the dtype of ``x``.

    Raises:
        ValueError, NotImplementedError: as in ``paged_decode_attention``.
    """
    check_float("x", x)
    is_parts = delta.ndim == 3 and delta.dtype == "float32"
    shape = delta.shape[1:] if is_parts else delta.shape
    if shape != x.shape or x.ndim != 2 or not (is_parts or delta.dtype == x.dtype):
        raise ValueError(
            f"delta must be as x, or float32 [S, T, D] of parts; got {delta.dtype}{delta.shape} "
            f"for x of {x.dtype}{x.shape}"
        )
    if weight.shape != x.shape[1:]:
        raise ValueError(f"weight must have shape [D] = {x.shape[1:]}; got {weight.shape}")
    return _call(
        implementation, lambda module: module.add_rms_norm(x, delta, weight, epsilon=epsilon)
    )


def default_order() -> tuple[str, ...]:
    """The implementations that ``None`` tries, in order, on this process's default backend."""
    if jax.default_backend() != "gpu":
        return ("xla",)
    is_hopper = jax.devices()[0].compute_capability == HOPPER
    return ("pallas", "xla") if is_hopper else ("xla",)


def _call(implementation: str | None, op: Callable[[ModuleType], Any]) -> Any:
    if implementation is not None:
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"implementation must be one of {', '.join(sorted(IMPLEMENTATIONS))}, or None for "
                f"the first that supports the call; got {implementation!r}"
            )
        return op(IMPLEMENTATIONS[implementation])
    *preferred, last = default_order()
    for name in preferred:
        try:
            return op(IMPLEMENTATIONS[name])
        except NotImplementedError:
            continue
    return op(IMPLEMENTATIONS[last])
