"""Reading .gguf files: values, row order, names, config, and files that are wrong."""

import re
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf import GGUFReader as LibraryReader
from gguf.quants import dequantize, quantize
from make_tiny_checkpoint import TINY_CONFIG
from published_configs import SMOLLM2_135M

from jaxserve.errors import ConfigError, WeightLoadError
from jaxserve.gguf_header import read_gguf_header
from jaxserve.model_config import ModelConfig
from jaxserve.weights.gguf import GGUFReader, dequantize_blocks, hf_config_from_header, unpermute


def slow_q4_1(raw: bytes) -> list[float]:
    """20 bytes a block: f16 scale, f16 minimum, low nibbles of values 0-15, high of 16-31."""
    values = []
    for start in range(0, len(raw), 20):
        scale, minimum = np.frombuffer(raw[start : start + 4], np.float16).astype(np.float32)
        nibbles = raw[start + 4 : start + 20]
        values += [scale * (b & 15) + minimum for b in nibbles]
        values += [scale * (b >> 4) + minimum for b in nibbles]
    return values


def slow_q8_0(raw: bytes) -> list[float]:
    """34 bytes a block: f16 scale, 32 signed bytes."""
    values = []
    for start in range(0, len(raw), 34):
        scale = np.frombuffer(raw[start : start + 2], np.float16).astype(np.float32)[0]
        values += [scale * q for q in np.frombuffer(raw[start + 2 : start + 34], np.int8)]
    return values


@pytest.mark.parametrize(
    ("tensor", "num_bytes", "slow"),
    [("blk.3.ffn_up.weight", 400 * 20, slow_q4_1), ("token_embd.weight", 300 * 34, slow_q8_0)],
)
def test_demo_values_equal_a_decoder_written_from_the_format(demo_model, tensor, num_bytes, slow):
    info = read_gguf_header(demo_model).tensors[tensor]
    with demo_model.open("rb") as file:
        file.seek(info.offset)
        wanted = np.array(slow(file.read(num_bytes)), np.float32)
    names = {
        "blk.3.ffn_up.weight": "model.layers.3.mlp.up_proj.weight",
        "token_embd.weight": "model.embed_tokens.weight",
    }
    values = GGUFReader(demo_model).read(names[tensor]).reshape(-1)[: wanted.size]
    np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "Q6_K", "BF16", "F16"])
def test_chunks_change_nothing(kind):
    kind = GGMLQuantizationType[kind]
    values = np.random.default_rng(0).standard_normal((1100, 256), np.float32)
    raw = quantize(values, GGMLQuantizationType.Q8_0 if kind.name == "Q6_K" else kind)
    if kind.name == "Q6_K":  # the library decodes it but does not encode it
        raw = np.random.default_rng(0).integers(0, 60, (1100, 210), np.uint8)
    raw = raw.view(np.uint8).reshape(1100, -1)
    wanted = dequantize(raw, kind).reshape(-1)
    np.testing.assert_array_equal(dequantize_blocks(raw.reshape(-1), kind), wanted)


def test_q_and_k_rows_come_back_in_hugging_face_order(tmp_path, write_gguf):
    tensors = write_gguf(tmp_path / "tiny.gguf", TINY_CONFIG | {"attention_bias": True})
    reader = GGUFReader(tmp_path / "tiny.gguf")
    assert reader.shapes == {name: tensor.shape for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(reader.read(name), tensor)


def test_unpermute_follows_the_formula():
    head_dim, heads = 6, 2
    stored = np.arange(heads * head_dim, dtype=np.float32)
    restored = unpermute(stored, heads)
    for row in range(heads * head_dim):
        head, inner = divmod(row, head_dim)
        r, j = divmod(inner, head_dim // 2)
        assert restored[row] == head * head_dim + 2 * j + r


def test_read_memory_is_not_the_file(demo_model):
    scale = GGUFReader(demo_model).read("model.norm.weight")
    assert scale.flags.writeable and scale.flags.owndata is not None
    scale[:] = 0  # a view of the read-only map would refuse


def test_demo_config_equals_the_published_one(demo_model):
    header = read_gguf_header(demo_model)
    config = ModelConfig.from_hf(hf_config_from_header(demo_model, header))
    published = ModelConfig.from_hf(SMOLLM2_135M)
    assert config.rms_norm_eps == pytest.approx(published.rms_norm_eps)
    fields = {**vars_of(published), "rms_norm_eps": config.rms_norm_eps}
    assert vars_of(config) == fields


def vars_of(config: ModelConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in ModelConfig.__slots__}


def test_header_agrees_with_the_gguf_package(tmp_path, write_gguf):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, kind=GGMLQuantizationType.Q8_0)
    library = LibraryReader(path)
    header = read_gguf_header(path)
    ours = {name: (t.shape, t.type_id, t.offset) for name, t in header.tensors.items()}
    theirs = {
        t.name: (tuple(int(n) for n in t.shape[::-1]), int(t.tensor_type), int(t.data_offset))
        for t in library.tensors
    }
    assert ours == theirs
    fields = {k: f.contents() for k, f in library.fields.items() if not k.startswith("GGUF.")}
    assert header.metadata == fields


def test_features_are_told_from_the_tensors(tmp_path, write_gguf):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, TINY_CONFIG | {"attention_bias": True, "mlp_bias": True})
    config = ModelConfig.from_hf(hf_config_from_header(path, read_gguf_header(path)))
    assert (config.qkv_bias, config.mlp_bias, config.tie_word_embeddings) == (True,) * 2 + (False,)
    assert config.eos_token_ids == (7,)
    assert (config.num_kv_heads, config.context_len, config.vocab_size) == (2, 512, 259)
    write_gguf(path, TINY_CONFIG | {"tie_word_embeddings": True})
    assert ModelConfig.from_hf(
        hf_config_from_header(path, read_gguf_header(path))
    ).tie_word_embeddings


def test_frequency_divisors_become_longrope_factors(tmp_path, write_gguf):
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    write_gguf(tmp_path / "tiny.gguf", extra_tensors={"rope_freqs.weight": factors})
    path = tmp_path / "tiny.gguf"
    scaling = ModelConfig.from_hf(hf_config_from_header(path, read_gguf_header(path))).rope_scaling
    assert scaling is not None and scaling.type == "longrope"
    assert scaling.short_factor == scaling.long_factor == tuple(factors.tolist())
    assert scaling.attention_factor == 1.0
    assert "rope_freqs.weight" not in GGUFReader(path).shapes


def test_yarn_is_read_from_the_header(tmp_path, write_gguf):
    keys = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 128,
    }
    path = tmp_path / "tiny.gguf"
    write_gguf(path, metadata=keys)
    scaling = ModelConfig.from_hf(hf_config_from_header(path, read_gguf_header(path))).rope_scaling
    assert scaling is not None
    assert (scaling.type, scaling.factor, scaling.original_context_len) == ("yarn", 4.0, 128)


# --- what cannot be served --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"split.count": 3}, WeightLoadError, "is one of 3 parts; merge them into one file"),
        ({"llama.expert_count": 8}, ConfigError, "mixtures of experts are not supported"),
        ({"llama.rope.dimension_count": 8}, ConfigError, "partial_rotary_factor = 0.5"),
        (
            {"llama.rope.dimension_count": 4, "llama.attention.key_length": 16},
            ConfigError,
            "partial_rotary_factor = 0.25",
        ),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.attn_factor": 0.5},
            ConfigError,
            "attn_factor = 0.5 is not supported; use the safetensors checkpoint",
        ),
        ({"llama.attention.sliding_window": 64}, ConfigError, "sliding_window = 64"),
    ],
)
def test_features_that_are_not_supported(tmp_path, write_gguf, metadata, error, message):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, metadata=metadata)
    with pytest.raises(error, match=re.escape(message)):
        ModelConfig.from_hf(hf_config_from_header(path, read_gguf_header(path)))


def test_unknown_architecture_names_the_supported_ones(tmp_path, write_gguf):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(
        path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba")
    )
    with pytest.raises(
        ConfigError, match="architecture 'mamba' is not supported; supported: llama"
    ):
        hf_config_from_header(path, read_gguf_header(path))


def test_a_file_without_the_embedding(tmp_path, write_gguf):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes().replace(b"token_embd.weight", b"token_emXX.weight"))
    with pytest.raises(WeightLoadError, match="has no tensor token_embd.weight"):
        hf_config_from_header(path, read_gguf_header(path))


def test_truncated_data_is_seen_before_anything_is_read(tmp_path, write_gguf):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:-40_000])
    with pytest.raises(WeightLoadError, match="ends inside tensor .*; the download is probably"):
        GGUFReader(path)


def test_unknown_storage_type(tmp_path, write_gguf):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    name = b"output_norm.weight"
    data = path.read_bytes()
    at = data.index(name) + len(name) + 4 + 8  # the number of dimensions, the one dimension
    path.write_bytes(data[:at] + (250).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(WeightLoadError, match="storage type 250, unknown to the installed"):
        GGUFReader(path)


def test_a_type_that_the_library_cannot_decode(tmp_path, write_gguf):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, extra_tensors={"blk.0.attn_norm.bias": np.zeros(32, np.int32)})
    with pytest.raises(WeightLoadError, match="cannot be dequantized .*use another quantization"):
        GGUFReader(path).read("model.layers.0.input_layernorm.bias")


def test_unknown_names_stay_as_they_are(tmp_path, write_gguf):
    path: Path = tmp_path / "tiny.gguf"
    write_gguf(path, extra_tensors={"blk.0.strange.weight": np.zeros(32, np.float32)})
    assert "blk.0.strange.weight" in GGUFReader(path).shapes
