"""Reading config.json of Qwen2.5 and Qwen3: what is published, what is absent, what is refused."""

import json
from pathlib import Path

import pytest
from make_tiny_checkpoint import TINY_CONFIG
from published_configs import LLAMA_3_1_8B, QWEN_2_5_0_5B, QWEN_2_5_7B, QWEN_3_8B
from transformers import Qwen2Config, Qwen3Config

import jaxserve
from jaxserve.errors import ConfigError
from jaxserve.model_config import ModelConfig

REQUIRED_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "rms_norm_eps"),
)


def test_qwen_2_5():
    small, large = ModelConfig.from_hf(QWEN_2_5_0_5B), ModelConfig.from_hf(QWEN_2_5_7B)
    assert (small.model_type, small.architectures) == ("qwen2", ("Qwen2ForCausalLM",))
    assert (small.qkv_bias, small.out_bias, small.mlp_bias) == (True, False, False)
    assert (small.num_heads, small.num_kv_heads, small.head_dim) == (14, 2, 64)
    assert (large.num_heads, large.num_kv_heads, large.head_dim) == (28, 4, 128)
    assert (small.tie_word_embeddings, large.tie_word_embeddings) == (True, False)
    assert (small.rope_theta, small.rope_scaling, large.context_len) == (1e6, None, 131072)
    assert (small.eos_token_ids, small.bos_token_id, small.dtype) == ((151643,), 151643, "bfloat16")


def test_qwen_3():
    config = ModelConfig.from_hf(QWEN_3_8B)
    assert (config.model_type, config.architectures) == ("qwen3", ("Qwen3ForCausalLM",))
    assert (config.qkv_bias, config.out_bias, config.mlp_bias) == (False, False, False)
    assert (config.hidden_size, config.num_heads, config.head_dim) == (4096, 32, 128)
    assert (config.rope_theta, config.rms_norm_eps, config.vocab_size) == (1e6, 1e-6, 151936)
    biased = ModelConfig.from_hf(QWEN_3_8B | {"attention_bias": True})
    assert (biased.qkv_bias, biased.out_bias) == (True, True)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen2.5-0.5b", "qwen2.5-7b", "qwen3-8b"])
def test_configs_that_come_with_the_package_are_the_published_ones(name):
    published = {
        "llama-3.1-8b": LLAMA_3_1_8B | {"eos_token_id": 128001},  # base, not instruct
        "qwen2.5-0.5b": QWEN_2_5_0_5B,
        "qwen2.5-7b": QWEN_2_5_7B,
        "qwen3-8b": QWEN_3_8B,
    }
    packaged = json.loads((Path(jaxserve.__file__).parent / f"published/{name}.json").read_text())
    assert ModelConfig.from_hf(packaged) == ModelConfig.from_hf(published[name])


@pytest.mark.parametrize(("model_type", "make"), [("qwen2", Qwen2Config), ("qwen3", Qwen3Config)])
def test_absent_keys_of_a_qwen_take_the_defaults_of_transformers(model_type, make):
    sizes = {key: TINY_CONFIG[key] for key in REQUIRED_KEYS}
    sizes |= {"num_attention_heads": 64, "hidden_size": 256}
    config, theirs = ModelConfig.from_hf({**sizes, "model_type": model_type}), make(**sizes)
    assert config.num_kv_heads == theirs.num_key_value_heads == 32
    assert config.head_dim == (theirs.head_dim if model_type == "qwen3" else 4)
    assert (config.rope_theta, config.dtype) == (theirs.rope_parameters["rope_theta"], "float32")
    assert config.eos_token_ids == () and theirs.eos_token_id is None
    assert config.bos_token_id is None and theirs.bos_token_id is None
    assert config.tie_word_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize("config", [QWEN_2_5_0_5B, QWEN_3_8B])
@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("use_sliding_window", "use a checkpoint with full attention"),
        ("use_mrope", "choose a checkpoint without it"),
        ("mlp_bias", "choose a checkpoint without it"),
    ],
)
def test_what_a_qwen_is_not_served_with(config, key, remedy):
    with pytest.raises(ConfigError, match=f"{key} = True is not supported; {remedy}"):
        ModelConfig.from_hf(config | {key: True})
    assert ModelConfig.from_hf(config | {key: False}) == ModelConfig.from_hf(config)


def test_the_sliding_window_of_a_qwen_counts_only_if_it_is_used():
    config = ModelConfig.from_hf(QWEN_2_5_7B)
    for change in ({"sliding_window": None}, {"sliding_window": 16}):
        assert ModelConfig.from_hf(QWEN_2_5_7B | change) == config
    absent = {key: value for key, value in QWEN_2_5_7B.items() if key != "use_sliding_window"}
    assert ModelConfig.from_hf(absent) == config
    with pytest.raises(ConfigError, match="layer_types other than full_attention"):
        ModelConfig.from_hf(QWEN_2_5_7B | {"layer_types": ["sliding_attention"] * 28})


def test_the_architecture_is_that_of_the_model_type():
    text = r"architectures \['LlamaForCausalLM'\] are not supported; supported: Qwen3ForCausalLM"
    with pytest.raises(ConfigError, match=text):
        ModelConfig.from_hf(QWEN_3_8B | {"architectures": ["LlamaForCausalLM"]})
