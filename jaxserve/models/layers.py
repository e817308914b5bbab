"""The parts that decoder-only transformers are made of.  No state but parameters.

Kernels are kept ``[out, in]``, as checkpoints have them: nothing is transposed on load, and
XLA:CPU multiplies bf16 weights of this layout at the rate of the other one.
Axis letters as in docs/architecture.md: T tokens, D model, F ffn, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxserve.errors import ConfigError
from pallas_kernels import add_rms_norm, supports_add_rms_norm

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
    """``x @ kernel.T + bias``, accumulated in f32 and returned in the dtype of ``x``.

    ``reduce_over`` names the mesh axis along which ``in`` is divided, if it is.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        use_bias: bool,
        dtype: jnp.dtype,
        reduce_over: str | None = None,
    ):
        self.kernel = nnx.Param(jnp.zeros((out_features, in_features), dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), dtype)) if use_bias else None
        self.reduce_over = reduce_over

    def partial_sums(self, x: jax.Array) -> jax.Array:  # [T, in] -> [T, out] or f32[S, T, out]
        """The product for ``RMSNorm.after_adding``, which adds the S parts of a split one up.

        What XLA does with a product that would leave most of a GPU idle, except for the kernel
        that adds the parts up.
        """
        num_splits = num_product_splits(x.shape[0], *self.kernel.shape)
        if num_splits == 1 or self.reduce_over is not None or self.bias is not None:
            return self(x)
        kernel = self.kernel[...]
        return jax.lax.dot_general(
            x.astype(kernel.dtype).reshape(x.shape[0], num_splits, -1),
            kernel.reshape(kernel.shape[0], num_splits, -1),
            (((2,), (2,)), ((1,), (1,))),
            preferred_element_type=jnp.float32,
        )

    def __call__(self, x: jax.Array) -> jax.Array:  # [T, in] -> [T, out]
        y = project(x, self.kernel[...], x.dtype)
        if self.reduce_over is not None:
            y = jax.lax.psum(y, self.reduce_over)
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


def num_product_splits(num_tokens: int, out_features: int, in_features: int) -> int:
    """Parts of the summed axis that let blocks of 64 x 64 outputs fill a GPU four times over."""
    num_blocks = -(-num_tokens // 64) * -(-out_features // 64)
    fitting = (s for s in (8, 4, 2) if in_features % (64 * s) == 0 and num_blocks * s <= 4 * 132)
    return next(fitting, 1)


class RMSNorm(nnx.Module):
    """Root mean square normalisation (https://arxiv.org/abs/1910.07467), statistics in f32."""

    def __init__(self, size: int, *, epsilon: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:  # [..., size] -> [..., size]
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        # the product in x.dtype, as the checkpoints were trained
        scale = jnp.expand_dims(self.scale[...].astype(x.dtype), range(x.ndim - 1))
        return y.astype(x.dtype) * scale

    def after_adding(
        self, x: jax.Array, delta: jax.Array, *, fused: bool
    ) -> tuple[jax.Array, jax.Array]:
        """``x [T, size]`` plus ``delta``, and the norm of that.

        ``fused`` does both in one kernel where there is one for this size.  ``delta`` is what a
        ``Linear`` gave, or its partial sums.
        """
        if fused and supports_add_rms_norm(x.shape[-1], x.dtype):
            return add_rms_norm(
                x, delta, self.scale[...], epsilon=self.epsilon, implementation="pallas"
            )
        if delta.ndim > x.ndim:
            delta = jnp.sum(delta, axis=0).astype(x.dtype)
        x = x + delta
        return x, self(x)


class Embed(nnx.Module):
    """Token embedding; ``num_rows`` of the vocabulary are here.

    ``reduce_over`` names the mesh axis along which the vocabulary is divided, if it is.
    """

    def __init__(
        self, num_rows: int, size: int, *, dtype: jnp.dtype, reduce_over: str | None = None
    ):
        self.embedding = nnx.Param(jnp.zeros((num_rows, size), dtype))
        self.reduce_over = reduce_over

    def __call__(self, token_ids: jax.Array) -> jax.Array:  # i32[T] -> [T, D]
        table = self.embedding[...]
        if self.reduce_over is None:
            return table.at[token_ids].get(mode="promise_in_bounds")
        rows = token_ids - jax.lax.axis_index(self.reduce_over) * table.shape[0]
        is_here = (rows >= 0) & (rows < table.shape[0])
        found = table.at[jnp.where(is_here, rows, 0)].get(mode="promise_in_bounds")
        return jax.lax.psum(jnp.where(is_here[:, None], found, 0), self.reduce_over)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class GivenEmbeds:
    """Embeddings that stand in for those of some token ids."""

    is_given: jax.Array  # bool[T]
    rows: jax.Array  # [T, D]; of the other tokens they mean nothing

    def over(self, x: jax.Array) -> jax.Array:
        """The embeddings ``x [T, D]`` with those that are given."""
        return jnp.where(self.is_given[:, None], self.rows.astype(x.dtype), x)


class GatedMLP(nnx.Module):
    """``down(act(gate(x)) * up(x))`` (https://arxiv.org/abs/2002.05202), gate and up fused."""

    def __init__(
        self,
        size: int,
        ffn: int,
        *,
        hidden_act: str,
        use_bias: bool,
        dtype: jnp.dtype,
        reduce_over: str | None = None,
    ):
        self.gate_up = Linear(2 * ffn, size, use_bias=use_bias, dtype=dtype)
        self.down = Linear(size, ffn, use_bias=use_bias, dtype=dtype, reduce_over=reduce_over)
        self.hidden_act = hidden_act

    def __call__(self, x: jax.Array, *, fused: bool = False) -> jax.Array:
        """[T, D] -> [T, D], or the partial sums of that where it is ``fused`` with the norm."""
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)  # [T, F] each
        product = self.down.partial_sums if fused else self.down
        return product(activation(self.hidden_act)(gate) * up)
