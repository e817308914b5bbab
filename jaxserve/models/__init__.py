"""Models: flax.nnx for construction, called as pure functions over a flat list of leaves."""

from jaxserve.models.attention import AttnContext, KVPool
from jaxserve.models.registry import Model, build_model

__all__ = ["AttnContext", "KVPool", "Model", "build_model"]
