"""Write the model folders that every engine of a comparison can load.

    python benchmarks/peers/export_hf.py --gguf MODEL.gguf --output DIR
    python benchmarks/peers/export_hf.py --gguf MODEL.gguf --output DIR --random-layers 2

The first form dequantises a Llama GGUF file into a Hugging Face folder (config, safetensors,
tokenizer).  The second keeps the tokenizer and writes a small random Llama instead: a model that
costs next to nothing, so that what is measured is the host.

It reads the file by itself, without jaxserve: a mistake in our own loader must not reach the
peers we are compared with.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL_TOKEN = 3  # gguf's token type of special tokens
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class Metadata:
    """The key-value part of a gguf file."""

    def __init__(self, reader: GGUFReader) -> None:
        self._fields = reader.fields

    def __getitem__(self, key: str) -> Any:
        if key not in self._fields:
            raise SystemExit(f"the gguf file has no {key}; only Llama files with a GPT-2 BPE work")
        return self._fields[key].contents()


def llama_config(meta: Metadata, *, is_tied: bool) -> dict[str, Any]:
    """Return the config.json that describes the gguf file's model."""
    num_heads = meta["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.embedding_length"] // num_heads,
        "max_position_embeddings": meta["llama.context_length"],
        # the file holds f32: 9.999999747378752e-06 was written as 1e-05
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": meta["llama.rope.freq_base"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": is_tied,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def random_config(base: dict[str, Any], num_layers: int, width: int) -> dict[str, Any]:
    """Shrink ``base``; heads stay 32 wide, the smallest that every peer's attention takes."""
    heads = max(1, width // 32)
    return base | {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 32,
        "tie_word_embeddings": True,
    }


def unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo gguf's order of query and key rows.

    ``weight`` [N*H, D]: gguf keeps the two halves of a rotary pair side by side, Hugging Face
    keeps them H/2 rows apart.
    """
    rows, width = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, width)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, width))


def gguf_weights(reader: GGUFReader, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return every tensor of the file in f32 under its Hugging Face name."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for tensor in reader.tensors:
        value = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        if tensor.name in TOP_TENSORS:
            weights[TOP_TENSORS[tensor.name]] = value
            continue
        _, layer, kind, suffix = tensor.name.split(".")
        if kind in heads:
            value = unpermute(value, heads[kind])
        weights[f"model.layers.{layer}.{LAYER_TENSORS[kind]}.{suffix}"] = value
    return weights


def random_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Return normal(0, 0.02) weights of ``config`` with tied embeddings; norms are ones."""
    rng = np.random.default_rng(seed)
    width, ffn = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (width,),
                "self_attn.q_proj": (query, width),
                "self_attn.k_proj": (key, width),
                "self_attn.v_proj": (key, width),
                "self_attn.o_proj": (width, query),
                "post_attention_layernorm": (width,),
                "mlp.gate_proj": (ffn, width),
                "mlp.up_proj": (ffn, width),
                "mlp.down_proj": (width, ffn),
            }.items()
        }
    return {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else rng.normal(0.0, 0.02, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def build_tokenizer(meta: Metadata) -> tuple[Tokenizer, list[str]]:
    """Return the byte-level BPE of the file and its special tokens."""
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(line.split(" ")) for line in meta["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    split = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if meta["tokenizer.ggml.pre"] == "smollm":
        split.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    types = meta["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return tokenizer, special


def write_tokenizer(meta: Metadata, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json (with the chat template) to ``folder``."""
    tokenizer, special = build_tokenizer(meta)
    tokens = meta["tokenizer.ggml.tokens"]
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": special,
        "chat_template": meta["tokenizer.chat_template"],
    }
    config |= {
        f"{ours}_token": tokens[meta[f"tokenizer.ggml.{theirs}_token_id"]]
        for ours, theirs in names.items()
    }
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a Hugging Face folder from a gguf file.")
    parser.add_argument("--gguf", type=Path, required=True, help="a Llama .gguf file")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--random-layers", type=int, help="write a random Llama of so many layers")
    parser.add_argument("--random-width", type=int, default=64, help="its width, a multiple of 32")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    args = parser.parse_args()
    reader = GGUFReader(args.gguf)
    meta = Metadata(reader)
    is_tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = llama_config(meta, is_tied=is_tied)
    if args.random_layers is None:
        weights = gguf_weights(reader, config)
    else:
        config = random_config(config, args.random_layers, args.random_width)
        weights = random_weights(config, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.output / "model.safetensors", metadata={"format": "pt"})
    write_json(args.output / "config.json", config)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(args.output / "generation_config.json", generation)
    write_tokenizer(meta, args.output)
    print(f"{args.output}: {sum(value.size for value in weights.values()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
