"""Which tensors of a checkpoint make up which of our parameters.

The rules are data.  They are strict both ways: a tensor that no rule asks for and a rule whose
tensor is not there are errors, and one error names them all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxserve.errors import WeightLoadError
from jaxserve.model_config import ModelConfig

Shape = tuple[int, ...]

# Old transformers releases stored this buffer; it is computed from the config.
_TOLERATED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")


@dataclass(frozen=True, slots=True)
class Rule:
    """``target`` (ours) is the concatenation of ``sources`` (Hugging Face's) along axis 0.

    ``{i}`` stands for the layer.  A rule whose target the model does not expect is not used, so
    that biases and the untied head need no condition here.
    """

    target: str
    sources: tuple[str, ...]


_QKV = tuple(f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv")
_GATE_UP = tuple(f"model.layers.{{i}}.mlp.{part}_proj" for part in ("gate", "up"))


def _linear(target: str, *modules: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{target}.kernel", tuple(f"{module}.weight" for module in modules)),
        Rule(f"{target}.bias", tuple(f"{module}.bias" for module in modules)),
    )


LLAMA_RULES = (
    Rule("embed.embedding", ("model.embed_tokens.weight",)),
    Rule("layers.{i}.input_norm.scale", ("model.layers.{i}.input_layernorm.weight",)),
    *_linear("layers.{i}.attn.qkv", *_QKV),
    *_linear("layers.{i}.attn.out", "model.layers.{i}.self_attn.o_proj"),
    Rule("layers.{i}.post_attn_norm.scale", ("model.layers.{i}.post_attention_layernorm.weight",)),
    *_linear("layers.{i}.mlp.gate_up", *_GATE_UP),
    *_linear("layers.{i}.mlp.down", "model.layers.{i}.mlp.down_proj"),
    Rule("final_norm.scale", ("model.norm.weight",)),
    Rule("lm_head.kernel", ("lm_head.weight",)),
)
RULES: Mapping[str, Sequence[Rule]] = {"llama": LLAMA_RULES}


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint tensor and the rows ``[start, stop)`` that it fills in our parameter."""

    source: str
    start: int
    stop: int


def layout(
    available: Mapping[str, Shape], config: ModelConfig, expected: Mapping[str, Shape], where: str
) -> dict[str, tuple[Part, ...]]:
    """Match the tensors of a checkpoint to the parameters of the model.

    Args:
        available: Hugging Face name → shape, of every tensor in the checkpoint.
        config: sizes of the parts of fused parameters.
        expected: our path → shape, of every parameter of the model.
        where: names the checkpoint in errors.

    Returns:
        Our path → its parts, in row order, covering all rows.

    Raises:
        WeightLoadError: missing or unexpected tensors or wrong shapes; names all of them.
    """
    parts = _parts(config, expected)
    unmapped = sorted(set(expected) - set(parts))
    if unmapped:
        raise ValueError(f"no rule fills {', '.join(unmapped)} of {config.model_type}")
    wanted = {
        part.source: (part.stop - part.start, *expected[path][1:])
        for path, fused in parts.items()
        for part in fused
    }
    missing = sorted(set(wanted) - set(available))
    unexpected = sorted(
        name for name in set(available) - set(wanted) if not _is_tolerated(name, config)
    )
    misshapen = sorted(
        f"{name} is {list(available[name])}, {list(shape)} is needed"
        for name, shape in wanted.items()
        if name in available and available[name] != shape
    )
    if missing or unexpected or misshapen:
        problems = [
            *_listed("missing tensors", missing),
            *_listed("unexpected tensors", unexpected),
            *_listed("wrong shapes", misshapen),
        ]
        raise WeightLoadError(
            f"the tensors of {where} do not fit its config ({config.model_type}, "
            f"{config.num_layers} layers, tie_word_embeddings={config.tie_word_embeddings}, "
            f"attention_bias={config.attention_bias}, mlp_bias={config.mlp_bias}):\n"
            + "\n".join(problems)
            + "\nUse the config and the tensors of the same checkpoint, all of its shards"
        )
    return parts


def _parts(config: ModelConfig, expected: Mapping[str, Shape]) -> dict[str, tuple[Part, ...]]:
    parts: dict[str, tuple[Part, ...]] = {}
    for rule in RULES[config.model_type]:
        layers = range(config.num_layers) if "{i}" in rule.target else (0,)
        for layer in layers:
            path = rule.target.format(i=layer)
            if path in expected:
                rows = _part_rows(rule.target, config) or (expected[path][0],)
                sources = (source.format(i=layer) for source in rule.sources)
                parts[path] = _stack(tuple(sources), rows)
    return parts


def _part_rows(target: str, config: ModelConfig) -> tuple[int, ...]:
    """Rows of each part of a fused parameter; empty for one that has a single part."""
    if ".qkv." in target:
        kv_rows = config.num_kv_heads * config.head_dim
        return (config.num_heads * config.head_dim, kv_rows, kv_rows)
    if ".gate_up." in target:
        return (config.intermediate_size, config.intermediate_size)
    return ()


def _stack(sources: tuple[str, ...], rows: tuple[int, ...]) -> tuple[Part, ...]:
    parts = []
    start = 0
    for source, num_rows in zip(sources, rows, strict=True):
        parts.append(Part(source, start, start + num_rows))
        start += num_rows
    return tuple(parts)


def _is_tolerated(name: str, config: ModelConfig) -> bool:
    is_tied_head = name == "lm_head.weight" and config.tie_word_embeddings
    return is_tied_head or _TOLERATED.search(name) is not None


def _listed(title: str, names: list[str]) -> list[str]:
    return [f"  {title} ({len(names)}): " + ", ".join(names)] if names else []
