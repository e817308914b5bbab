"""Run a checkpoint's model by hand: one extend step over fresh pages, no engine around it."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxserve.model_config import ModelConfig
from jaxserve.models import AttnContext, KVPool, Model, build_model
from jaxserve.weights import load_weights, resolve_source

PAGE_SIZE = 16


@dataclass(frozen=True)
class LoadedModel:
    """A model in f32 and its leaves."""

    config: ModelConfig
    model: Model
    leaves: list[jax.Array]

    def bind(self) -> nnx.Module:
        """The nnx module, outside any trace."""
        return self.model.bind(self.leaves)


def load(path: Path, context_len: int | None = None) -> LoadedModel:
    """Load a checkpoint folder or .gguf file in f32."""
    source = resolve_source(str(path))
    config = ModelConfig.from_hf(source.hf_config)
    model = build_model(
        config,
        context_len=context_len or config.context_len,
        dtype=jnp.dtype(jnp.float32),
        act_dtype=jnp.dtype(jnp.float32),
    )
    weights = load_weights(source, config, model.expected)
    return LoadedModel(config, model, [weights[path] for path in model.paths])


def whole_prompt(
    config: ModelConfig, num_tokens: int, implementation: str = "xla"
) -> tuple[KVPool, AttnContext]:
    """Empty pages and the context of one row whose prompt is ``num_tokens`` long."""
    num_pages = -(-num_tokens // PAGE_SIZE)
    shape = (num_pages + 1, config.num_kv_heads, PAGE_SIZE, config.head_dim)
    positions = np.arange(num_tokens, dtype=np.int32)
    page_table = 1 + np.arange(num_pages, dtype=np.int32)[None, :]
    write_slots = page_table[0, positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
    layers = range(config.num_layers)
    pool = KVPool(
        tuple(jnp.zeros(shape, jnp.float32) for _ in layers),
        tuple(jnp.zeros(shape, jnp.float32) for _ in layers),
    )
    context = AttnContext(
        positions=jnp.asarray(positions),
        write_slots=jnp.asarray(write_slots),
        page_table=jnp.asarray(page_table),
        kv_lens=jnp.asarray([num_tokens], jnp.int32),
        q_starts=jnp.asarray([0, num_tokens], jnp.int32),
        is_decode=False,
        implementation=implementation,
    )
    return pool, context


def prompt_logits(loaded: LoadedModel, token_ids: list[int]) -> np.ndarray:
    """Logits f32[T, V] of every position of a prompt."""

    @jax.jit
    def forward(leaves: list[jax.Array], ids: jax.Array, pool: KVPool, context: AttnContext):
        model = loaded.model.bind(leaves)
        hidden, _ = model(ids, pool, context)
        return model.logits(hidden)

    pool, context = whole_prompt(loaded.config, len(token_ids))
    ids = jnp.asarray(token_ids, jnp.int32)
    return np.asarray(forward(loaded.leaves, ids, pool, context))
