"""Paged attention for JAX: decode, ragged extend, and the write of keys and values."""

from pallas_kernels.api import (
    paged_decode_attention,
    paged_extend_attention,
    write_kv,
)
from pallas_kernels.layout import KVLayout

__all__ = ["KVLayout", "paged_decode_attention", "paged_extend_attention", "write_kv"]
