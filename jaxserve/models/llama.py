"""Llama (https://arxiv.org/abs/2302.13971; grouped queries and biases as in its successors).

Axis letters: T tokens, B rows that want logits, D model, N query heads, K kv heads, H head dim,
V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxserve.model_config import ModelConfig
from jaxserve.models.attention import AttnContext, KVPool, attend
from jaxserve.models.layers import Embed, GatedMLP, Linear, RMSNorm, project
from jaxserve.models.rope import rope_frequencies, rotate, rotation


class Attention(nnx.Module):
    """Grouped-query attention with the three input projections fused."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype):
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        bias = config.attention_bias
        self.qkv = Linear(width, config.hidden_size, use_bias=bias, dtype=dtype)
        self.out = Linear(
            config.hidden_size, config.num_heads * config.head_dim, use_bias=bias, dtype=dtype
        )

    def __call__(
        self,
        x: jax.Array,  # [T, D]
        pages: tuple[jax.Array, jax.Array],
        cos_sin: tuple[jax.Array, jax.Array],
        context: AttnContext,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        heads = self.num_heads + 2 * self.num_kv_heads
        qkv = self.qkv(x).reshape(x.shape[0], heads, self.head_dim)
        borders = (self.num_heads, self.num_heads + self.num_kv_heads)
        q, k, v = jnp.split(qkv, borders, axis=1)  # [T, N | K | K, H]
        q, k = rotate(q, *cos_sin), rotate(k, *cos_sin)
        out, *pages = attend(q, k, v, *pages, context, scale=self.head_dim**-0.5)
        return self.out(out.reshape(x.shape[0], -1)), (pages[0], pages[1])


class Layer(nnx.Module):
    """Attention and MLP, each behind its norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, *, dtype: jnp.dtype):
        size, epsilon = config.hidden_size, config.rms_norm_eps
        self.input_norm = RMSNorm(size, epsilon=epsilon, dtype=dtype)
        self.attn = Attention(config, dtype=dtype)
        self.post_attn_norm = RMSNorm(size, epsilon=epsilon, dtype=dtype)
        self.mlp = GatedMLP(
            size,
            config.intermediate_size,
            hidden_act=config.hidden_act,
            use_bias=config.mlp_bias,
            dtype=dtype,
        )

    def __call__(
        self,
        x: jax.Array,  # [T, D]
        pages: tuple[jax.Array, jax.Array],
        cos_sin: tuple[jax.Array, jax.Array],
        context: AttnContext,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        attended, pages = self.attn(self.input_norm(x), pages, cos_sin, context)
        x = x + attended
        return x + self.mlp(self.post_attn_norm(x)), pages


class Llama(nnx.Module):
    """The whole decoder.  ``context_len`` is the served one: rope scaling may depend on it."""

    def __init__(
        self, config: ModelConfig, *, context_len: int, dtype: jnp.dtype, act_dtype: jnp.dtype
    ):
        size = config.hidden_size
        self.embed = Embed(config.vocab_size, size, dtype=dtype)
        self.layers = nnx.List([Layer(config, dtype=dtype) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(size, epsilon=config.rms_norm_eps, dtype=dtype)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(config.vocab_size, size, use_bias=False, dtype=dtype)
        )
        frequencies, factor = rope_frequencies(config, context_len)
        self.rope = (tuple(float(value) for value in frequencies), factor)
        self.act_dtype = act_dtype

    def __call__(
        self,
        token_ids: jax.Array,  # i32[T]
        kv: KVPool,
        context: AttnContext,
    ) -> tuple[jax.Array, KVPool]:
        """Final hidden states ``[T, D]`` and the pool with the step's keys and values in it."""
        x = self.embed(token_ids).astype(self.act_dtype)
        frequencies, factor = self.rope
        cos_sin = rotation(context.positions, np.asarray(frequencies, np.float32), factor)
        new_k, new_v = [], []
        for layer, k_pages, v_pages in zip(self.layers, kv.k, kv.v, strict=True):
            graph, params = nnx.split(layer)
            x, pages = _run_layer(graph, params, x, (k_pages, v_pages), cos_sin, context)
            new_k.append(pages[0])
            new_v.append(pages[1])
        return self.final_norm(x), KVPool(tuple(new_k), tuple(new_v))

    def logits(self, hidden: jax.Array) -> jax.Array:  # [B, D] -> f32[B, V]
        """Next-token logits of the rows that want them."""
        if self.lm_head is None:
            return self.embed.attend(hidden)
        # f32 out of the product: logits rounded to bf16 tie, and logprobs of them are coarse
        return project(hidden, self.lm_head.kernel[...], jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _run_layer(graph, params, x, pages, cos_sin, context):
    """One layer.  A jit of its own only so that equal layers are traced once, not L times."""
    return nnx.merge(graph, params)(x, pages, cos_sin, context)
