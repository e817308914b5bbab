"""A tiny random checkpoint written by transformers, and ours from it, part by part.

The checkpoint is written by transformers itself, so that names, layouts and config keys are the
ones that real checkpoints have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from model_harness import LoadedModel, load, prompt_logits, whole_prompt
from transformers import AutoModelForCausalLM

from jaxserve.models.rope import rotation

Oracle = Callable[[Sequence[int]], np.ndarray]
NUM_TOKENS = 75  # crosses a query tile of 64 and several pages
BASE: Mapping[str, object] = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Pair:
    """The same weights in transformers' model and in ours."""

    theirs: Any
    ours: LoadedModel


def make_pair(folder: Path, theirs: Any, context_len: int | None = None) -> Pair:
    """Randomise transformers' model, biases and norms too, save it, and load it as ours."""
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.5)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.08)
    theirs.eval().save_pretrained(folder)
    return Pair(theirs, load(folder, context_len))


def transformers_logprobs(folder: Path) -> Oracle:
    """The log-softmax f64[T, V] after each token, by transformers' f32 model of a checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logprobs(tokens: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            logits = model(torch.tensor([list(tokens)])).logits[0]
        return torch.log_softmax(logits.double(), dim=-1).numpy()

    return logprobs


def token_ids(vocab_size: int) -> list[int]:
    return np.random.default_rng(5).integers(0, vocab_size, NUM_TOKENS).tolist()


def assert_equal_logits(pair: Pair, num_tokens: int = NUM_TOKENS) -> None:
    """Those of every position of a prompt."""
    ids = token_ids(pair.ours.config.vocab_size)[:num_tokens]
    with torch.no_grad():
        expected = pair.theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(expected).max() > 1.0  # close to zero would be close for no reason
    np.testing.assert_allclose(prompt_logits(pair.ours, ids), expected, atol=1e-4, rtol=1e-4)


def assert_equal_submodule(pair: Pair, name: str) -> None:
    """The outputs of one part for the same random input."""
    torch.manual_seed(0)
    x = torch.randn(NUM_TOKENS, pair.ours.config.hidden_size)
    with torch.no_grad():
        mine, expected = SUBMODULES[name](pair, x)
    np.testing.assert_allclose(np.asarray(mine), expected.numpy(), atol=2e-5, rtol=2e-4)


def _jax(x: torch.Tensor) -> jnp.ndarray:
    return jnp.asarray(x.numpy())


def _embed(pair: Pair, x: torch.Tensor):
    ids = token_ids(pair.ours.config.vocab_size)
    ours = pair.ours.bind().embed(jnp.asarray(ids, jnp.int32))
    return ours, pair.theirs.model.embed_tokens(torch.tensor(ids))


def _input_norm(pair: Pair, x: torch.Tensor):
    expected = pair.theirs.model.layers[1].input_layernorm(x)
    return pair.ours.bind().layers[1].input_norm(_jax(x)), expected


def _final_norm(pair: Pair, x: torch.Tensor):
    return pair.ours.bind().final_norm(_jax(x)), pair.theirs.model.norm(x)


def _qkv(pair: Pair, x: torch.Tensor):
    attention = pair.theirs.model.layers[0].self_attn
    parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
    return pair.ours.bind().layers[0].attn.qkv(_jax(x)), torch.cat(parts, dim=-1)


def _qk_norm(pair: Pair, x: torch.Tensor):
    attention = pair.theirs.model.layers[1].self_attn
    heads = torch.randn(NUM_TOKENS, 3, pair.ours.config.head_dim)
    mine = pair.ours.bind().layers[1].attn.qk_norm(_jax(heads), _jax(heads))
    return jnp.concatenate(mine), torch.cat((attention.q_norm(heads), attention.k_norm(heads)))


def _mlp(pair: Pair, x: torch.Tensor):
    return pair.ours.bind().layers[1].mlp(_jax(x)), pair.theirs.model.layers[1].mlp(x)


def _logits(pair: Pair, x: torch.Tensor):
    return pair.ours.bind().logits(_jax(x)), pair.theirs.lm_head(x)


def _rope(pair: Pair, x: torch.Tensor):
    positions = torch.arange(NUM_TOKENS)[None]
    cos, sin = pair.theirs.model.rotary_emb(x, positions)
    frequencies, factor = pair.ours.bind().rope
    mine = rotation(jnp.arange(NUM_TOKENS, dtype=jnp.int32), np.float32(frequencies), factor)
    half = cos.shape[-1] // 2
    return jnp.concatenate(mine, axis=-1), torch.cat((cos[0, :, :half], sin[0, :, :half]), -1)


def _layer(pair: Pair, x: torch.Tensor):
    positions = torch.arange(NUM_TOKENS)[None]
    expected = pair.theirs.model.layers[0](
        x[None],
        attention_mask=torch.full((1, 1, NUM_TOKENS, NUM_TOKENS), -torch.inf).triu(1),
        position_ids=positions,
        position_embeddings=pair.theirs.model.rotary_emb(x, positions),
    )
    pool, context = whole_prompt(pair.ours.config, NUM_TOKENS)
    model = pair.ours.bind()
    cos_sin = rotation(context.positions, np.float32(model.rope[0]), model.rope[1])
    pages = (pool.k[0], pool.v[0])
    mine, delta, _ = model.layers[0](_jax(x), None, pages, cos_sin, context)
    return mine + delta, expected[0] if expected.ndim == 3 else expected


SUBMODULES: dict[str, Callable[[Pair, torch.Tensor], tuple[object, torch.Tensor]]] = {
    "embed": _embed,
    "input_norm": _input_norm,
    "qkv": _qkv,
    "rope": _rope,
    "layer": _layer,
    "mlp": _mlp,
    "final_norm": _final_norm,
    "logits": _logits,
    "qk_norm": _qk_norm,
}
LLAMA_SUBMODULES = tuple(name for name in SUBMODULES if name != "qk_norm")
