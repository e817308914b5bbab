"""Rules of placement: which parameter is divided along which axis, and by whom."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from make_tiny_checkpoint import TINY_CONFIG

from jaxserve.config import DeviceInfo, EngineConfig, resolve
from jaxserve.errors import ConfigError
from jaxserve.executor.kv_pool import make_state, state_specs
from jaxserve.executor.sharding import PARAM_AXES, Placement, axes_of
from jaxserve.model_config import ModelConfig
from jaxserve.models import Model, build_model
from jaxserve.shard_plan import plan_shards

F32 = jnp.dtype(jnp.float32)
DIVIDED = {
    "embed.embedding": (None, None),
    "lm_head.kernel": ("tp", None),
    "final_norm.scale": (None,),
    "layers.0.attn.qkv.kernel": ("tp", None),
    "layers.0.attn.qkv.bias": ("tp",),
    "layers.0.attn.out.kernel": (None, "tp"),
    "layers.0.attn.out.bias": (None,),  # added once, after the reduction
    "layers.1.mlp.gate_up.kernel": ("tp", None),
    "layers.1.mlp.down.kernel": (None, "tp"),
    "layers.1.input_norm.scale": (None,),
}


def config_of(**fields: object) -> ModelConfig:
    return ModelConfig.from_hf(TINY_CONFIG | {"vocab_size": 264, "attention_bias": True} | fields)


def model_of(config: ModelConfig, num_shards: int) -> Model:
    return build_model(config, context_len=64, dtype=F32, act_dtype=F32, num_shards=num_shards)


def test_parameters_are_divided_by_rule() -> None:
    model = model_of(config_of(), 2)
    expected = Placement.over(jax.devices()[:2], model.plan).expected(model)
    assert list(expected) == list(model.paths)
    for path, axes in DIVIDED.items():
        sharding = expected[path].sharding
        assert isinstance(sharding, NamedSharding)
        assert sharding.spec == PartitionSpec(*axes), path


def test_a_tied_table_is_divided() -> None:
    model = model_of(config_of(tie_word_embeddings=True), 2)
    expected = Placement.over(jax.devices()[:2], model.plan).expected(model)
    assert expected["embed.embedding"].sharding.spec == PartitionSpec("tp", None)
    assert expected["embed.embedding"].shape == (264, 64)


def test_one_device_has_the_shapes_of_the_model_and_no_mesh() -> None:
    model = model_of(config_of(), 1)
    placement = Placement.of_this_host(model.plan)
    assert placement.expected(model) == model.expected
    assert placement.mesh is None
    assert all(spec.sharding is None for spec in placement.leaf_specs(model))


def test_one_device_of_a_description() -> None:
    model = model_of(config_of(), 1)
    placement = Placement.over(jax.devices()[3:4], model.plan)
    shardings = {spec.sharding for spec in placement.leaf_specs(model)}
    assert shardings == {SingleDeviceSharding(jax.devices()[3])}


def test_every_rule_is_used_and_every_parameter_has_one() -> None:
    models = [
        model_of(config_of(mlp_bias=True), 1),
        model_of(ModelConfig.from_hf(TINY_CONFIG | {
            "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}), 1),
    ]  # fmt: skip
    used = {axes_of(path) for model in models for path in model.paths}
    assert used == set(PARAM_AXES.values())
    with pytest.raises(AssertionError, match="layers.0.new.kernel has no rule in PARAM_AXES"):
        axes_of("layers.0.new.kernel")


def test_the_state_is_allocated_where_it_lies() -> None:
    config = config_of()
    plan = plan_shards(config, 4)  # two kv heads, each on two devices
    placement = Placement.over(jax.devices()[:4], plan)
    specs = state_specs(config, placement, num_pages=8, page_size=16, num_slots=3, dtype=F32)
    assert specs.kv.k[0].shape == (8, 4, 16, 16)
    state = make_state(specs)
    for array, spec in zip(jax.tree.leaves(state), jax.tree.leaves(specs), strict=True):
        assert (array.shape, array.dtype, array.sharding) == (spec.shape, spec.dtype, spec.sharding)
    assert [shard.data.shape for shard in state.kv.v[1].addressable_shards] == [(8, 1, 16, 16)] * 4
    for table in (state.slots.token_info, state.slots.logit_bias):
        assert all(shard.data.shape == (3, 264) for shard in table.addressable_shards)


def test_more_devices_than_are_visible() -> None:
    device = DeviceInfo("cuda", "NVIDIA X", 2**30, 8, num_devices=2)
    with pytest.raises(ConfigError, match=r"--tp-size 4 needs as many devices, and 2 of cuda"):
        resolve(EngineConfig(tp_size=4), config_of(), device)
    with pytest.raises(ConfigError, match="--tp-size 3 does not divide this model"):
        resolve(EngineConfig(tp_size=3), config_of(), device)
    assert resolve(EngineConfig(tp_size=2), config_of(), device).tp_size == 2
