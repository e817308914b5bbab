"""Paged attention for JAX: decode, ragged extend, and the write of keys and values."""

from pallas_kernels.api import (
    paged_decode_attention,
    paged_extend_attention,
    write_kv,
)
from pallas_kernels.layout import BF16_BITS, KVLayout

__all__ = ["BF16_BITS", "KVLayout", "paged_decode_attention", "paged_extend_attention", "write_kv"]
