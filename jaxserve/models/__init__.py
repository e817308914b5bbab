"""Models: flax.nnx for construction, called as pure functions over a flat list of leaves."""

from jaxserve.models.attention import (
    BF16_BITS,
    FP8,
    FP8_BITS,
    AttnContext,
    KVPool,
    add_rms_norm,
    attend,
    check_page_table,
    supports_add_rms_norm,
    unsupported_reason,
)
from jaxserve.models.layers import GivenEmbeds
from jaxserve.models.registry import Model, build_model
from jaxserve.models.row_shards import RowShards

__all__ = [
    "BF16_BITS",
    "FP8",
    "FP8_BITS",
    "AttnContext",
    "GivenEmbeds",
    "KVPool",
    "Model",
    "RowShards",
    "add_rms_norm",
    "attend",
    "build_model",
    "check_page_table",
    "supports_add_rms_norm",
    "unsupported_reason",
]
