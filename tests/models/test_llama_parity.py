"""Llama against transformers, number by number, in f32.

Each variant is a tiny random checkpoint written by transformers itself, so that names, layouts
and config keys are the ones that real checkpoints have.
"""

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from model_harness import LoadedModel, load, prompt_logits, whole_prompt
from transformers import LlamaConfig, LlamaForCausalLM

from jaxserve.models.rope import rotation

NUM_TOKENS = 75  # crosses a query tile of 64 and several pages
BASE = {
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
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + 0.01 * i for i in range(8)],
    "long_factor": [1.5 + 0.25 * i for i in range(8)],
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, object]] = {
    "grouped": {},
    "multi_head": {"num_key_value_heads": 4},
    "multi_query": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "head_dim": {"head_dim": 32},
    "gelu": {"hidden_act": "gelu"},
    "gelu_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "epsilon": {"rms_norm_eps": 1e-2},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3": {"rope_parameters": LLAMA3},
    "yarn": {"rope_parameters": YARN},
    "yarn_untruncated": {"rope_parameters": {**YARN, "truncate": False, "beta_fast": 16.0}},
    "yarn_mscale": {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9}},
    "yarn_attention_factor": {"rope_parameters": {**YARN, "attention_factor": 1.3}},
    "longrope": {"rope_parameters": LONGROPE},
}


def save(folder: Path, variant: str) -> LlamaForCausalLM:
    """A random checkpoint of the variant, with biases and norms that are not neutral."""
    torch.manual_seed(sorted(VARIANTS).index(variant))
    model = LlamaForCausalLM(LlamaConfig(**{**BASE, **VARIANTS[variant]})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.5)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.08)
    model.save_pretrained(folder)
    return model


def token_ids(vocab_size: int) -> list[int]:
    return np.random.default_rng(5).integers(0, vocab_size, NUM_TOKENS).tolist()


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    return save(folder, request.param), load(folder)


def test_logits(pair: tuple[LlamaForCausalLM, LoadedModel]) -> None:
    theirs, ours = pair
    ids = token_ids(ours.config.vocab_size)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(expected).max() > 1.0  # close to zero would be close for no reason
    np.testing.assert_allclose(prompt_logits(ours, ids), expected, atol=1e-4, rtol=1e-4)


Submodule = Callable[[LlamaForCausalLM, LoadedModel, torch.Tensor], tuple[object, torch.Tensor]]


def _embed(theirs, ours, x):
    ids = token_ids(ours.config.vocab_size)
    return ours.bind().embed(jnp.asarray(ids, jnp.int32)), theirs.model.embed_tokens(
        torch.tensor(ids)
    )


def _input_norm(theirs, ours, x):
    return ours.bind().layers[1].input_norm(_jax(x)), theirs.model.layers[1].input_layernorm(x)


def _final_norm(theirs, ours, x):
    return ours.bind().final_norm(_jax(x)), theirs.model.norm(x)


def _qkv(theirs, ours, x):
    attention = theirs.model.layers[0].self_attn
    parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
    return ours.bind().layers[0].attn.qkv(_jax(x)), torch.cat(parts, dim=-1)


def _mlp(theirs, ours, x):
    return ours.bind().layers[1].mlp(_jax(x)), theirs.model.layers[1].mlp(x)


def _logits(theirs, ours, x):
    return ours.bind().logits(_jax(x)), theirs.lm_head(x)


def _rope(theirs, ours, x):
    positions = torch.arange(NUM_TOKENS)[None]
    cos, sin = theirs.model.rotary_emb(x, positions)
    frequencies, factor = ours.bind().rope
    mine = rotation(jnp.arange(NUM_TOKENS, dtype=jnp.int32), np.float32(frequencies), factor)
    half = cos.shape[-1] // 2
    return jnp.concatenate(mine, axis=-1), torch.cat((cos[0, :, :half], sin[0, :, :half]), -1)


def _layer(theirs, ours, x):
    positions = torch.arange(NUM_TOKENS)[None]
    expected = theirs.model.layers[0](
        x[None],
        attention_mask=torch.full((1, 1, NUM_TOKENS, NUM_TOKENS), -torch.inf).triu(1),
        position_ids=positions,
        position_embeddings=theirs.model.rotary_emb(x, positions),
    )
    pool, context = whole_prompt(ours.config, NUM_TOKENS)
    model = ours.bind()
    cos_sin = rotation(context.positions, np.float32(model.rope[0]), model.rope[1])
    mine, _ = model.layers[0](_jax(x), (pool.k[0], pool.v[0]), cos_sin, context)
    return mine, expected[0] if expected.ndim == 3 else expected


SUBMODULES: dict[str, Submodule] = {
    "embed": _embed,
    "input_norm": _input_norm,
    "qkv": _qkv,
    "rope": _rope,
    "layer": _layer,
    "mlp": _mlp,
    "final_norm": _final_norm,
    "logits": _logits,
}


def _jax(x: torch.Tensor) -> jnp.ndarray:
    return jnp.asarray(x.numpy())


@pytest.mark.parametrize("name", SUBMODULES)
def test_submodule(pair: tuple[LlamaForCausalLM, LoadedModel], name: str) -> None:
    theirs, ours = pair
    torch.manual_seed(0)
    x = torch.randn(NUM_TOKENS, ours.config.hidden_size)
    with torch.no_grad():
        mine, expected = SUBMODULES[name](theirs, ours, x)
    np.testing.assert_allclose(np.asarray(mine), expected.numpy(), atol=2e-5, rtol=2e-4)


def test_longrope_follows_the_served_context(tmp_path: Path) -> None:
    """Up to the trained length transformers takes the short factors; so does a short context."""
    theirs = save(tmp_path, "longrope")
    ours = load(tmp_path, context_len=64)
    ids = token_ids(199)[:60]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(prompt_logits(ours, ids), expected, atol=1e-4, rtol=1e-4)
