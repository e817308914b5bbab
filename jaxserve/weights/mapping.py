"""Which tensors of a checkpoint make up which of our parameters.

The rules are data.  They are strict both ways: a tensor that no rule asks for and a rule whose
tensor is not there are errors, and one error names them all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxserve.errors import WeightLoadError
from jaxserve.model_config import ModelConfig
from jaxserve.shard_plan import ShardPlan

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
QWEN3_RULES = (
    *LLAMA_RULES,
    Rule("layers.{i}.attn.qk_norm.q.scale", ("model.layers.{i}.self_attn.q_norm.weight",)),
    Rule("layers.{i}.attn.qk_norm.k.scale", ("model.layers.{i}.self_attn.k_norm.weight",)),
)
RULES: Mapping[str, Sequence[Rule]] = {
    "llama": LLAMA_RULES,
    "qwen2": LLAMA_RULES,
    "qwen3": QWEN3_RULES,
}


@dataclass(frozen=True, slots=True)
class Run:
    """``[start, stop)`` of a checkpoint tensor, which begins at ``target`` in our parameter."""

    start: int
    stop: int
    target: int


@dataclass(frozen=True, slots=True)
class Part:
    """What one checkpoint tensor of ``size`` fills in our parameter."""

    source: str
    size: int
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Assembly:
    """How one of our parameters is put together along ``axis``; what no run fills is zero."""

    axis: int
    parts: tuple[Part, ...]

    @property
    def num_filled(self) -> int:
        """Rows (columns where axis is 1) that come from the checkpoint."""
        return sum(run.stop - run.start for part in self.parts for run in part.runs)


def layout(
    available: Mapping[str, Shape],
    config: ModelConfig,
    plan: ShardPlan,
    expected: Mapping[str, Shape],
    where: str,
) -> dict[str, Assembly]:
    """Match the tensors of a checkpoint to the parameters of the model.

    Args:
        available: Hugging Face name → shape, of every tensor in the checkpoint.
        config: sizes of the parts of fused parameters.
        plan: the order of heads and halves in them: what is one shard's lies together.
        expected: our path → shape over all shards, of every parameter of the model.
        where: names the checkpoint in errors.

    Returns:
        Our path → how it is put together.

    Raises:
        WeightLoadError: missing or unexpected tensors or wrong shapes; names all of them.
    """
    assemblies = _assemblies(config, plan, expected)
    unmapped = sorted(set(expected) - set(assemblies))
    if unmapped:
        raise ValueError(f"no rule fills {', '.join(unmapped)} of {config.model_type}")
    wanted = {
        part.source: tuple(
            part.size if axis == assembly.axis else size for axis, size in enumerate(expected[path])
        )
        for path, assembly in assemblies.items()
        for part in assembly.parts
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
            f"biases: qkv={config.qkv_bias}, out={config.out_bias}, mlp={config.mlp_bias}):\n"
            + "\n".join(problems)
            + "\nUse the config and the tensors of the same checkpoint, all of its shards"
        )
    return assemblies


def _assemblies(
    config: ModelConfig, plan: ShardPlan, expected: Mapping[str, Shape]
) -> dict[str, Assembly]:
    assemblies: dict[str, Assembly] = {}
    for rule in RULES[config.model_type]:
        axis, parts = _divided(rule.target, config, plan)
        layers = range(config.num_layers) if "{i}" in rule.target else (0,)
        for layer in layers:
            path = rule.target.format(i=layer)
            if path in expected:
                size = expected[path][axis]
                sources = (source.format(i=layer) for source in rule.sources)
                assemblies[path] = Assembly(
                    axis,
                    tuple(
                        Part(source, *part)
                        for source, part in zip(
                            sources, parts or [(size, (Run(0, size, 0),))], strict=True
                        )
                    ),
                )
    return assemblies


def _divided(
    target: str, config: ModelConfig, plan: ShardPlan
) -> tuple[int, list[tuple[int, tuple[Run, ...]]]]:
    """Axis, and size and runs of each source, of a parameter whose order depends on the plan."""
    head_dim, ffn = config.head_dim, plan.ffn
    q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
    queries = [(heads[0] * head_dim, len(heads) * head_dim) for heads in plan.query_heads]
    keys = [(heads[0] * head_dim, len(heads) * head_dim) for heads in plan.kv_heads]
    q_space, kv_space = plan.num_heads * head_dim, plan.num_kv_heads * head_dim
    if ".qkv." in target:
        stride = q_space + 2 * kv_space
        return 0, [
            (q_size, _runs(queries, 0, stride)),
            (kv_size, _runs(keys, q_space, stride)),
            (kv_size, _runs(keys, q_space + kv_space, stride)),
        ]
    if target.endswith(".attn.out.kernel"):
        return 1, [(q_size, _runs(queries, 0, q_space))]
    if ".gate_up." in target:
        rows = [(shard * ffn, ffn) for shard in range(plan.num_shards)]
        halves = (_runs(rows, 0, 2 * ffn), _runs(rows, ffn, 2 * ffn))
        return 0, [(config.intermediate_size, half) for half in halves]
    return 0, []


def _runs(pieces: Sequence[tuple[int, int]], offset: int, stride: int) -> tuple[Run, ...]:
    """Piece s, given as start and length, goes to ``s * stride + offset``."""
    return tuple(
        Run(start, start + length, shard * stride + offset)
        for shard, (start, length) in enumerate(pieces)
    )


def _is_tolerated(name: str, config: ModelConfig) -> bool:
    is_tied_head = name == "lm_head.weight" and config.tie_word_embeddings
    return is_tied_head or _TOLERATED.search(name) is not None


def _listed(title: str, names: list[str]) -> list[str]:
    return [f"  {title} ({len(names)}): " + ", ".join(names)] if names else []
