"""Paged attention for JAX: decode, ragged extend, and the write of keys and values."""

from pallas_kernels.add_rms_norm import supports_add_rms_norm
from pallas_kernels.api import (
    add_rms_norm,
    paged_decode_attention,
    paged_extend_attention,
    write_kv,
)
from pallas_kernels.checks import check_page_table
from pallas_kernels.layout import BF16_BITS, FP8, FP8_BITS, KVLayout
from pallas_kernels.support import unsupported_reason

__all__ = [
    "BF16_BITS",
    "FP8",
    "FP8_BITS",
    "KVLayout",
    "add_rms_norm",
    "check_page_table",
    "paged_decode_attention",
    "paged_extend_attention",
    "supports_add_rms_norm",
    "unsupported_reason",
    "write_kv",
]
