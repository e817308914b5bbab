"""The device's state, and how much of its memory becomes KV pages.

``DeviceState`` is the only mutable thing on the device: it is donated into every step and
replaced by what comes out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxserve.config import GIB, EngineConfig
from jaxserve.errors import ConfigError
from jaxserve.executor.sharding import POOL_AXES, Placement
from jaxserve.executor.slots import MAX_LOGPROB_TOKEN_IDS, SlotTables, slot_bytes
from jaxserve.model_config import ModelConfig
from jaxserve.models import BF16_BITS, FP8, FP8_BITS, KVPool
from jaxserve.shard_plan import plan_shards

BITS = {jnp.dtype(jnp.bfloat16): BF16_BITS, FP8: FP8_BITS}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class DeviceState:
    """What one step leaves for the next.  S slots; slot 0 is padding."""

    kv: KVPool
    last_tokens: jax.Array  # i32[S]
    slots: SlotTables
    embeds: jax.Array | None = None  # [T + …, D]; see embeds.py.  None: no request may bring any


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where each device's memory goes.  ``num_pages`` includes the null page."""

    free_bytes: int
    weight_bytes: int
    slot_bytes: int
    bytes_per_token: int
    num_pages: int
    page_size: int

    @property
    def num_tokens(self) -> int:
        """Tokens that sequences and the prefix cache can hold together."""
        return (self.num_pages - 1) * self.page_size

    @property
    def kv_bytes(self) -> int:
        """Size of the pool."""
        return self.num_pages * self.page_size * self.bytes_per_token

    def __str__(self) -> str:
        return (
            f"free {self.free_bytes / GIB:.2f} GiB = weights {self.weight_bytes / GIB:.2f} "
            f"+ slot state {self.slot_bytes / GIB:.2f} + KV {self.kv_bytes / GIB:.2f} "
            f"({self.num_tokens} tokens of {self.bytes_per_token} bytes) + the rest left free"
        )


def kv_dtype(config: EngineConfig, platform: str) -> jnp.dtype:
    """What keys and values are stored as: the dtype of the weights, or e4m3 where asked for.

    On CPU bf16 and e4m3 are stored as their bits, which XLA:CPU can write in place.
    """
    dtype = FP8 if config.kv_cache_dtype == "fp8_e4m3" else jnp.dtype(config.dtype)
    if platform == "cpu" and dtype in BITS:
        return BITS[dtype]
    return dtype


def plan_memory(
    config: EngineConfig, model: ModelConfig, *, weight_bytes: int, free_bytes: int, platform: str
) -> MemoryPlan:
    """Size the pool: the fraction of the free memory that weights and slot state leave.

    ``--max-total-tokens`` sets the size outright (and may ask for more than the fraction, never
    for more than is free).  There is no use for more than all rows at full context length.
    All bytes are those of one device; under ``--tp-size`` each holds its own kv heads of every
    page.

    Raises:
        ConfigError: not even one sequence of one page fits; the message has the numbers.
    """
    assert config.max_running_requests and config.context_length and config.mem_fraction_static
    num_slots = config.max_running_requests + 1
    all_slot_bytes = num_slots * slot_bytes(model.vocab_size)
    per_token = (
        2 * model.num_layers * plan_shards(model, config.tp_size).num_kv_heads * model.head_dim
        * kv_dtype(config, platform).itemsize
    )  # fmt: skip
    pages_per_row = -(-config.context_length // config.page_size)
    useful_pages = config.max_running_requests * pages_per_row + 1
    page_bytes = per_token * config.page_size
    if config.max_total_tokens is not None:
        num_pages = config.max_total_tokens // config.page_size + 1
        budget = free_bytes - weight_bytes - all_slot_bytes
    else:
        budget = int(free_bytes * config.mem_fraction_static) - weight_bytes - all_slot_bytes
        num_pages = min(useful_pages, _rounded_down(budget // page_bytes, platform))
    if num_pages < 2 or num_pages * page_bytes > budget:
        raise ConfigError(
            f"no room for the KV pool: {free_bytes / GIB:.2f} GiB free, weights take "
            f"{weight_bytes / GIB:.2f}, per-slot state {all_slot_bytes / GIB:.2f}, and "
            f"{max(num_pages, 2) * page_bytes / GIB:.3f} are wanted for keys and values "
            f"({per_token} bytes a token). Raise --mem-fraction-static "
            f"({config.mem_fraction_static}), or lower --max-total-tokens or "
            "--max-running-requests, or free memory"
        )
    return MemoryPlan(
        free_bytes=free_bytes,
        weight_bytes=weight_bytes,
        slot_bytes=all_slot_bytes,
        bytes_per_token=per_token,
        num_pages=num_pages,
        page_size=config.page_size,
    )


def _rounded_down(num_pages: int, platform: str) -> int:
    """To few significant bits: a power of two on CPU, 1/32 steps elsewhere.

    The number of pages is in the shape of every program: if it followed the free memory to the
    page, each start would miss the compilation cache of the last.  A host's free memory moves
    by gigabytes between starts, a GPU's hardly at all.
    """
    significant_bits = 1 if platform == "cpu" else 6
    step = 1 << max(0, num_pages.bit_length() - significant_bits)
    return num_pages // step * step


def state_specs(
    model: ModelConfig,
    placement: Placement,
    *,
    num_pages: int,
    page_size: int,
    num_slots: int,
    dtype: jnp.dtype,
) -> DeviceState:
    """The state as structs with shardings: pools divided by kv heads, the rest on every device."""
    struct: Callable[..., Any] = placement.struct  # a struct may stand wherever an array does
    shape = (num_pages, placement.plan.num_kv_heads, page_size, model.head_dim)
    pool = struct(shape, dtype, POOL_AXES)
    table = (num_slots, model.vocab_size)
    return DeviceState(
        kv=KVPool(k=(pool,) * model.num_layers, v=(pool,) * model.num_layers),
        last_tokens=struct((num_slots,), jnp.int32),
        slots=SlotTables(
            token_info=struct(table, jnp.int32),
            logit_bias=struct(table, jnp.float32),
            logprob_ids=struct((num_slots, MAX_LOGPROB_TOKEN_IDS), jnp.int32),
        ),
    )


def make_state(specs: DeviceState) -> DeviceState:
    """Allocate what ``state_specs`` describes: zeros everywhere, each shard on its device."""
    return jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype, device=spec.sharding), specs)
