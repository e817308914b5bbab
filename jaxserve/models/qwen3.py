"""Qwen3 (https://arxiv.org/abs/2505.09388): Llama with queries and keys normalised per head."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxserve.model_config import ModelConfig
from jaxserve.models.layers import RMSNorm
from jaxserve.models.llama import Llama


class QKNorm(nnx.Module):
    """One norm over the width of a head for all queries, one for all keys."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype):
        self.q = RMSNorm(config.head_dim, epsilon=config.rms_norm_eps, dtype=dtype)
        self.k = RMSNorm(config.head_dim, epsilon=config.rms_norm_eps, dtype=dtype)

    def __call__(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.q(q), self.k(k)  # [T, N, H], [T, K, H]


Qwen3 = functools.partial(Llama, make_qk_norm=QKNorm)
