"""What a checkpoint is: the fields of its config.json that change what is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from jaxserve.errors import ConfigError
from jaxserve.json_fields import Fields

HIDDEN_ACTS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
CHECKPOINT_DTYPES = ("float32", "float16", "bfloat16")

_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
_PRETRAINED_LEN_ROPE_TYPES = ("yarn", "llama3", "longrope")
_ROPE_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
_ROPE_KEYS = (
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"),
    *("low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow"),
    *("mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor"),
    *("partial_rotary_factor", "finetuned"),
)
# Keys that change the computation and that no model here reads: only these values mean "off".
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "quantization_config": (None,),
    "pretraining_tp": (None, 0, 1),
    "partial_rotary_factor": (None, 1),
    "sliding_window": (None,),
    "rope_interleaved": (None, False),
    "no_rope_layers": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "use_qk_norm": (None, False),
    "qk_norm": (None, False),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "logits_scaling": (None, 1),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}
_REMEDY = {
    "quantization_config": "use the unquantized checkpoint, or a .gguf file of this model",
    "sliding_window": "use a checkpoint with full attention",
    "use_sliding_window": "use a checkpoint with full attention",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What the name of a model type says, and the defaults of its config in transformers."""

    architecture: str
    num_kv_heads: int | None = None  # None = as many as query heads
    head_dim: int | None = None  # None = hidden_size / num_heads
    eos_token_ids: tuple[int, ...] = ()
    bos_token_ids: tuple[int, ...] = ()
    biases: tuple[bool, bool] | None = None  # of q, k, v and of out; None = attention_bias says
    neutral: Mapping[str, tuple[object, ...]] = field(default_factory=lambda: _NEUTRAL)


# A Qwen config always has a sliding_window, which counts only if use_sliding_window says so.
_QWEN_NEUTRAL = {
    **{key: values for key, values in _NEUTRAL.items() if key != "sliding_window"},
    **dict.fromkeys(("use_sliding_window", "use_mrope", "mlp_bias"), (None, False)),
}
_FAMILIES = {
    "llama": _Family(architecture="LlamaForCausalLM", eos_token_ids=(2,), bos_token_ids=(1,)),
    "qwen2": _Family(
        architecture="Qwen2ForCausalLM",
        num_kv_heads=32,
        biases=(True, False),
        neutral=_QWEN_NEUTRAL,
    ),
    "qwen3": _Family(
        architecture="Qwen3ForCausalLM", num_kv_heads=32, head_dim=128, neutral=_QWEN_NEUTRAL
    ),
}
MODEL_TYPES = tuple(_FAMILIES)


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How RoPE frequencies are stretched.  ``type`` is one of the names that HF configs use.

    The fields a type does not use keep their neutral values.  Two types depend on the length of
    the sequence in transformers, which a cache shared between sequences cannot follow; here they
    depend on the context only:

    * ``dynamic`` stretches beyond ``original_context_len``, which is the checkpoint's
      max_position_embeddings and thus the longest context: inside it, it equals no scaling.
    * ``longrope`` takes ``long_factor`` where the served context is longer than
      ``original_context_len`` and ``short_factor`` otherwise, whatever a sequence's own length.
    """

    type: str  # "linear" | "dynamic" | "yarn" | "llama3" | "longrope"
    factor: float = 1.0
    original_context_len: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    attention_factor: float | None = None  # yarn, longrope
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn
    short_factor: tuple[float, ...] = ()  # longrope, [head_dim / 2]
    long_factor: tuple[float, ...] = ()  # longrope, [head_dim / 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Static description of a decoder-only transformer.  Hashable: it shapes traces."""

    model_type: str
    architectures: tuple[str, ...]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    context_len: int
    tie_word_embeddings: bool
    qkv_bias: bool
    out_bias: bool  # of attention's output projection
    mlp_bias: bool
    hidden_act: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    dtype: str  # what the checkpoint is stored in

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, object]) -> Self:
        """Read the dict of a config.json, as transformers 4 or 5 writes it.

        Keys that transformers gives a default take the same default; those without which the
        model cannot be told (sizes, context, norm epsilon) are required.

        Raises:
            ConfigError: an unknown model type, activation or RoPE type, every missing or
                mistyped key (named together), or a key that would change the computation and
                that is not implemented.
        """
        model_type = hf_config.get("model_type")
        if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
            raise ConfigError(
                f"config.json: model_type {model_type!r} is not supported; supported: "
                f"{', '.join(MODEL_TYPES)}. Choose a checkpoint of one of these"
            )
        family = _FAMILIES[model_type]
        _check_neutral(hf_config, family.neutral)
        fields = Fields(hf_config, "config.json")
        num_heads = fields.integer("num_attention_heads")
        hidden_size = fields.integer("hidden_size")
        context_len = fields.integer("max_position_embeddings")
        head_dim = fields.integer("head_dim", family.head_dim or max(hidden_size // num_heads, 1))
        bias = fields.flag("attention_bias", False)
        qkv_bias, out_bias = family.biases or (bias, bias)
        rope, rope_theta = _rope_fields(fields)
        config = cls(
            model_type=model_type,
            architectures=fields.names("architectures", (family.architecture,)),
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size"),
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=fields.integer("num_key_value_heads", family.num_kv_heads or num_heads),
            head_dim=head_dim,
            rms_norm_eps=fields.number("rms_norm_eps"),
            rope_theta=rope_theta,
            rope_scaling=_rope_scaling(rope, fields, context_len, head_dim),
            context_len=context_len,
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            mlp_bias=fields.flag("mlp_bias", False),
            hidden_act=fields.choice("hidden_act", "silu", HIDDEN_ACTS),
            eos_token_ids=fields.token_ids("eos_token_id", family.eos_token_ids),
            bos_token_id=next(iter(fields.token_ids("bos_token_id", family.bos_token_ids)), None),
            dtype=_dtype(fields),
        )
        fields.raise_problems()
        _check_shapes(config, hf_config, family)
        return config


def _check_neutral(
    hf_config: Mapping[str, object], neutral_values: Mapping[str, tuple[object, ...]]
) -> None:
    problems = []
    for key, neutral in neutral_values.items():
        value = hf_config.get(key)
        if key == "sliding_window" and hf_config.get("use_sliding_window") is False:
            continue
        if value not in neutral:
            remedy = _REMEDY.get(key, "choose a checkpoint without it")
            problems.append(f"{key} = {value!r} is not supported; {remedy}")
    layer_types = hf_config.get("layer_types") or ()
    if isinstance(layer_types, list) and set(map(str, layer_types)) - {"full_attention"}:
        problems.append("layer_types other than full_attention are not supported")
    if problems:
        raise ConfigError("config.json: " + "; ".join(problems))


def _check_shapes(config: ModelConfig, hf_config: Mapping[str, object], family: _Family) -> None:
    problems = []
    if family.architecture not in config.architectures:
        problems.append(
            f"architectures {list(config.architectures)} are not supported; supported: "
            f"{family.architecture}"
        )
    has_head_dim = hf_config.get("head_dim") is not None or family.head_dim is not None
    if not has_head_dim and config.hidden_size % config.num_heads:
        problems.append(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_heads}, and there is no head_dim"
        )
    elif config.head_dim % 2:
        problems.append(f"head_dim {config.head_dim} is odd, RoPE needs an even one")
    if config.num_heads % config.num_kv_heads:
        problems.append(
            f"num_attention_heads {config.num_heads} is not a multiple of num_key_value_heads "
            f"{config.num_kv_heads}"
        )
    if problems:
        raise ConfigError("config.json: " + "; ".join(problems))


def _dtype(fields: Fields) -> str:
    # transformers 5 renamed the key; both spell either "bfloat16" or "torch.bfloat16".
    key = "dtype" if "dtype" in fields.values else "torch_dtype"
    return fields.choice(key, "float32", CHECKPOINT_DTYPES, prefix="torch.")


def _rope_fields(fields: Fields) -> tuple[Fields, float]:
    """The RoPE section (transformers 5: rope_parameters, 4: rope_scaling) and the base."""
    key = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
    section = fields.values.get(key) or {}
    if not isinstance(section, Mapping):
        fields.wrong(key, section, "an object")
        section = {}
    rope = Fields(section, f"config.json: {key}", fields.problems)
    for name in sorted(set(section).difference(_ROPE_KEYS)):
        rope.add(f"{name!r} is not known; remove it if it has no effect")
    if section.get("partial_rotary_factor") not in (None, 1):
        rope.wrong("partial_rotary_factor", section["partial_rotary_factor"], "1 (full rotation)")
    has_own_base = section.get("rope_theta") is not None
    return rope, (rope if has_own_base else fields).number("rope_theta", 10000.0)


def _rope_scaling(
    rope: Fields, fields: Fields, context_len: int, head_dim: int
) -> RopeScaling | None:
    key = "rope_type" if rope.values.get("rope_type") is not None else "type"
    rope_type = rope.choice(key, "default", _ROPE_TYPES)
    if rope_type == "default":
        return None
    original_len = context_len
    if rope_type in _PRETRAINED_LEN_ROPE_TYPES:
        name = "original_max_position_embeddings"
        original_len = rope.integer(name, context_len)
        # transformers lets the top-level key win over the one of the section.
        original_len = fields.integer(name, original_len)
    for name in _ROPE_REQUIRED[rope_type]:
        rope.require(name)
    scaling = RopeScaling(
        type=rope_type,
        factor=rope.number("factor", context_len / original_len),
        original_context_len=original_len,
        low_freq_factor=rope.number("low_freq_factor", 1.0),
        high_freq_factor=rope.number("high_freq_factor", 4.0),
        attention_factor=rope.optional_number("attention_factor"),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
        short_factor=rope.numbers("short_factor"),
        long_factor=rope.numbers("long_factor"),
    )
    for name in ("short_factor", "long_factor"):
        factors = rope.numbers(name)
        if factors and len(factors) != head_dim // 2:
            rope.wrong(name, f"{len(factors)} numbers", f"head_dim / 2 = {head_dim // 2} numbers")
    return scaling
