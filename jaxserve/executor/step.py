"""One step as a pure function of arrays: what the runner runs and what tools compile to look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxserve.batch import PADDING_SLOT, Bucket, Mode
from jaxserve.executor.embeds import given_embeds
from jaxserve.executor.kv_pool import DeviceState
from jaxserve.executor.packing import DeviceInputs, packed_len, unpack
from jaxserve.executor.sampler import Sampled, sample
from jaxserve.executor.sharding import Placement
from jaxserve.executor.slots import record
from jaxserve.models import AttnContext, GivenEmbeds, Model, RowShards

Leaf = jax.Array | jax.ShapeDtypeStruct


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step leaves beside the state.  R rows of a shard, T tokens, D width, V vocabulary."""

    sampled: Sampled
    logits: jax.Array  # f32[R, V]; the model's own, of the shard's rows of ``RowShards``
    hidden: jax.Array | None  # [T, D], what logits are made of; of a DECODE step if it keeps_hidden


Step = Callable[[list[jax.Array], DeviceState, jax.Array], tuple[DeviceState, StepOutput]]


def step_function(
    model: Model, bucket: Bucket, attention_backend: str, *, keeps_hidden: bool = False
) -> Step:
    """The step of one bucket: embed → layers → logits of the rows → sample → last_tokens.

    Jit it with the state (argument 1) donated: it is then updated where it lies.

    Args:
        model: what is computed; its leaves are the function's first argument.
        bucket: the static shape.
        attention_backend: implementation of the attention ops.
        keeps_hidden: return hidden states of a DECODE step too.
    """

    def step(
        leaves: list[jax.Array], state: DeviceState, packed: jax.Array
    ) -> tuple[DeviceState, StepOutput]:
        inputs = unpack(packed, bucket)
        is_decode = bucket.mode is Mode.DECODE
        module = model.bind(leaves)
        token_ids, embeds = _tokens(inputs, state, is_decode=is_decode)
        context = AttnContext(
            positions=inputs.positions,
            write_slots=inputs.write_slots,
            page_table=inputs.page_table,
            kv_lens=inputs.kv_lens,
            q_starts=inputs.q_starts,
            is_decode=is_decode,
            implementation=attention_backend,
        )
        hidden, kv = module(token_ids, state.kv, context, embeds)
        last_hidden = hidden
        if not is_decode:
            last = jnp.maximum(inputs.q_starts[1:] - 1, 0)  # [B]; a padding row has no token
            last_hidden = hidden.at[last].get(mode="promise_in_bounds")
        logits = module.logits(last_hidden)
        shards = RowShards(model.plan, bucket.num_rows)
        sampled = shards.everyones(
            sample(
                logits,
                replace(inputs.sampling, rows=shards.mine(inputs.sampling.rows, axis=1)),
                state.slots,
                shards.mine(inputs.row_slots),
                shards.mine(inputs.kv_lens),
            )
        )
        samples = inputs.sampling.unpack().samples
        slots = jnp.where(samples, inputs.row_slots, PADDING_SLOT)
        new_state = DeviceState(
            kv=kv,
            last_tokens=state.last_tokens.at[slots].set(sampled.token_ids),
            slots=record(state.slots, slots, sampled.token_ids, samples),
            embeds=state.embeds,
        )
        kept = None if is_decode and not keeps_hidden else hidden
        return new_state, StepOutput(sampled, logits, kept)

    return step


def _tokens(
    inputs: DeviceInputs, state: DeviceState, *, is_decode: bool
) -> tuple[jax.Array, GivenEmbeds | None]:
    """The ids i32[T] of a step's tokens, and the embeddings that stand in for some of them."""
    token_ids = inputs.token_ids
    slots_read = inputs.row_slots if is_decode else jnp.maximum(~token_ids, 0)
    last_tokens = state.last_tokens.at[slots_read].get(mode="promise_in_bounds")
    if is_decode:
        return last_tokens, None
    token_ids = jnp.where(token_ids < 0, last_tokens, token_ids)
    return (token_ids, None) if state.embeds is None else given_embeds(token_ids, state.embeds)


def trace_step(
    model: Model,
    bucket: Bucket,
    attention_backend: str,
    placement: Placement,
    leaves: Sequence[Leaf],
    state: DeviceState,
    *,
    keeps_hidden: bool = False,
) -> jax.stages.Traced:
    """Trace the jitted step of one bucket, with the state donated, for lowering it.

    Args:
        leaves, state: arrays, or structs with shardings (``Placement.leaf_specs``,
            ``state_specs``): nothing is computed, so that any size can be traced anywhere.
    """
    packed = placement.struct((packed_len(bucket),), jnp.int32)
    whole: Any = PartitionSpec()
    rows: Any = RowShards(model.plan, bucket.num_rows).spec
    arguments = (list(leaves), state, packed)
    step = placement.shard_map(
        step_function(model, bucket, attention_backend, keeps_hidden=keeps_hidden),
        arguments,
        lambda specs: (specs[1], StepOutput(whole, rows, whole)),
    )
    return jax.jit(step, donate_argnums=1).trace(*arguments)
