"""Llama against transformers, number by number, in f32."""

from pathlib import Path

import pytest
import torch
from parity_harness import (
    BASE,
    LLAMA_SUBMODULES,
    Pair,
    assert_equal_logits,
    assert_equal_submodule,
    make_pair,
)
from transformers import LlamaConfig, LlamaForCausalLM

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


def theirs(variant: str) -> LlamaForCausalLM:
    torch.manual_seed(sorted(VARIANTS).index(variant))
    return LlamaForCausalLM(LlamaConfig(**{**BASE, **VARIANTS[variant]}))


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp(request.param), theirs(request.param))


def test_logits(pair: Pair) -> None:
    assert_equal_logits(pair)


@pytest.mark.parametrize("name", LLAMA_SUBMODULES)
def test_submodule(pair: Pair, name: str) -> None:
    assert_equal_submodule(pair, name)


def test_longrope_follows_the_served_context(tmp_path: Path) -> None:
    """Up to the trained length transformers takes the short factors; so does a short context."""
    assert_equal_logits(make_pair(tmp_path, theirs("longrope"), context_len=64), num_tokens=60)
