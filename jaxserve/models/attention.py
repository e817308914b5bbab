"""What attention reads and writes, passed as arguments, and the one call of the kernels.

Axis letters: T tokens, B rows, W pages per row, P pages, L layers, N query heads, K kv heads,
H head dim.
"""

from dataclasses import dataclass, field

import jax

from pallas_kernels import (
    BF16_BITS,
    FP8,
    FP8_BITS,
    add_rms_norm,
    check_page_table,
    paged_decode_attention,
    paged_extend_attention,
    supports_add_rms_norm,
    unsupported_reason,
    write_kv,
)

__all__ = [
    "BF16_BITS",
    "FP8",
    "FP8_BITS",
    "AttnContext",
    "KVPool",
    "add_rms_norm",
    "attend",
    "check_page_table",
    "supports_add_rms_norm",
    "unsupported_reason",
]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class KVPool:
    """Keys and values of every layer, ``[P, K, page_size, H]`` each.

    One array per layer and no stacked one: a layer's pool is then updated where it lies, while
    indexing a stacked pool copies it.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class AttnContext:
    """Where the tokens of a step stand and where their keys and values go."""

    positions: jax.Array  # i32[T]
    write_slots: jax.Array  # i32[T]
    page_table: jax.Array  # i32[B, W]
    kv_lens: jax.Array  # i32[B]
    q_starts: jax.Array  # i32[B + 1]
    is_decode: bool = field(metadata={"static": True})
    implementation: str = field(metadata={"static": True})

    @property
    def fuses_norms(self) -> bool:
        """Whether additions to the residual stream share a kernel with the norm after them."""
        return self.implementation == "pallas"


def attend(
    q: jax.Array,  # [T, N, H]
    k: jax.Array,  # [T, K, H]
    v: jax.Array,  # [T, K, H]
    k_pages: jax.Array,  # [P, K, page_size, H]
    v_pages: jax.Array,  # [P, K, page_size, H]
    context: AttnContext,
    *,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Write the step's keys and values, attend through the page table: out, k_pages, v_pages."""
    implementation = context.implementation
    k_pages, v_pages = write_kv(
        k_pages, v_pages, k, v, context.write_slots, implementation=implementation
    )
    if context.is_decode:
        out = paged_decode_attention(
            q,
            k_pages,
            v_pages,
            context.page_table,
            context.kv_lens,
            scale=scale,
            implementation=implementation,
        )
    else:
        out = paged_extend_attention(
            q,
            k_pages,
            v_pages,
            context.page_table,
            context.kv_lens,
            context.q_starts,
            scale=scale,
            implementation=implementation,
        )
    return out, k_pages, v_pages
