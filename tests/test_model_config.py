"""Reading config.json: published configs, both spellings of transformers, and every mistake."""

import re

import pytest
from make_tiny_checkpoint import ROPE_VARIANTS, TINY_CONFIG
from published_configs import LLAMA_3_1_8B, LLAMA_3_2_1B, TINYLLAMA, YARN_LLAMA_2_7B_64K
from transformers import LlamaConfig

from jaxserve.errors import ConfigError
from jaxserve.model_config import ModelConfig, RopeScaling

OPTIONAL_KEYS = (
    *("architectures", "attention_bias", "bos_token_id", "eos_token_id", "hidden_act"),
    *("mlp_bias", "num_key_value_heads", "rope_theta", "tie_word_embeddings"),
)


def without(config: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in config.items() if key not in keys}


def test_llama_3_1_8b():
    assert ModelConfig.from_hf(LLAMA_3_1_8B) == ModelConfig(
        model_type="llama",
        architectures=("LlamaForCausalLM",),
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(
            type="llama3",
            factor=8.0,
            original_context_len=8192,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
        context_len=131072,
        tie_word_embeddings=False,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        hidden_act="silu",
        eos_token_ids=(128001, 128008, 128009),
        bos_token_id=128000,
        dtype="bfloat16",
    )


def test_llama_3_2_1b_is_tied_and_names_its_head_dim():
    config = ModelConfig.from_hf(LLAMA_3_2_1B)
    assert (config.head_dim, config.tie_word_embeddings) == (64, True)
    assert config.rope_scaling is not None and config.rope_scaling.factor == 32.0


def test_tinyllama_has_no_scaling():
    config = ModelConfig.from_hf(TINYLLAMA)
    assert config.rope_scaling is None
    assert (config.head_dim, config.num_kv_heads, config.eos_token_ids) == (64, 4, (2,))


def test_yarn_llama_2():
    config = ModelConfig.from_hf(YARN_LLAMA_2_7B_64K)
    assert config.rope_theta == 10000.0  # not in the file: transformers' default
    assert config.rope_scaling == RopeScaling(type="yarn", factor=16.0, original_context_len=4096)


def test_yarn_with_every_option():
    options = {
        "rope_type": "yarn",
        "factor": 40,
        "attention_factor": 1.1,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 1.0,
        "mscale_all_dim": 0.707,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
    scaling = ModelConfig.from_hf(YARN_LLAMA_2_7B_64K | {"rope_scaling": options}).rope_scaling
    assert scaling == RopeScaling(
        type="yarn",
        factor=40.0,
        original_context_len=4096,
        attention_factor=1.1,
        beta_fast=16.0,
        beta_slow=2.0,
        mscale=1.0,
        mscale_all_dim=0.707,
        truncate=False,
    )


def test_transformers_5_spelling_reads_the_same():
    new = without(LLAMA_3_1_8B, "rope_theta", "rope_scaling", "torch_dtype") | {
        "dtype": "bfloat16",
        "rope_parameters": {**LLAMA_3_1_8B["rope_scaling"], "rope_theta": 500000.0},
    }
    assert ModelConfig.from_hf(new) == ModelConfig.from_hf(LLAMA_3_1_8B)
    plain = without(TINYLLAMA, "rope_theta") | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}
    }
    assert ModelConfig.from_hf(plain) == ModelConfig.from_hf(TINYLLAMA)


def test_absent_keys_take_the_defaults_of_transformers():
    minimal = without(TINY_CONFIG, *OPTIONAL_KEYS)
    config, theirs = ModelConfig.from_hf(minimal), LlamaConfig(**minimal)
    assert config.num_kv_heads == theirs.num_key_value_heads
    assert config.head_dim == theirs.head_dim
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    assert config.tie_word_embeddings == theirs.tie_word_embeddings
    assert (config.qkv_bias, config.mlp_bias) == (theirs.attention_bias, theirs.mlp_bias)
    assert (config.eos_token_ids, config.bos_token_id) == (
        (theirs.eos_token_id,),
        theirs.bos_token_id,
    )
    assert (config.hidden_act, config.dtype) == (theirs.hidden_act, "float32")


@pytest.mark.parametrize("name", ROPE_VARIANTS)
def test_scaling_is_read_as_transformers_reads_it(name):
    raw = {**TINY_CONFIG, "rope_scaling": ROPE_VARIANTS[name]}
    theirs = LlamaConfig(**{k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()})
    config = ModelConfig.from_hf(raw)
    params = theirs.rope_parameters
    assert config.rope_theta == params["rope_theta"]
    if name == "default":
        assert config.rope_scaling is None
        return
    scaling = config.rope_scaling
    assert scaling is not None
    assert scaling.type == params["rope_type"]
    assert scaling.factor == (params.get("factor") or 512 / 64)
    assert scaling.original_context_len == params.get("original_max_position_embeddings", 512)
    for field in ("attention_factor", "mscale", "mscale_all_dim"):
        assert getattr(scaling, field) == params.get(field)
    for field in ("short_factor", "long_factor"):
        assert getattr(scaling, field) == tuple(params.get(field, ()))


def test_a_top_level_pretrained_length_wins():
    raw = {
        **TINY_CONFIG,
        "rope_scaling": dict(ROPE_VARIANTS["longrope"] or {}),
        "original_max_position_embeddings": 128,
    }
    scaling = ModelConfig.from_hf(raw).rope_scaling
    assert scaling is not None
    assert (scaling.original_context_len, scaling.factor) == (128, 4.0)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "float32"),
        ({"torch_dtype": None}, "float32"),
    ],
)
def test_dtype_spellings(change, wanted):
    assert ModelConfig.from_hf(TINY_CONFIG | change).dtype == wanted


def test_null_token_ids_mean_none():
    config = ModelConfig.from_hf(TINY_CONFIG | {"eos_token_id": None, "bos_token_id": None})
    assert (config.eos_token_ids, config.bos_token_id) == ((), None)


def test_a_config_is_hashable():
    assert len({ModelConfig.from_hf(LLAMA_3_1_8B), ModelConfig.from_hf(LLAMA_3_1_8B)}) == 1


# --- what is refused --------------------------------------------------------------------------


def refused(change: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_hf(TINY_CONFIG | change)
    return str(error.value)


@pytest.mark.parametrize("model_type", ["gpt2", None, 3])
def test_unknown_model_type(model_type):
    text = refused({"model_type": model_type})
    assert (
        f"model_type {model_type!r} is not supported; supported: llama, qwen2, qwen3. Choose"
        in text
    )


def test_all_missing_keys_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_hf({"model_type": "llama", "vocab_size": 10})
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "max_position_embeddings", "rms_norm_eps"):  # fmt: skip
        assert f"{key} is missing, it is required" in str(error.value)
    assert "vocab_size" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("hidden_size", "64", "a positive integer"),
        ("hidden_size", True, "a positive integer"),
        ("vocab_size", 0, "a positive integer"),
        ("num_hidden_layers", 2.0, "a positive integer"),
        ("rms_norm_eps", "1e-5", "a positive number"),
        ("rms_norm_eps", float("nan"), "a positive number"),
        ("rope_theta", -1, "a positive number"),
        ("tie_word_embeddings", "no", "true or false"),
        ("attention_bias", 1, "true or false"),
        ("hidden_act", "swish2", "one of silu, gelu, gelu_new, gelu_pytorch_tanh, relu"),
        ("torch_dtype", "float8", "one of float32, float16, bfloat16"),
        ("architectures", [1], "a list of strings"),
        ("architectures", "LlamaForCausalLM", "a list of strings"),
        ("eos_token_id", "2", "a token id or a list of token ids"),
        ("eos_token_id", [2, -1], "a token id or a list of token ids"),
        ("bos_token_id", 1.5, "a token id or a list of token ids"),
        ("rope_scaling", 4, "an object"),
    ],
)
def test_wrong_types(key, value, wanted):
    assert f"{key} is {value!r}, {wanted} is needed" in refused({key: value})


def test_all_wrong_types_are_named_at_once():
    text = refused({"hidden_size": "64", "mlp_bias": 0, "rope_scaling": {"rope_type": "ntk"}})
    assert all(key in text for key in ("hidden_size", "mlp_bias", "'ntk'"))


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("quantization_config", {"quant_method": "gptq"}, "use the unquantized checkpoint, or a"),
        ("sliding_window", 4096, "use a checkpoint with full attention"),
        ("pretraining_tp", 2, "choose a checkpoint without it"),
        ("partial_rotary_factor", 0.5, "choose a checkpoint without it"),
        ("num_local_experts", 8, "choose a checkpoint without it"),
        ("rope_interleaved", True, "choose a checkpoint without it"),
        ("logits_scaling", 8.0, "choose a checkpoint without it"),
    ],
)
def test_keys_that_change_the_computation(key, value, remedy):
    assert f"{key} = {value!r} is not supported; {remedy}" in refused({key: value})


def test_neutral_values_of_these_keys_are_fine():
    neutral = {
        "quantization_config": None,
        "sliding_window": 4096,
        "use_sliding_window": False,
        "partial_rotary_factor": 1.0,
        "rope_interleaved": False,
        "layer_types": ["full_attention", "full_attention"],
        "pretraining_tp": 1,
    }
    assert ModelConfig.from_hf(TINY_CONFIG | neutral) == ModelConfig.from_hf(TINY_CONFIG)


def test_layers_of_another_kind():
    text = refused({"layer_types": ["full_attention", "sliding_attention"]})
    assert "layer_types other than full_attention are not supported" in text


def test_another_head():
    text = refused({"architectures": ["LlamaForSequenceClassification"]})
    assert "architectures ['LlamaForSequenceClassification'] are not supported; supported" in text


def test_sizes_that_do_not_divide():
    text = refused({"hidden_size": 66, "num_key_value_heads": 3})
    assert "hidden_size 66 is not a multiple of num_attention_heads 4" in text
    assert "num_attention_heads 4 is not a multiple of num_key_value_heads 3" in text
    assert "head_dim 15 is odd, RoPE needs an even one" in refused({"head_dim": 15})


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (
            {"rope_type": "ntk"},
            "rope_type is 'ntk', one of default, linear, dynamic, yarn, llama3, longrope is needed",
        ),
        ({"type": "mrope", "mrope_section": [1]}, "'mrope_section' is not known; remove it if it"),
        ({"rope_type": "linear"}, "rope_scaling: factor is missing, it is required"),
        ({"rope_type": "linear", "factor": 0}, "factor is 0, a positive number is needed"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor is missing, it is required"),
        ({"rope_type": "longrope"}, "short_factor is missing, it is required"),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": "x"},
            "long_factor is 'x', a list of numbers is needed",
        ),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 8},
            "short_factor is '4 numbers', head_dim / 2 = 8 numbers is needed",
        ),
        (
            {"rope_type": "longrope", "short_factor": ["a"] * 8, "long_factor": [1.0] * 8},
            "a list of numbers is needed",
        ),
        (
            {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
            "partial_rotary_factor is 0.5, 1 (full rotation) is needed",
        ),
    ],
)
def test_scaling_that_cannot_be_read(scaling, message):
    assert re.search(re.escape(message), refused({"rope_scaling": scaling}))
