"""Additions that share a kernel with the norm after them: the same numbers by another way.

The kernel itself needs a GPU (or its interpreter, in tests/pallas_kernels); here the ops of
``xla`` stand in for it, so that what the models do around it is tested.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from make_tiny_checkpoint import make_tiny_llama
from model_harness import load, prompt_logits, whole_prompt

from jaxserve.models.layers import Linear, RMSNorm, num_product_splits
from pallas_kernels import api, xla


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(api.IMPLEMENTATIONS, "pallas", xla)


def linear(out_features: int, in_features: int, dtype: str, *, use_bias: bool = False) -> Linear:
    layer = Linear(out_features, in_features, use_bias=use_bias, dtype=jnp.dtype(dtype))
    rng = np.random.default_rng(0)
    layer.kernel[...] = jnp.asarray(rng.standard_normal((out_features, in_features)), dtype)
    return layer


@pytest.mark.parametrize(
    ("num_tokens", "out_features", "in_features", "expected"),
    [
        (1, 4096, 4096, 8), (64, 4096, 14336, 8), (128, 4096, 4096, 4), (256, 4096, 4096, 2),
        (8192, 4096, 14336, 1), (4, 896, 4864, 4), (4, 896, 896, 2), (4, 64, 100, 1),
    ],
)  # fmt: skip
def test_products_are_split_where_most_of_a_gpu_would_be_idle(
    num_tokens: int, out_features: int, in_features: int, expected: int
) -> None:
    assert num_product_splits(num_tokens, out_features, in_features) == expected


def test_partial_sums_add_up_to_the_product() -> None:
    layer = linear(96, 512, "bfloat16")
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 512)), jnp.bfloat16)
    parts = layer.partial_sums(x)
    assert (parts.shape, parts.dtype) == ((8, 5, 96), jnp.float32)
    whole = np.asarray(layer(x), np.float32)
    np.testing.assert_allclose(np.asarray(parts).sum(axis=0), whole, atol=0.2, rtol=0.01)


def test_a_product_with_a_bias_is_not_split() -> None:
    x = jnp.ones((2, 128), jnp.bfloat16)
    assert linear(64, 128, "bfloat16", use_bias=True).partial_sums(x).shape == (2, 64)


@pytest.mark.parametrize("size", [128, 96])  # one that the kernel takes, one that it does not
def test_the_norm_after_adding_parts(kernels: None, size: int) -> None:
    rng = np.random.default_rng(2)
    norm = RMSNorm(size, epsilon=1e-5, dtype=jnp.dtype(jnp.bfloat16))
    norm.scale[...] = jnp.asarray(rng.standard_normal(size), jnp.bfloat16)
    x = jnp.asarray(rng.standard_normal((3, size)), jnp.bfloat16)
    parts = jnp.asarray(rng.standard_normal((4, 3, size)), jnp.float32)
    delta = jnp.sum(parts, axis=0).astype(jnp.bfloat16)
    for given in (parts, delta):
        total, normed = norm.after_adding(x, given, fused=True)
        np.testing.assert_array_equal(total, x + delta)
        np.testing.assert_array_equal(normed, norm(x + delta))


def test_a_whole_model_gives_the_same_logits(kernels: None, tmp_path: Path) -> None:
    """In bf16 and with sizes that both the kernel and the splitting take."""
    loaded = load(make_tiny_llama(tmp_path / "llama", tokenizer="bytes"))
    ids = list(range(40))

    def logits(implementation: str) -> np.ndarray:
        @jax.jit
        def forward(leaves, ids, pool, context):
            model = loaded.model.bind(leaves)
            hidden, _ = model(ids, pool, context)
            return model.logits(hidden)

        pool, context = whole_prompt(loaded.config, len(ids), implementation)
        return np.asarray(forward(loaded.leaves, jnp.asarray(ids, jnp.int32), pool, context))

    expected = prompt_logits(loaded, ids)
    np.testing.assert_allclose(logits("pallas"), expected, atol=1e-4)
    assert isinstance(loaded.bind(), nnx.Module)
