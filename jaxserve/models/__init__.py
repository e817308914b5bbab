"""Models: flax.nnx for construction, called as pure functions over a flat list of leaves."""

from jaxserve.models.attention import BF16_BITS, AttnContext, KVPool
from jaxserve.models.registry import Model, build_model

__all__ = ["BF16_BITS", "AttnContext", "KVPool", "Model", "build_model"]
