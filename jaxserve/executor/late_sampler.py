"""Rows sampled after their step was launched: while it runs, the host finds out what they may be.

What a grammar allows next depends on the token before, which the host sees only when the step
before is over.  So the step is launched without sampling such rows; the device computes their
logits while the host works out the masks; and then this second program samples them.  The device
never waits as long as the masks take less time than the logits.

Axis letters: B rows of the step, R of a shard, n rows sampled late, V vocabulary,
M = ceil(V / 32) mask words, S slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxserve.batch import PADDING_SLOT, SamplingArrays, StepInputs, TokenMasks
from jaxserve.executor.kv_pool import DeviceState
from jaxserve.executor.sampler import MASK_BITS, Sampled, sample
from jaxserve.executor.sampling import NUM_FIELDS, NUM_FLAGS, PackedSampling, pack_sampling
from jaxserve.executor.sharding import Placement
from jaxserve.executor.slots import SlotTables, record
from jaxserve.executor.warmup import compile_all
from jaxserve.models import RowShards

_FEW_ROWS = 8  # a step of more rows has a program for so many as well: masks are long
_NUM_COLUMNS = 3  # of a row beside its sampling parameters: row, slot, kv_len

Results = tuple[Array, SlotTables, Sampled]  # last_tokens, tables, of all rows of the step


def num_mask_words(vocab_size: int) -> int:
    """M: words of a mask."""
    return -(-vocab_size // MASK_BITS)


def late_row_counts(num_rows: int) -> tuple[int, ...]:
    """For which n there is a program for steps of ``num_rows`` rows, ascending."""
    return (num_rows,) if num_rows <= _FEW_ROWS else (_FEW_ROWS, num_rows)


def pack_late(inputs: StepInputs, masks: TokenMasks, size: int) -> np.ndarray:
    """``i32[size * (3 + F + M) + flags]``: rows, slots, kv_lens, parameters, flags, masks.

    Padding is row B, which is none, and slot 0, and samples nothing.
    """
    count, num_words = masks.bits.shape
    rows = np.full(size, inputs.bucket.num_rows, np.int32)
    rows[:count] = masks.rows
    slots = np.full(size, PADDING_SLOT, np.int32)
    slots[:count] = inputs.row_slots[masks.rows]
    kv_lens = np.zeros(size, np.int32)
    kv_lens[:count] = inputs.kv_lens[masks.rows]
    bits = np.zeros((size, num_words), np.uint32)
    bits[:count] = masks.bits
    sampling = pack_sampling(_taken(inputs.sampling, masks.rows, size))
    parts = (rows, slots, kv_lens, sampling.rows, sampling.flags, bits.view(np.int32))
    return np.concatenate([np.asarray(part).reshape(-1) for part in parts])


def _taken(arrays: SamplingArrays, rows: np.ndarray, size: int) -> SamplingArrays:
    """The parameters of ``rows``, and then of rows that sample nothing."""
    index = np.zeros(size, np.int32)
    index[: len(rows)] = rows
    taken = {field.name: getattr(arrays, field.name)[index] for field in fields(arrays)}
    taken["samples"][len(rows) :] = False
    return SamplingArrays(**taken)


def sample_late(
    shards: RowShards, size: int, num_words: int
) -> Callable[[Array, Sampled, Array, SlotTables, Array], Results]:
    """The program that samples ``size`` rows of a step; donate last_tokens and the tables."""

    def run(
        logits: Array, sampled: Sampled, last_tokens: Array, slots: SlotTables, packed: Array
    ) -> Results:
        """Logits [R, V] and what was sampled, i32[B]; packed is of ``pack_late``.

        Every shard samples as many rows; those that it has not are noise, and not taken from it.
        """
        sizes = (size * _NUM_COLUMNS, size * NUM_FIELDS, NUM_FLAGS, size * num_words)
        columns, fields_, flags, words = lax.split(packed, sizes)
        rows, row_slots, kv_lens = columns.reshape(_NUM_COLUMNS, size)
        sampling = PackedSampling(fields_.reshape(NUM_FIELDS, size), flags)
        late = sample(
            shards.take(logits, rows),
            sampling,
            slots,
            row_slots,
            kv_lens,
            lax.bitcast_convert_type(words, jnp.uint32).reshape(size, num_words),
        )
        late = shards.from_owners(late, rows)
        merged = jax.tree.map(
            lambda early, new: early.at[rows].set(new, mode="drop"), sampled, late
        )
        samples = sampling.unpack().samples
        last_tokens = last_tokens.at[row_slots].set(late.token_ids)
        return last_tokens, record(slots, row_slots, late.token_ids, samples), merged

    return run


def trace_late(
    logits: jax.Array | jax.ShapeDtypeStruct,
    sampled: Sampled,
    state: DeviceState,
    placement: Placement,
    size: int,
) -> jax.stages.Traced:
    """Trace the program that samples ``size`` rows of a step, for lowering it.

    Args:
        logits, sampled: what a step leaves, as shapes: f32[R, V] of each shard, and i32[B].
        state: arrays, or structs with shardings.
    """
    shards = RowShards(placement.plan, sampled.token_ids.shape[0])
    num_words = num_mask_words(state.slots.token_info.shape[1])
    packed_len = size * (_NUM_COLUMNS + NUM_FIELDS + num_words) + NUM_FLAGS
    arguments = (
        placement.row_struct(shards, logits.shape[1], logits.dtype),
        jax.tree.map(lambda x: placement.struct(x.shape, x.dtype), sampled),
        state.last_tokens,
        state.slots,
        placement.struct((packed_len,), jnp.int32),
    )
    function = placement.shard_map(
        sample_late(shards, size, num_words), arguments, lambda _: PartitionSpec()
    )
    return jax.jit(function, donate_argnums=(2, 3)).trace(*arguments)


class LateSampler:
    """Compiles the programs and launches them.

    Args:
        logits, sampled: results of each size of step.
        state: its shapes; nothing of it is kept.
    """

    def __init__(
        self,
        logits: Sequence[jax.ShapeDtypeStruct],
        sampled: Sequence[Sampled],
        state: DeviceState,
        placement: Placement,
        *,
        num_threads: int,
    ) -> None:
        steps = {
            early.token_ids.shape[0]: (spec, early)
            for spec, early in zip(logits, sampled, strict=True)
        }

        def lower(key: tuple[int, int]) -> Any:
            num_rows, size = key
            return trace_late(*steps[num_rows], state, placement, size).lower()

        keys = [(rows, size) for rows in sorted(steps) for size in late_row_counts(rows)]
        self._programs = compile_all(keys, lower, num_threads=num_threads, what="late samplers")

    def launch(
        self,
        logits: Array,
        sampled: Sampled,
        state: DeviceState,
        inputs: StepInputs,
        masks: TokenMasks,
    ) -> Results:
        """Enqueue the sampling of ``masks.rows`` of a step that left ``logits``.

        ``state.last_tokens`` and ``state.slots`` are donated.
        """
        num_rows, count = inputs.bucket.num_rows, len(masks.rows)
        size = next(size for size in late_row_counts(num_rows) if size >= count)
        packed = pack_late(inputs, masks, size)
        program = self._programs[num_rows, size]
        results: Results = program(logits, sampled, state.last_tokens, state.slots, packed)
        return results
