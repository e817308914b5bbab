"""The shapes a Llama expects, written out from its config, and small .gguf files to read."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from make_tiny_checkpoint import TINY_CONFIG, tiny_weights

from jaxserve.model_config import ModelConfig

Expected = Callable[[ModelConfig, str], dict[str, jax.ShapeDtypeStruct]]
WriteGGUF = Callable[..., Path]

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def expected_structs(config: ModelConfig, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    width, ffn, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_rows, kv_rows = config.num_heads * head_dim, config.num_kv_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed.embedding": (config.vocab_size, width)}
    for i in range(config.num_layers):
        layer = f"layers.{i}"
        shapes[f"{layer}.input_norm.scale"] = (width,)
        shapes[f"{layer}.attn.qkv.kernel"] = (q_rows + 2 * kv_rows, width)
        shapes[f"{layer}.attn.out.kernel"] = (width, q_rows)
        shapes[f"{layer}.post_attn_norm.scale"] = (width,)
        shapes[f"{layer}.mlp.gate_up.kernel"] = (2 * ffn, width)
        shapes[f"{layer}.mlp.down.kernel"] = (width, ffn)
        if config.qkv_bias:
            shapes[f"{layer}.attn.qkv.bias"] = (q_rows + 2 * kv_rows,)
        if config.out_bias:
            shapes[f"{layer}.attn.out.bias"] = (width,)
        if config.mlp_bias:
            shapes[f"{layer}.mlp.gate_up.bias"] = (2 * ffn,)
            shapes[f"{layer}.mlp.down.bias"] = (width,)
    shapes["final_norm.scale"] = (width,)
    if not config.tie_word_embeddings:
        shapes["lm_head.kernel"] = (config.vocab_size, width)
    return {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}


def permute(values: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k: row j + r * H/2 of a head becomes row 2j + r."""
    head_dim = values.shape[0] // num_heads
    out = np.empty_like(values)
    for head in range(num_heads):
        for j in range(head_dim // 2):
            for r in range(2):
                source = head * head_dim + j + r * head_dim // 2
                out[head * head_dim + 2 * j + r] = values[source]
    return out


def write_gguf(
    path: Path,
    config: Mapping[str, object] = TINY_CONFIG,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    metadata: Mapping[str, object] | None = None,
    extra_tensors: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Write the tiny model of ``config`` as llama.cpp would; return its tensors by HF name."""
    architecture = str(config["model_type"])
    tensors = {n: np.asarray(t) for n, t in tiny_weights(config, np.dtype(np.float32)).items()}
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_eos_token_id(7)
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
    for key, value in (metadata or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    for name, values in tensors.items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        key = heads.get(name.split(".")[-2]) if architecture == "llama" else None
        stored = permute(values, config[key]) if key else values
        own_kind = kind if values.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), quantize(stored, own_kind), raw_dtype=own_kind)
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def gguf_name(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    if stem in GGUF_NAMES:
        return f"{GGUF_NAMES[stem]}.{suffix}"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[module]}.{suffix}"


@pytest.fixture(name="expected_structs")
def expected_structs_fixture() -> Expected:
    return expected_structs


@pytest.fixture(name="write_gguf")
def write_gguf_fixture() -> WriteGGUF:
    return write_gguf
