"""Checkpoints in one .gguf file: config from the header, tensors dequantized to float32.

llama.cpp's names are turned into Hugging Face's, so that one mapping serves both formats.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from jaxserve.errors import ConfigError, WeightLoadError
from jaxserve.gguf_header import GGUFHeader, GGUFTensor, read_gguf_header

# llama.cpp's name, which is Hugging Face's model_type too → the class in config.json.
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
# of a Llama; the rows of the others are in Hugging Face's order
_PERMUTED = {"attn_q": "head_count", "attn_k": "head_count_kv"}
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_FLOAT_TYPES = {"F32": "float32", "F16": "float16"}
# Blocks dequantized at once: the temporaries of so many stay in a core's cache (measured: 0.35 s
# for the 105 M weights in Q4_1 of the demo model, 1.0 s tensor by tensor, 2.9 s by 16 rows, which
# is what `gguf.dequantize` does by itself).
_CHUNK_BLOCKS = 4096
_REMEDY = "the download is probably incomplete; fetch the file again"


class GGUFReader:
    """Tensors of one .gguf file, dequantized when read.

    Raises:
        WeightLoadError: a broken or truncated file, or a storage type that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        header = read_gguf_header(path)
        self._header = header
        self._sources = {_hf_name(name): name for name in header.tensors if name != _ROPE_FACTORS}
        for name, tensor in header.tensors.items():
            if tensor.offset + _num_bytes(path, name, tensor) > header.num_bytes:
                raise WeightLoadError(f"{path} ends inside tensor {name}; {_REMEDY}")
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See TensorReader."""
        tensors = self._header.tensors
        return {name: tensors[source].shape for name, source in self._sources.items()}

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """See TensorReader."""
        source = self._sources[name]
        values = self._dequantized(source)
        heads_key = _PERMUTED.get(source.split(".")[-2])
        if heads_key is None or self._header.metadata["general.architecture"] != "llama":
            return values
        # head_count_kv is left away by models without grouped queries.
        attention = "llama.attention."
        heads = self._header.metadata.get(attention + heads_key)
        return unpermute(values, int(str(heads or self._header.metadata[f"{attention}head_count"])))

    def _dequantized(self, source: str) -> npt.NDArray[np.float32]:
        tensor = self._header.tensors[source]
        num_bytes = _num_bytes(self._path, source, tensor)
        raw = np.frombuffer(self._data, np.uint8, num_bytes, tensor.offset)
        try:
            return dequantize_blocks(raw, tensor.type_id).reshape(tensor.shape)
        except NotImplementedError as error:
            raise WeightLoadError(
                f"{self._path}: tensor {source} cannot be dequantized ({error}); "
                "use another quantization of this model"
            ) from error


def dequantize_blocks(raw: npt.NDArray[np.uint8], type_id: int) -> npt.NDArray[np.float32]:
    """Decode whole ggml blocks: u8[num_bytes] → f32[num_values], in memory of its own."""
    kind = GGMLQuantizationType(type_id)
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    chunk_bytes = _CHUNK_BLOCKS * block_bytes
    chunk_len = _CHUNK_BLOCKS * block_len
    out = np.empty(raw.size // block_bytes * block_len, np.float32)
    for index in range(-(-raw.size // chunk_bytes)):
        chunk = raw[index * chunk_bytes : (index + 1) * chunk_bytes]
        # One row: the library works on groups of 16 rows, and so on the chunk as a whole.
        values = dequantize(chunk.reshape(1, -1), kind)
        out[index * chunk_len : index * chunk_len + values.size] = values.reshape(-1)
    return out


def unpermute(values: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's reordering of the rows of q and k.

    Its RoPE rotates neighbours (2j, 2j+1), Hugging Face's rotates (j, j + H/2); llama.cpp stores
    row j + r*H/2 of a head as row 2j + r.

    Args:
        values: [num_heads * H, ...] as in the file.

    Returns:
        The same rows in Hugging Face's order.
    """
    rows, *rest = values.shape
    pairs = values.reshape(num_heads, rows // num_heads // 2, 2, *rest)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def hf_config_from_header(path: Path, header: GGUFHeader) -> dict[str, object]:
    """Write the header of a .gguf file as the dict of a config.json.

    Raises:
        ConfigError: an architecture or feature that is not supported.
        WeightLoadError: one part of a split file, or a header without the model's tensors.
    """
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ConfigError(
            f"{path}: architecture {architecture!r} is not supported; supported: "
            f"{', '.join(_ARCHITECTURES)}. Choose another .gguf file"
        )
    if metadata.get("split.count", 1) != 1:
        raise WeightLoadError(
            f"{path} is one of {metadata['split.count']} parts; merge them into one file with "
            "`gguf-split --merge` of llama.cpp"
        )
    if "token_embd.weight" not in header.tensors:
        raise WeightLoadError(f"{path} has no tensor token_embd.weight; {_REMEDY}")
    if metadata.get(f"{architecture}.expert_count"):
        raise ConfigError(f"{path}: mixtures of experts are not supported; choose a dense model")
    return _config(path, header, str(architecture))


def _config(path: Path, header: GGUFHeader, architecture: str) -> dict[str, object]:
    tensors, metadata = header.tensors, header.metadata
    own = {key.removeprefix(f"{architecture}."): value for key, value in metadata.items()}
    vocab_size, _ = tensors["token_embd.weight"].shape
    sliding_window = own.get("attention.sliding_window")
    return {
        "model_type": architecture,
        "architectures": [_ARCHITECTURES[architecture]],
        "vocab_size": vocab_size,
        "hidden_size": own.get("embedding_length"),
        "intermediate_size": own.get("feed_forward_length"),
        "num_hidden_layers": own.get("block_count"),
        "num_attention_heads": own.get("attention.head_count"),
        # left away by models without grouped queries
        "num_key_value_heads": own.get("attention.head_count_kv", own.get("attention.head_count")),
        "head_dim": own.get("attention.key_length"),
        "rms_norm_eps": own.get("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": own.get("context_length"),
        "rope_theta": own.get("rope.freq_base"),
        "rope_scaling": _rope_scaling(path, header, own),
        "partial_rotary_factor": _rotated_share(own),
        "sliding_window": sliding_window,
        "use_sliding_window": sliding_window is not None,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "hidden_act": "silu",
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_token_ids(metadata),
        "dtype": _storage_dtype(header),
    }


def _rotated_share(own: Mapping[str, object]) -> float | None:
    """Which part of a head RoPE rotates; None where the header is too incomplete to tell."""
    rotated = own.get("rope.dimension_count")
    heads = own.get("attention.head_count")
    width = own.get("embedding_length")
    head_dim = own.get("attention.key_length")
    if head_dim is None and isinstance(width, int) and isinstance(heads, int) and heads:
        head_dim = width // heads
    if not isinstance(rotated, int) or not isinstance(head_dim, int) or not head_dim:
        return None
    return rotated / head_dim


def _rope_scaling(
    path: Path, header: GGUFHeader, own: Mapping[str, object]
) -> dict[str, object] | None:
    original_len = own.get("rope.scaling.original_context_length")
    if _ROPE_FACTORS in header.tensors:
        # How llama.cpp stores llama3 scaling: the divisor of each frequency, which is what
        # longrope's factors are, once for every length.
        tensor = header.tensors[_ROPE_FACTORS]
        num_bytes = _num_bytes(path, _ROPE_FACTORS, tensor)
        raw = np.fromfile(path, np.uint8, num_bytes, offset=tensor.offset)
        factors = dequantize_blocks(raw, tensor.type_id).tolist()
        return {
            "rope_type": "longrope",
            "factor": 1.0,
            "attention_factor": 1.0,
            "short_factor": factors,
            "long_factor": factors,
        }
    rope_type = own.get("rope.scaling.type")
    if rope_type in (None, "none"):
        return None
    attention_factor = own.get("rope.scaling.attn_factor", 1.0)
    if attention_factor != 1.0:
        # llama.cpp multiplies it onto YaRN's own factor, where config.json's replaces that one.
        raise ConfigError(
            f"{path}: rope.scaling.attn_factor = {attention_factor} is not supported; "
            "use the safetensors checkpoint of this model"
        )
    scaling = {"rope_type": rope_type, "factor": own.get("rope.scaling.factor")}
    if original_len is not None:
        scaling["original_max_position_embeddings"] = original_len
    return scaling


def _end_token_ids(metadata: Mapping[str, object]) -> list[object]:
    found = (metadata.get(f"tokenizer.ggml.{key}") for key in _END_KEYS)
    return list(dict.fromkeys(token_id for token_id in found if token_id is not None))


def _storage_dtype(header: GGUFHeader) -> str:
    kind = header.tensors["token_embd.weight"].type_id
    # bfloat16 for the quantized ones: float16 has too little range for some activations.
    return _FLOAT_TYPES.get(GGMLQuantizationType(kind).name, "bfloat16")


def _hf_name(name: str) -> str:
    """llama.cpp's name → Hugging Face's; an unknown one stays as it is, for the error."""
    stem, _, suffix = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{suffix}"
    block, _, inner = stem.partition(".")
    layer, _, module = inner.partition(".")
    if block == "blk" and module in _LAYER_NAMES:
        return f"model.layers.{layer}.{_LAYER_NAMES[module]}.{suffix}"
    return name


def _num_bytes(path: Path, name: str, tensor: GGUFTensor) -> int:
    try:
        block_len, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type_id)]
    except (ValueError, KeyError) as error:
        raise WeightLoadError(
            f"{path}: tensor {name} has storage type {tensor.type_id}, unknown to the installed "
            "gguf package; upgrade it, or use another quantization"
        ) from error
    num_values = int(np.prod(tensor.shape, dtype=np.int64))
    return num_values // block_len * block_bytes
