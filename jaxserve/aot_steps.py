"""The steps of real models for ``python -m pallas_kernels.aot step``: sizes, but no arrays.

Nothing is loaded or computed, so that a model of any size can be looked at on any machine.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxserve.batch import Bucket, Mode
from jaxserve.config import EngineConfig
from jaxserve.errors import ConfigError
from jaxserve.executor.kv_pool import state_specs
from jaxserve.executor.late_sampler import num_mask_words, trace_late
from jaxserve.executor.runner import make_model
from jaxserve.executor.sharding import Placement
from jaxserve.executor.slots import slot_bytes
from jaxserve.executor.step import StepOutput, trace_step
from jaxserve.executor.truncation import MAX_WEIGHT_BYTES
from jaxserve.model_config import ModelConfig
from jaxserve.models import Model, RowShards
from pallas_kernels.aot_step import LATE, StepFacts, StepProgram, StepRequest

PUBLISHED = Path(__file__).parent / "published"
DTYPE = jnp.dtype(jnp.bfloat16)
F32_BYTES = 4


def published_models() -> tuple[str, ...]:
    """Names of the configs that come with the package."""
    return tuple(sorted(path.stem for path in PUBLISHED.glob("*.json")))


def read_config(model: str) -> ModelConfig:
    """The config of a published model by name (case does not matter), or of a config.json.

    Raises:
        ConfigError: neither; the message has the names.
    """
    path = PUBLISHED / f"{model.lower()}.json"
    if not path.is_file():
        path = Path(model)
        path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"no model config {model!r}: give one of {', '.join(published_models())}, "
            "or the path of a config.json"
        )
    return ModelConfig.from_hf(json.loads(path.read_text("utf-8")))


def step_program(request: StepRequest) -> StepProgram:
    """The step that ``request`` names, to be lowered for a described topology.

    Raises:
        ValueError: an unknown model, or one that ``tp_size`` cannot divide; what the tool reports.
    """
    try:
        full = read_config(request.model)
        config = replace(full, num_layers=request.num_layers or full.num_layers)
        model, full_model = _model(config, request), _model(full, request)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    is_late = request.mode == LATE
    mode = Mode.DECODE if is_late else Mode(request.mode)
    bucket = Bucket(mode, request.num_tokens, request.num_rows, request.pages_per_row)

    def lower(devices: Sequence[jax.Device]) -> Any:
        placement = Placement.over(devices, model.plan)
        state = state_specs(
            config,
            placement,
            num_pages=request.num_pages,
            page_size=request.page_size,
            num_slots=_num_slots(request),
            dtype=jnp.dtype(request.kv_dtype),
        )
        leaves = placement.leaf_specs(model)
        traced = trace_step(model, bucket, request.implementation, placement, leaves, state)
        if is_late:
            output: StepOutput = traced.out_info[1]
            traced = trace_late(output.logits, output.sampled, state, placement, request.num_rows)
        return traced.lower(lowering_platforms=("cuda",))

    sizes = _Sizes(config, model, request)
    facts = (sizes.late_facts if is_late else sizes.facts)(full_model.num_bytes)
    return StepProgram(num_devices=request.tp_size, lower=lower, facts=facts)


def _model(config: ModelConfig, request: StepRequest) -> Model:
    engine = EngineConfig(
        context_length=config.context_len, dtype=DTYPE.name, tp_size=request.tp_size
    )
    return make_model(engine, config, "cuda")


def _num_slots(request: StepRequest) -> int:
    return request.num_slots or request.num_rows + 1


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Bytes and FLOPs of one device's share of a step."""

    config: ModelConfig
    model: Model
    request: StepRequest

    def facts(self, full_weight_bytes: int) -> StepFacts:
        """All of them; ``full_weight_bytes`` is of the model with all its layers."""
        matrices = [spec for spec in self.model.specs if len(spec.shape) == 2]
        return StepFacts(
            num_layers=self.config.num_layers,
            kv_bytes=self._kv_bytes,
            state_bytes=self._kv_bytes + self._slot_bytes,
            weight_bytes=self.model.num_bytes,
            full_weight_bytes=full_weight_bytes,
            activation_bytes=self._activation_bytes,
            pool_shape=self.pool_shape,
            big_sizes=frozenset({math.prod(self.pool_shape), *(spec.size for spec in matrices)}),
            flops=self._matrix_flops + self._attention_flops,
            attention_flops=self._attention_flops,
            attention_bytes=self._attention_bytes,
            floor_bytes=self._floor_bytes,
        )

    def late_facts(self, full_weight_bytes: int) -> StepFacts:
        """Of a program that samples the rows of a step: it has no layers and reads no weights."""
        request, vocab_size = self.request, self.config.vocab_size
        masks = F32_BYTES * request.num_rows * num_mask_words(vocab_size)
        logits = F32_BYTES * request.num_rows * vocab_size
        return StepFacts(
            num_layers=0,
            kv_bytes=0,
            state_bytes=self._slot_bytes,
            weight_bytes=self.model.num_bytes,
            full_weight_bytes=full_weight_bytes,
            # As the masks leave them, the part that is truncated, and the masks bit by bit.
            activation_bytes=logits + min(logits, MAX_WEIGHT_BYTES) + logits // F32_BYTES + masks,
            pool_shape=(),
            big_sizes=frozenset({_num_slots(request) * vocab_size}),  # a table of the slots
            flops=0,
            attention_flops=0,
            attention_bytes=0,
            floor_bytes=logits + masks,
        )

    @property
    def pool_shape(self) -> tuple[int, ...]:
        """``[P, K, page_size, H]`` of one layer."""
        request = self.request
        heads = self.model.plan.num_kv_heads
        return (request.num_pages, heads, request.page_size, self.config.head_dim)

    @property
    def _kv_bytes(self) -> int:
        """Of all pools."""
        return 2 * self.config.num_layers * math.prod(self.pool_shape) * self._kv_itemsize

    @property
    def _kv_itemsize(self) -> int:
        return jnp.dtype(self.request.kv_dtype).itemsize

    @property
    def _slot_bytes(self) -> int:
        """Of the tables with a row per slot."""
        return _num_slots(self.request) * slot_bytes(self.config.vocab_size)

    @property
    def _kv_token_bytes(self) -> int:
        """Of one token's keys and values in all layers."""
        heads = self.model.plan.num_kv_heads
        return 2 * self.config.num_layers * heads * self.config.head_dim * self._kv_itemsize

    @property
    def _activation_bytes(self) -> int:
        """What a sampler and a layer hold at once.

        The device's rows of logits as penalties leave them (as they are they are a result) and
        the part of them that is truncated at a time; the residual stream beside gate, up and
        their product or beside three arrays of its own width (what is added, the sum, the norm of
        that); the angles of the positions.
        """
        request, config = self.request, self.config
        rows = RowShards(self.model.plan, request.num_rows).rows_per_shard
        logits = F32_BYTES * rows * config.vocab_size
        sampler = logits + min(logits, MAX_WEIGHT_BYTES)
        width = 3 * max(self.model.plan.ffn, config.hidden_size) + config.hidden_size
        token_bytes = width * DTYPE.itemsize + config.head_dim * F32_BYTES
        return sampler + request.num_tokens * token_bytes

    @property
    def _matrix_flops(self) -> int:
        total = 0
        for path, spec in self.model.expected.items():
            is_head = path.startswith("lm_head" if self._has_lm_head else "embed")
            if len(spec.shape) == 2 and (is_head or not path.startswith("embed")):
                rows = self.request.num_rows if is_head else self.request.num_tokens
                total += 2 * rows * spec.size
        return total

    @property
    def _has_lm_head(self) -> bool:
        return any(path.startswith("lm_head") for path in self.model.paths)

    @property
    def _pairs(self) -> int:
        """Query-key pairs that attention looks at; rows share the tokens evenly."""
        request = self.request
        queries = request.num_tokens // request.num_rows
        before = max(0, request.context - queries)
        return request.num_rows * (queries * before + queries * (queries + 1) // 2)

    @property
    def _attention_flops(self) -> int:
        width = self.model.plan.num_heads * self.config.head_dim
        return 4 * self.config.num_layers * width * self._pairs

    @property
    def _attention_bytes(self) -> int:
        return self.request.num_rows * self.request.context * self._kv_token_bytes

    @property
    def _floor_bytes(self) -> int:
        """Every weight once (of a table that is only looked up, the rows), keys and values once."""
        weights = self.model.num_bytes
        if self._has_lm_head:
            table = self.model.expected["embed.embedding"]
            looked_up = self.request.num_tokens * self.config.hidden_size
            weights -= max(0, table.size - looked_up) * DTYPE.itemsize
        written = self.request.num_tokens * self._kv_token_bytes
        return weights + self._attention_bytes + written
