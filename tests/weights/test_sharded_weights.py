"""Weights of several devices: the order of heads and halves, padding, and where they lie."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_tiny_checkpoint import MODEL_TYPES, make_tiny
from safetensors.numpy import load_file

from jaxserve.executor.sharding import Placement
from jaxserve.model_config import ModelConfig
from jaxserve.models import Model, build_model
from jaxserve.weights import load_weights, resolve_source

HEAD_DIM = 16
SIZES = {
    # one kv head on each device
    "plain": (2, {"num_attention_heads": 4, "num_key_value_heads": 2}),
    # each kv head on two devices; their 3 query heads as 2 and 1, and a padding head
    "padded": (4, {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96}),
}
Loaded = tuple[dict[str, jax.Array], dict[str, np.ndarray], Model]


def model_of(config: ModelConfig, num_shards: int) -> Model:
    f32 = jnp.dtype(jnp.float32)
    return build_model(
        config, context_len=config.context_len, dtype=f32, act_dtype=f32, num_shards=num_shards
    )


@pytest.fixture(scope="module", params=[(t, s) for t in MODEL_TYPES for s in SIZES], ids=str)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    model_type, sizes = request.param
    tp_size, options = SIZES[sizes]
    folder = make_tiny(tmp_path_factory.mktemp("sharded"), model_type, vocab_size=264, **options)
    source = resolve_source(str(folder))
    config = ModelConfig.from_hf(source.hf_config)
    model = model_of(config, tp_size)
    placement = Placement.over(jax.devices()[:tp_size], model.plan)
    weights = load_weights(source, config, placement.expected(model), model.plan)
    return weights, load_file(folder / "model.safetensors"), model


def shards(array: jax.Array) -> list[np.ndarray]:
    """What each device holds, in the order of the devices."""
    by_device = sorted(array.addressable_shards, key=lambda shard: shard.device.id)
    return [np.asarray(shard.data) for shard in by_device]


def test_every_shard_has_the_shape_of_the_model(loaded: Loaded) -> None:
    weights, _, model = loaded
    assert list(weights) == list(model.paths)
    for path, spec in zip(model.paths, model.specs, strict=True):
        shapes = [shard.shape for shard in shards(weights[path])]
        assert shapes == [spec.shape] * model.plan.num_shards, path


@pytest.mark.parametrize(("ours", "theirs"), [("kernel", "weight"), ("bias", "bias")])
def test_qkv_of_a_shard_are_whole_heads(loaded: Loaded, ours: str, theirs: str) -> None:
    weights, tensors, model = loaded
    plan = model.plan
    if f"layers.1.attn.qkv.{ours}" not in weights:
        assert ours == "bias" and "model.layers.1.self_attn.q_proj.bias" not in tensors
        return
    whole = [tensors[f"model.layers.1.self_attn.{part}_proj.{theirs}"] for part in "qkv"]
    q, k, v = (values.reshape(-1, HEAD_DIM, *values.shape[1:]) for values in whole)
    for shard, queries, keys in zip(
        shards(weights[f"layers.1.attn.qkv.{ours}"]), plan.query_heads, plan.kv_heads, strict=True
    ):
        heads = shard.reshape(-1, HEAD_DIM, *shard.shape[1:])
        padding = np.zeros((plan.num_heads - len(queries), *q.shape[1:]), q.dtype)
        wanted = [q[list(queries)], padding, k[list(keys)], v[list(keys)]]
        np.testing.assert_array_equal(heads, np.concatenate(wanted))


def test_columns_of_out_follow_the_query_heads(loaded: Loaded) -> None:
    weights, tensors, model = loaded
    whole = tensors["model.layers.0.self_attn.o_proj.weight"]
    columns = whole.reshape(whole.shape[0], -1, HEAD_DIM)
    for shard, queries in zip(
        shards(weights["layers.0.attn.out.kernel"]), model.plan.query_heads, strict=True
    ):
        mine = shard.reshape(whole.shape[0], -1, HEAD_DIM)
        np.testing.assert_array_equal(mine[:, : len(queries)], columns[:, list(queries)])
        assert not mine[:, len(queries) :].any()  # a padding head adds nothing


def test_a_shard_has_matching_halves_of_the_mlp(loaded: Loaded) -> None:
    weights, tensors, model = loaded
    parts = (tensors[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    gate, up, down = parts
    kernels = (shards(weights[f"layers.0.mlp.{name}.kernel"]) for name in ("gate_up", "down"))
    for index, (fused, row_parallel) in enumerate(zip(*kernels, strict=True)):
        mine = slice(index * model.plan.ffn, (index + 1) * model.plan.ffn)
        np.testing.assert_array_equal(fused, np.concatenate([gate[mine], up[mine]]))
        np.testing.assert_array_equal(row_parallel, down[:, mine])


def test_the_output_layer_is_divided_and_norms_are_not(loaded: Loaded) -> None:
    weights, tensors, _ = loaded
    np.testing.assert_array_equal(
        np.concatenate(shards(weights["lm_head.kernel"])), tensors["lm_head.weight"]
    )
    for ours, theirs in (
        ("embed.embedding", "model.embed_tokens.weight"),
        ("final_norm.scale", "model.norm.weight"),
        ("layers.0.attn.qk_norm.q.scale", "model.layers.0.self_attn.q_norm.weight"),
    ):
        for shard in shards(weights[ours]) if ours in weights else []:
            np.testing.assert_array_equal(shard, tensors[theirs])


def test_random_weights_are_made_where_they_lie(tmp_path: Path) -> None:
    """And hold the same numbers however they are divided."""
    source = resolve_source(str(make_tiny(tmp_path, "qwen2", vocab_size=264)), load_format="dummy")
    config = ModelConfig.from_hf(source.hf_config)
    model = model_of(config, 2)
    expected = Placement.over(jax.devices()[:2], model.plan).expected(model)
    weights = load_weights(source, config, expected, model.plan)
    plain = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in expected.items()}
    for path, array in load_weights(source, config, plain).items():
        assert weights[path].sharding == expected[path].sharding
        np.testing.assert_allclose(np.asarray(weights[path]), array, atol=1e-6, err_msg=path)
