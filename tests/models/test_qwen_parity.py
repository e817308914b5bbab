"""Qwen2 and Qwen3 against transformers, number by number, in f32."""

import pytest
import torch
from parity_harness import (
    BASE,
    LLAMA_SUBMODULES,
    SUBMODULES,
    Pair,
    assert_equal_logits,
    assert_equal_submodule,
    make_pair,
)
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

QWEN2 = (Qwen2Config, Qwen2ForCausalLM)
QWEN3 = (Qwen3Config, Qwen3ForCausalLM)
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, tuple[tuple[type, type], dict[str, object]]] = {
    "qwen2": (QWEN2, {}),
    "qwen2_tied": (QWEN2, {"tie_word_embeddings": True}),
    "qwen2_window_off": (QWEN2, {"sliding_window": 16, "use_sliding_window": False}),
    "qwen2_epsilon": (QWEN2, {"rms_norm_eps": 1e-2, "num_key_value_heads": 1}),
    "qwen2_yarn": (QWEN2, {"rope_parameters": YARN}),
    "qwen3": (QWEN3, {"head_dim": 32}),
    "qwen3_tied": (QWEN3, {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3_head_dim_by_default": (QWEN3, {"num_attention_heads": 2}),
    "qwen3_bias": (QWEN3, {"head_dim": 16, "attention_bias": True}),
    "qwen3_epsilon": (QWEN3, {"head_dim": 16, "rms_norm_eps": 1e-2}),
}


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    (config, model), options = VARIANTS[request.param]
    torch.manual_seed(sorted(VARIANTS).index(request.param))
    theirs = model(config(**{**BASE, **options}))
    return make_pair(tmp_path_factory.mktemp(request.param), theirs)


def test_logits(pair: Pair) -> None:
    assert_equal_logits(pair)


@pytest.mark.parametrize("name", LLAMA_SUBMODULES)
def test_submodule(pair: Pair, name: str) -> None:
    assert_equal_submodule(pair, name)


def test_qk_norm(pair: Pair) -> None:
    """Only a Qwen3 has one."""
    assert (pair.ours.bind().layers[0].attn.qk_norm is None) == (
        pair.ours.config.model_type == "qwen2"
    )
    if pair.ours.config.model_type == "qwen3":
        assert_equal_submodule(pair, "qk_norm")


def test_every_submodule_is_compared() -> None:
    assert {*LLAMA_SUBMODULES, "qk_norm"} == set(SUBMODULES)
