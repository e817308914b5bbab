"""Rope scaling: refusals, and the laws that hold whatever transformers does."""

from dataclasses import replace

import numpy as np
import pytest

from jaxserve.errors import ConfigError
from jaxserve.model_config import ModelConfig, RopeScaling
from jaxserve.models.rope import rope_frequencies

CONFIG = ModelConfig(
    model_type="llama", architectures=("LlamaForCausalLM",), vocab_size=10, hidden_size=64,
    intermediate_size=64, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=16,
    rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, context_len=1024,
    tie_word_embeddings=True, qkv_bias=False, out_bias=False, mlp_bias=False, hidden_act="silu",
    eos_token_ids=(2,), bos_token_id=1, dtype="float32",
)  # fmt: skip


def frequencies(scaling: RopeScaling | None, context_len: int = 1024) -> np.ndarray:
    return rope_frequencies(replace(CONFIG, rope_scaling=scaling), context_len)[0]


def test_unknown_type() -> None:
    with pytest.raises(ConfigError, match="rope type 'spiral' is not supported; supported: "):
        frequencies(RopeScaling("spiral"))


def test_longrope_needs_a_factor_per_pair() -> None:
    scaling = RopeScaling("longrope", original_context_len=64, long_factor=(1.0, 2.0))
    message = r"type longrope needs 8 factors \(head_dim / 2\); got 2"
    with pytest.raises(ConfigError, match=message):
        frequencies(scaling)


def test_dynamic_is_plain_up_to_the_trained_length_and_slower_beyond() -> None:
    scaling = RopeScaling("dynamic", factor=4.0, original_context_len=256)
    np.testing.assert_array_equal(frequencies(scaling, 256), frequencies(None))
    stretched = frequencies(scaling, 1024)
    assert stretched[0] == frequencies(None)[0] == 1.0
    assert (stretched[1:] < frequencies(None)[1:]).all()


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_ramps_keep_fast_turns_and_slow_slow_ones(kind: str) -> None:
    scaling = RopeScaling(kind, factor=8.0, original_context_len=128)
    ratio = frequencies(None) / frequencies(scaling)
    np.testing.assert_allclose(ratio[[0, -1]], [1.0, 8.0], rtol=1e-5)
    assert (np.diff(ratio) >= -1e-5).all()
