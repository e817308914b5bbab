"""The parts that decoder-only transformers are made of.  No state but parameters.

Kernels are kept ``[out, in]``, as checkpoints have them: nothing is transposed on load, and
XLA:CPU multiplies bf16 weights of this layout at the rate of the other one.
Axis letters as in docs/architecture.md: T tokens, D model, F ffn, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxserve.errors import ConfigError

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def activation(name: str):
    """The activation that a config calls ``name``.

    Raises:
        ConfigError: an activation that is not known here.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"hidden_act {name!r} is not supported; supported: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


class Linear(nnx.Module):
    """``x @ kernel.T + bias``, accumulated in f32 and returned in the dtype of ``x``."""

    def __init__(self, out_features: int, in_features: int, *, use_bias: bool, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((out_features, in_features), dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), dtype)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:  # [T, in] -> [T, out]
        y = project(x, self.kernel[...], x.dtype)
        if self.bias is None:
            return y
        return y + self.bias[...].astype(y.dtype)[None, :]


def project(x: jax.Array, kernel: jax.Array, out_dtype: jnp.dtype) -> jax.Array:
    """``x [T, in]`` times ``kernel [out, in]`` in the kernel's dtype."""
    return jax.lax.dot_general(
        x.astype(kernel.dtype),
        kernel,
        (((1,), (1,)), ((), ())),
        preferred_element_type=out_dtype,
    )


class RMSNorm(nnx.Module):
    """Root mean square normalisation (https://arxiv.org/abs/1910.07467), statistics in f32."""

    def __init__(self, size: int, *, epsilon: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:  # [T, D] -> [T, D]
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        # the product in x.dtype, as the checkpoints were trained
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)[None, :]


class Embed(nnx.Module):
    """Token embedding; ``attend`` is its use as the output layer when weights are tied."""

    def __init__(self, vocab_size: int, size: int, *, dtype: jnp.dtype):
        self.embedding = nnx.Param(jnp.zeros((vocab_size, size), dtype))

    def __call__(self, token_ids: jax.Array) -> jax.Array:  # i32[T] -> [T, D]
        return self.embedding[...].at[token_ids].get(mode="promise_in_bounds")

    def attend(self, x: jax.Array) -> jax.Array:  # [B, D] -> f32[B, V]
        return project(x, self.embedding[...], jnp.float32)


class GatedMLP(nnx.Module):
    """``down(act(gate(x)) * up(x))`` (https://arxiv.org/abs/2002.05202), gate and up fused."""

    def __init__(self, size: int, ffn: int, *, hidden_act: str, use_bias: bool, dtype: jnp.dtype):
        self.gate_up = Linear(2 * ffn, size, use_bias=use_bias, dtype=dtype)
        self.down = Linear(size, ffn, use_bias=use_bias, dtype=dtype)
        self.hidden_act = hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:  # [T, D] -> [T, D]
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)  # [T, F] each
        return self.down(activation(self.hidden_act)(gate) * up)
