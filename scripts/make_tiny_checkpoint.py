"""Make a small random checkpoint in the Hugging Face layout, without torch.

    python scripts/make_tiny_checkpoint.py FOLDER --rope llama3 --tied --shards 3
    python scripts/make_tiny_checkpoint.py FOLDER --model-type qwen3
    python scripts/make_tiny_checkpoint.py FOLDER --vocab-size 49152 --tokenizer demo

The last is the model of the host-overhead benchmark: 2 layers, 64 wide, so small that a step
costs little more than its bookkeeping, with the demo model's tokenizer.

Tests import ``make_tiny``.  Norm scales lie around 1, kernels have variance 1 / fan-in and
the head is scaled so that logits have a standard deviation of about 2: a wrong detail shows in
the logits, and greedy decoding has a clear favourite.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from jaxserve.gguf_header import read_gguf_header
from jaxserve.text.gguf_vocab import build_vocab
from jaxserve.weights.demo import demo_model_path

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TINY_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TINY_CONFIG: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": TINY_VOCAB_SIZE,
}
MODEL_TYPES: Mapping[str, Mapping[str, object]] = {
    "llama": {},
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_bias": None,
        "mlp_bias": None,
        "sliding_window": 512,
        "use_sliding_window": False,
        "max_window_layers": 2,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "mlp_bias": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": 2,
    },
}
# For the head_dim of TINY_CONFIG, 16, and with pretrained lengths shorter than its context, so
# that a few dozen tokens reach the stretched part.
ROPE_VARIANTS: Mapping[str, Mapping[str, object] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
    },
}


def make_tiny_llama(folder: Path, **options: Any) -> Path:
    """``make_tiny`` of a Llama."""
    return make_tiny(folder, "llama", **options)


def make_tiny(
    folder: Path,
    model_type: str,
    *,
    rope: str = "default",
    num_shards: int = 1,
    dtype: str = "float32",
    tokenizer: str = "none",
    seed: int = 0,
    **overrides: object,
) -> Path:
    """Write a checkpoint into ``folder``, which is made if need be.

    Args:
        folder: where config.json, the weights and the tokenizer go.
        model_type: a key of MODEL_TYPES.
        rope: a key of ROPE_VARIANTS.
        num_shards: 1 for model.safetensors, more for shards with an index.
        dtype: what the weights are stored in.
        tokenizer: "none", "bytes" (one token per byte, needs a vocab_size of at least 259) or
            "demo" (the demo model's, needs 49152).
        seed: of the weights.
        **overrides: keys of config.json; None removes a key.

    Returns:
        ``folder``.
    """
    base = {**TINY_CONFIG, **MODEL_TYPES[model_type]}
    merged = {**base, "rope_scaling": ROPE_VARIANTS[rope], "torch_dtype": dtype, **overrides}
    config = {key: value for key, value in merged.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer == "bytes":
        ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        _write_tokenizer(folder, byte_tokenizer(), ends, CHAT_TEMPLATE)
    if tokenizer == "demo":
        config |= {"bos_token_id": 1, "eos_token_id": 2}  # the demo model's
        _copy_demo_tokenizer(folder)
    _write_json(folder / "config.json", config)
    save_sharded(folder, tiny_weights(config, DTYPES[dtype], seed), num_shards)
    return folder


def tiny_weights(
    config: Mapping[str, object], dtype: np.dtype[np.generic], seed: int = 0
) -> dict[str, npt.NDArray[np.generic]]:
    """Random tensors under their Hugging Face names, as ``config`` wants them."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    for name, shape in tensor_shapes(config).items():
        noise = rng.standard_normal(shape, np.float32)
        if name.endswith("norm.weight"):
            values = 1.0 + 0.2 * noise
        elif name.endswith(".bias"):
            values = 0.2 * noise
        else:
            is_vocab = name in ("lm_head.weight", "model.embed_tokens.weight")
            values = noise * (2.0 if is_vocab else 1.0) / math.sqrt(shape[-1])
        tensors[name] = values.astype(dtype)
    return tensors


def tensor_shapes(config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Hugging Face name → shape of every tensor of a model of MODEL_TYPES."""
    sizes = {key: value for key, value in config.items() if isinstance(value, int)}
    width, ffn = sizes["hidden_size"], sizes["intermediate_size"]
    heads = sizes["num_attention_heads"]
    head_dim = sizes.get("head_dim", width // heads)
    kv_rows = sizes.get("num_key_value_heads", heads) * head_dim
    linears = {
        "self_attn.q_proj": (heads * head_dim, width),
        "self_attn.k_proj": (kv_rows, width),
        "self_attn.v_proj": (kv_rows, width),
        "self_attn.o_proj": (width, heads * head_dim),
        "mlp.gate_proj": (ffn, width),
        "mlp.up_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (sizes["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (sizes["vocab_size"], width)
    for layer in range(sizes["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes[f"{prefix}input_layernorm.weight"] = (width,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (width,)
        if config.get("model_type") == "qwen3":
            shapes[f"{prefix}self_attn.q_norm.weight"] = (head_dim,)
            shapes[f"{prefix}self_attn.k_norm.weight"] = (head_dim,)
        for module, shape in linears.items():
            shapes[f"{prefix}{module}.weight"] = shape
            if _has_bias(config, module):
                shapes[f"{prefix}{module}.bias"] = shape[:1]
    return shapes


def _has_bias(config: Mapping[str, object], module: str) -> bool:
    if config.get("model_type") == "qwen2":
        return module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return bool(config.get("mlp_bias" if module.startswith("mlp") else "attention_bias"))


def save_sharded(
    folder: Path, tensors: Mapping[str, npt.NDArray[np.generic]], num_shards: int
) -> None:
    """Write ``tensors`` as one file, or dealt out to shards with an index."""
    metadata = {"format": "pt"}
    if num_shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata)
        return
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = dict(list(tensors.items())[shard::num_shards])
        save_file(part, folder / name, metadata)
        weight_map |= dict.fromkeys(part, name)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def byte_tokenizer() -> Tokenizer:
    """A tokenizer with one token per byte and the special tokens of ChatML behind them."""
    # In the order of the alphabet's characters, not of the bytes: any fixed order will do.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _copy_demo_tokenizer(folder: Path) -> None:
    path = demo_model_path()
    vocab = build_vocab(read_gguf_header(path).metadata, path)
    _write_tokenizer(folder, vocab.tokenizer, vocab.special_tokens, vocab.chat_template)


def _write_tokenizer(
    folder: Path,
    tokenizer: Tokenizer,
    special_tokens: Mapping[str, str],
    chat_template: str | None,
) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_tokens,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model-type", choices=MODEL_TYPES, default="llama")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--intermediate-size", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--vocab-size", type=int, default=TINY_VOCAB_SIZE)
    parser.add_argument("--context-len", type=int, default=512)
    parser.add_argument("--rope", choices=ROPE_VARIANTS, default="default")
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--attention-bias", action="store_true")
    parser.add_argument("--mlp-bias", action="store_true")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--tokenizer", choices=("none", "bytes", "demo"), default="bytes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = make_tiny(
        args.folder,
        args.model_type,
        rope=args.rope,
        num_shards=args.shards,
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        seed=args.seed,
        num_hidden_layers=args.layers,
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        vocab_size=args.vocab_size,
        max_position_embeddings=args.context_len,
        tie_word_embeddings=args.tied,
        # a model type that has no such key takes only what was asked for
        **({"attention_bias": True} if args.attention_bias else {}),
        **({"mlp_bias": True} if args.mlp_bias else {}),
    )
    print(folder)


if __name__ == "__main__":
    main()
