"""From files to parameters: values, dtypes, fused rows, strictness, broken files."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from make_tiny_checkpoint import (
    TINY_CONFIG,
    make_tiny,
    make_tiny_llama,
    save_sharded,
    tiny_weights,
)
from safetensors.numpy import load_file, save_file

from jaxserve.errors import WeightLoadError
from jaxserve.model_config import ModelConfig
from jaxserve.models import build_model
from jaxserve.shard_plan import plan_shards
from jaxserve.weights import load_weights, resolve_source
from jaxserve.weights.mapping import layout

ALL_BIASES = {"attention_bias": True, "mlp_bias": True}


def load(path: Path, expected_structs, dtype="float32", **kwargs):
    source = resolve_source(str(path), **kwargs)
    config = ModelConfig.from_hf(source.hf_config)
    return load_weights(source, config, expected_structs(config, dtype))


def fused(tensors, prefix: str, names: tuple[str, ...], suffix: str) -> np.ndarray:
    return np.concatenate([tensors[f"{prefix}.{name}_proj.{suffix}"] for name in names])


@pytest.mark.parametrize("num_shards", [1, 4])
@pytest.mark.parametrize("options", [{}, ALL_BIASES, {"tie_word_embeddings": True}])
def test_every_parameter_holds_its_tensors(tmp_path, expected_structs, num_shards, options):
    folder = make_tiny_llama(tmp_path, num_shards=num_shards, **options)
    tensors = tiny_weights(TINY_CONFIG | options, np.dtype(np.float32))
    weights = load(folder, expected_structs)
    wanted = {
        "embed.embedding": tensors["model.embed_tokens.weight"],
        "final_norm.scale": tensors["model.norm.weight"],
    }
    if "lm_head.weight" in tensors:
        wanted["lm_head.kernel"] = tensors["lm_head.weight"]
    for i in range(2):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        norms = {"input_norm": "input_layernorm", "post_attn_norm": "post_attention_layernorm"}
        for our_name, name in norms.items():
            wanted[f"{ours}.{our_name}.scale"] = tensors[f"{theirs}.{name}.weight"]
        for our_suffix, suffix in (("kernel", "weight"), ("bias", "bias")):
            if f"{theirs}.self_attn.o_proj.{suffix}" not in tensors:
                continue
            modules = {
                "attn.qkv": ("self_attn", ("q", "k", "v")),
                "attn.out": ("self_attn", ("o",)),
                "mlp.gate_up": ("mlp", ("gate", "up")),
                "mlp.down": ("mlp", ("down",)),
            }
            for our_module, (module, names) in modules.items():
                joined = fused(tensors, f"{theirs}.{module}", names, suffix)
                wanted[f"{ours}.{our_module}.{our_suffix}"] = joined
    assert set(weights) == set(wanted)
    for path, values in wanted.items():
        assert isinstance(weights[path], jax.Array)
        np.testing.assert_array_equal(weights[path], values, err_msg=path)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "float16", "bfloat16"])
def test_tensors_are_converted_to_the_expected_dtype(tmp_path, expected_structs, stored, wanted):
    folder = make_tiny_llama(tmp_path, dtype=stored)
    weights = load(folder, expected_structs, wanted)
    on_disk = load_file(folder / "model.safetensors")
    for path, name in {
        "embed.embedding": "model.embed_tokens.weight",
        "layers.1.mlp.down.kernel": "model.layers.1.mlp.down_proj.weight",
    }.items():
        assert weights[path].dtype == jnp.dtype(wanted)
        assert on_disk[name].dtype == jnp.dtype(stored)
        np.testing.assert_array_equal(weights[path], on_disk[name].astype(jnp.dtype(wanted)))
    fused_kernel = weights["layers.0.attn.qkv.kernel"]
    q = on_disk["model.layers.0.self_attn.q_proj.weight"].astype(jnp.dtype(wanted))
    np.testing.assert_array_equal(fused_kernel[: q.shape[0]], q)


def test_gguf_and_safetensors_of_one_model_are_equal(tmp_path, expected_structs, write_gguf):
    write_gguf(tmp_path / "tiny.gguf", TINY_CONFIG | ALL_BIASES)
    from_gguf = load(tmp_path / "tiny.gguf", expected_structs)
    folder = make_tiny_llama(tmp_path / "folder", **ALL_BIASES)
    from_safetensors = load(folder, expected_structs)
    assert list(from_gguf) == list(from_safetensors)
    for path, values in from_safetensors.items():
        np.testing.assert_array_equal(from_gguf[path], values, err_msg=path)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True, "num_key_value_heads": 4}])
def test_gguf_of_a_qwen_equals_its_safetensors(tmp_path, write_gguf, model_type, options):
    folder = make_tiny(tmp_path / "folder", model_type, **options)
    hf_config = json.loads((folder / "config.json").read_text())
    write_gguf(tmp_path / "tiny.gguf", hf_config)
    loaded = []
    for path in (folder, tmp_path / "tiny.gguf"):
        source = resolve_source(str(path))
        config = ModelConfig.from_hf(source.hf_config)
        f32 = jnp.dtype(jnp.float32)
        model = build_model(config, context_len=64, dtype=f32, act_dtype=f32)
        loaded.append((config, load_weights(source, config, model.expected)))
    (config, wanted), (from_header, got) = loaded
    assert replace(from_header, eos_token_ids=(), rms_norm_eps=0.0, bos_token_id=None) == replace(
        config, eos_token_ids=(), rms_norm_eps=0.0, bos_token_id=None
    )
    assert list(got) == list(wanted)
    for path, values in wanted.items():
        np.testing.assert_array_equal(got[path], values, err_msg=path)


def test_quantized_gguf_is_close(tmp_path, expected_structs, write_gguf):
    write_gguf(tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q8_0)
    exact = load(make_tiny_llama(tmp_path / "folder"), expected_structs)
    weights = load(tmp_path / "tiny.gguf", expected_structs, "bfloat16")
    for path, values in exact.items():
        error = np.abs(np.asarray(weights[path], np.float32) - np.asarray(values)).max()
        assert error < 0.02 * np.abs(values).max(), path


def test_demo_model_loads_whole(demo_model, expected_structs, caplog):
    with caplog.at_level(logging.INFO, "jaxserve.weights.loader"):
        weights = load(demo_model, expected_structs, "bfloat16")
    assert sum(array.size for array in weights.values()) == 134_515_008
    assert all(bool(jnp.isfinite(array).all()) for array in weights.values())
    assert "Loaded weights." in caplog.text and "format: gguf, tensors: 182" in caplog.text


# --- strictness -------------------------------------------------------------------------------


def change_tensors(folder: Path, drop=(), add=()) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: values for name, values in tensors.items() if name not in drop}
    save_file(kept | dict(add), folder / "model.safetensors")


def test_everything_that_does_not_fit_is_named_in_one_error(tmp_path, expected_structs):
    folder = make_tiny_llama(tmp_path)
    q, norm = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
    change_tensors(
        folder,
        drop=(q, norm),
        add={
            "model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32),
            "extra": np.zeros(2, np.float32),
            "lm_head.weight": np.zeros((200, 64), np.float32),
            "model.layers.1.mlp.up_proj.weight": np.zeros((128, 60), np.float32),
        },
    )
    with pytest.raises(WeightLoadError, match="do not fit its config") as error:
        load(folder, expected_structs)
    text = str(error.value)
    assert f"missing tensors (2): {q}, {norm}" in text
    assert "unexpected tensors (2): extra, model.layers.0.self_attn.q_proj.bias" in text
    assert "wrong shapes (2): lm_head.weight is [200, 64], [259, 64] is needed" in text
    assert "model.layers.1.mlp.up_proj.weight is [128, 60], [128, 64] is needed" in text
    assert (
        "2 layers" in text
        and "biases: qkv=False, out=False, mlp=False" in text
        and str(folder) in text
    )
    assert text.endswith("all of its shards")


def test_old_buffers_and_a_tied_head_are_tolerated_by_name(tmp_path, expected_structs):
    folder = make_tiny_llama(tmp_path, tie_word_embeddings=True)
    add = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32),
        "lm_head.weight": np.zeros((259, 64), np.float32),
    }
    change_tensors(folder, add=add)
    assert "lm_head.kernel" not in load(folder, expected_structs)


def test_an_untied_head_must_be_there(tmp_path, expected_structs):
    folder = make_tiny_llama(tmp_path)
    change_tensors(folder, drop=("lm_head.weight",))
    with pytest.raises(WeightLoadError, match=re.escape("missing tensors (1): lm_head.weight")):
        load(folder, expected_structs)


def test_a_parameter_without_a_rule_is_a_programming_error():
    config = ModelConfig.from_hf(TINY_CONFIG)
    with pytest.raises(ValueError, match=r"no rule fills layers\.0\.new\.kernel of llama"):
        layout({}, config, plan_shards(config, 1), {"layers.0.new.kernel": (4, 4)}, "here")


# --- broken checkpoints -----------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 200, -10])
def test_a_truncated_file_is_named(tmp_path, expected_structs, keep):
    folder = make_tiny_llama(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    wanted = r"model\.safetensors cannot be read .*incomplete; fetch the file again"
    with pytest.raises(WeightLoadError, match=wanted):
        load(folder, expected_structs)


def test_missing_shards_are_all_named(tmp_path, expected_structs):
    folder = make_tiny_llama(tmp_path, num_shards=4)
    for number in (2, 4):
        (folder / f"model-0000{number}-of-00004.safetensors").unlink()
    with pytest.raises(WeightLoadError, match="lacks shards that its .*00002-of.*, .*00004-of"):
        load(folder, expected_structs)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index(tmp_path, expected_structs, text):
    folder = make_tiny_llama(tmp_path, num_shards=2)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightLoadError, match="the list of shards in .*fetch the file again"):
        load(folder, expected_structs)


def test_an_oddly_named_file_is_not_guessed(tmp_path, expected_structs):
    folder = make_tiny_llama(tmp_path)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(WeightLoadError, match="has neither model.safetensors nor .*weights.safe"):
        load(folder, expected_structs)


def test_tensors_that_are_not_floats(tmp_path, expected_structs):
    folder = make_tiny_llama(tmp_path)
    add = {
        "a.weight": np.zeros(4, np.int8),
        "b.weight": np.zeros(4, ml_dtypes.float8_e4m3fn),
    }
    change_tensors(folder, add=add)
    with pytest.raises(WeightLoadError, match="not floats .*a.weight is stored as I8.*F8_E4M3"):
        load(folder, expected_structs)


def test_shards_that_are_not_in_the_index_are_not_read(tmp_path, expected_structs):
    folder = make_tiny_llama(tmp_path, num_shards=2)
    (folder / "other.safetensors").write_bytes(b"broken")
    load(folder, expected_structs)


def test_an_index_may_name_a_single_shard(tmp_path, expected_structs):
    folder = make_tiny_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "all.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "all.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load(folder, expected_structs)


def test_sharding_loses_nothing(tmp_path):
    tensors = tiny_weights(TINY_CONFIG, np.dtype(np.float32))
    save_sharded(tmp_path, tensors, 3)
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        found |= load_file(path)
    assert set(found) == set(tensors)


# --- dummy ------------------------------------------------------------------------------------


def test_dummy_weights_are_reproducible_and_of_a_sane_size(tmp_path, expected_structs):
    folder = make_tiny_llama(tmp_path, **ALL_BIASES, vocab_size=4096)
    (folder / "model.safetensors").unlink()
    weights = load(folder, expected_structs, load_format="dummy")
    again = load(folder, expected_structs, load_format="dummy")
    source = resolve_source(str(folder), load_format="dummy")
    expected = expected_structs(ModelConfig.from_hf(source.hf_config), "float32")
    assert {path: array.shape for path, array in weights.items()} == {
        path: struct.shape for path, struct in expected.items()
    }
    for path, array in weights.items():
        np.testing.assert_array_equal(array, again[path])
        mean = 1.0 if path.endswith("scale") else 0.0
        std = 0.02 if path.endswith(("scale", "bias")) else array.shape[-1] ** -0.5
        assert abs(float(array.mean()) - mean) < 5 * std / array.size**0.5, path
        assert float(array.std()) == pytest.approx(std, rel=0.25), path
    first, second = (weights[f"layers.{i}.mlp.down.kernel"].ravel() for i in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_dummy_weights_keep_the_expected_dtype(tmp_path, expected_structs):
    folder = make_tiny_llama(tmp_path)
    weights = load(folder, expected_structs, "bfloat16", load_format="dummy")
    assert {array.dtype for array in weights.values()} == {jnp.dtype("bfloat16")}
