"""Llama (https://arxiv.org/abs/2302.13971; grouped queries and biases as in its successors).

Axis letters: T tokens, B rows that want logits, R this shard's of them, D model, N query heads,
K kv heads, H head dim, V vocabulary.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxserve.model_config import ModelConfig
from jaxserve.models.attention import AttnContext, KVPool, attend
from jaxserve.models.layers import Embed, GatedMLP, GivenEmbeds, Linear, RMSNorm, project
from jaxserve.models.rope import rope_frequencies, rotate, rotation
from jaxserve.models.row_shards import RowShards
from jaxserve.shard_plan import ShardPlan

# Makes what queries [T, N, H] and keys [T, K, H] pass through before they are turned.
MakeQKNorm = Callable[..., nnx.Module]


class Attention(nnx.Module):
    """Grouped-query attention with the three input projections fused; N and K are one shard's."""

    def __init__(
        self,
        config: ModelConfig,
        plan: ShardPlan,
        *,
        dtype: jnp.dtype,
        make_qk_norm: MakeQKNorm | None,
    ):
        self.num_heads, self.num_kv_heads = plan.num_heads, plan.num_kv_heads
        self.head_dim = config.head_dim
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv = Linear(width, config.hidden_size, use_bias=config.qkv_bias, dtype=dtype)
        self.qk_norm = None if make_qk_norm is None else make_qk_norm(config, dtype=dtype)
        self.out = Linear(
            config.hidden_size,
            self.num_heads * self.head_dim,
            use_bias=config.out_bias,
            dtype=dtype,
            reduce_over=plan.axis,
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
        if self.qk_norm is not None:
            q, k = self.qk_norm(q, k)
        q, k = rotate(q, *cos_sin), rotate(k, *cos_sin)
        out, *pages = attend(q, k, v, *pages, context, scale=self.head_dim**-0.5)
        product = self.out.partial_sums if context.fuses_norms else self.out
        return product(out.reshape(x.shape[0], -1)), (pages[0], pages[1])


class Layer(nnx.Module):
    """Attention and MLP, each behind its norm and added to the residual stream.

    What the MLP gives is added by whoever comes next, together with its norm: one kernel.
    """

    def __init__(
        self,
        config: ModelConfig,
        plan: ShardPlan,
        *,
        dtype: jnp.dtype,
        make_qk_norm: MakeQKNorm | None,
    ):
        size, epsilon = config.hidden_size, config.rms_norm_eps
        self.input_norm = RMSNorm(size, epsilon=epsilon, dtype=dtype)
        self.attn = Attention(config, plan, dtype=dtype, make_qk_norm=make_qk_norm)
        self.post_attn_norm = RMSNorm(size, epsilon=epsilon, dtype=dtype)
        self.mlp = GatedMLP(
            size,
            plan.ffn,
            hidden_act=config.hidden_act,
            use_bias=config.mlp_bias,
            dtype=dtype,
            reduce_over=plan.axis,
        )

    def __call__(
        self,
        x: jax.Array,  # [T, D]
        delta: jax.Array | None,  # of the layer before
        pages: tuple[jax.Array, jax.Array],
        cos_sin: tuple[jax.Array, jax.Array],
        context: AttnContext,
    ) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
        fused = context.fuses_norms
        if delta is None:
            hidden = self.input_norm(x)
        else:
            x, hidden = self.input_norm.after_adding(x, delta, fused=fused)
        attended, pages = self.attn(hidden, pages, cos_sin, context)
        x, hidden = self.post_attn_norm.after_adding(x, attended, fused=fused)
        return x, self.mlp(hidden, fused=fused), pages


class Llama(nnx.Module):
    """The whole decoder, as one shard has it.

    ``context_len`` is the served one: rope scaling may depend on it.
    """

    def __init__(
        self,
        config: ModelConfig,
        plan: ShardPlan,
        *,
        context_len: int,
        dtype: jnp.dtype,
        act_dtype: jnp.dtype,
        make_qk_norm: MakeQKNorm | None = None,
    ):
        size = config.hidden_size
        self.embed = Embed(
            plan.embedding_rows(config),
            size,
            dtype=dtype,
            reduce_over=plan.axis if plan.splits_embedding else None,
        )
        self.layers = nnx.List(
            [
                Layer(config, plan, dtype=dtype, make_qk_norm=make_qk_norm)
                for _ in range(config.num_layers)
            ]
        )
        self.final_norm = RMSNorm(size, epsilon=config.rms_norm_eps, dtype=dtype)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(plan.lm_head_rows(config), size, use_bias=False, dtype=dtype)
        )
        self.plan = plan
        frequencies, factor = rope_frequencies(config, context_len)
        self.rope = (tuple(float(value) for value in frequencies), factor)
        self.act_dtype = act_dtype

    def __call__(
        self,
        token_ids: jax.Array,  # i32[T]
        kv: KVPool,
        context: AttnContext,
        embeds: GivenEmbeds | None = None,
    ) -> tuple[jax.Array, KVPool]:
        """Final hidden states ``[T, D]`` and the pool with the step's keys and values in it."""
        x = self.embed(token_ids).astype(self.act_dtype)
        if embeds is not None:
            x = embeds.over(x)
        frequencies, factor = self.rope
        cos_sin = rotation(context.positions, np.asarray(frequencies, np.float32), factor)
        delta = None
        new_k, new_v = [], []
        for layer, k_pages, v_pages in zip(self.layers, kv.k, kv.v, strict=True):
            graph, params = nnx.split(layer)
            x, delta, pages = _run_layer(
                graph, params, x, delta, (k_pages, v_pages), cos_sin, context
            )
            new_k.append(pages[0])
            new_v.append(pages[1])
        _, hidden = self.final_norm.after_adding(x, delta, fused=context.fuses_norms)
        return hidden, KVPool(tuple(new_k), tuple(new_v))

    def logits(self, hidden: jax.Array) -> jax.Array:  # [B, D] -> f32[R, V]
        """Next-token logits over the whole vocabulary, of this shard's rows of ``RowShards``."""
        shards = RowShards(self.plan, hidden.shape[0])
        splits_vocab = self.plan.splits_lm_head
        hidden = shards.padded(hidden) if splits_vocab else shards.mine(hidden)
        table = self.embed.embedding if self.lm_head is None else self.lm_head.kernel
        # f32 out of the product: logits rounded to bf16 tie, and logprobs of them are coarse
        logits = project(hidden, table[...], jnp.float32)
        return shards.whole(logits) if splits_vocab else logits


@functools.partial(jax.jit, static_argnums=0)
def _run_layer(graph, params, x, delta, pages, cos_sin, context):
    """One layer.  A jit of its own only so that equal layers are traced once, not L times."""
    return nnx.merge(graph, params)(x, delta, pages, cos_sin, context)
