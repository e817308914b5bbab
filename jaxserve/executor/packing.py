"""One i32 vector carries all of a step's inputs: one transfer instead of two dozen.

Floats and unsigned words travel as their bits.  ``pack`` runs on the host, ``unpack`` in the
trace; both read the same table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax import lax

from jaxserve.batch import Bucket, Mode, StepInputs
from jaxserve.executor.sampling import NUM_FIELDS, NUM_FLAGS, PackedSampling, pack_sampling


@dataclass(frozen=True, slots=True)
class DeviceInputs:
    """``StepInputs`` on the device, inside the trace."""

    token_ids: jax.Array  # i32[T]; empty in DECODE
    positions: jax.Array  # i32[T]
    write_slots: jax.Array  # i32[T]
    page_table: jax.Array  # i32[B, W]
    kv_lens: jax.Array  # i32[B]
    q_starts: jax.Array  # i32[B + 1]
    row_slots: jax.Array  # i32[B]
    sampling: PackedSampling


_INPUT_SHAPES: dict[str, Callable[[Bucket], tuple[int, ...]]] = {
    "token_ids": lambda b: (b.num_tokens if b.mode is Mode.EXTEND else 0,),
    "positions": lambda b: (b.num_tokens,),
    "write_slots": lambda b: (b.num_tokens,),
    "page_table": lambda b: (b.num_rows, b.pages_per_row),
    "kv_lens": lambda b: (b.num_rows,),
    "q_starts": lambda b: (b.num_rows + 1,),
    "row_slots": lambda b: (b.num_rows,),
}
_SAMPLING_SHAPES: dict[str, Callable[[Bucket], tuple[int, ...]]] = {
    "rows": lambda b: (NUM_FIELDS, b.num_rows),
    "flags": lambda b: (NUM_FLAGS,),
}


def packed_len(bucket: Bucket) -> int:
    """Number of i32 of a step of this shape."""
    shapes = (*_INPUT_SHAPES.values(), *_SAMPLING_SHAPES.values())
    return sum(_size(shape(bucket)) for shape in shapes)


def pack(inputs: StepInputs) -> np.ndarray:
    """``i32[packed_len]``, a new array each time: the device may go on reading the last one."""
    bucket = inputs.bucket
    # in order of _INPUT_SHAPES: getattr by a computed name costs more than the copy
    sampling = pack_sampling(inputs.sampling)
    parts = [
        inputs.token_ids if bucket.mode is Mode.EXTEND else inputs.token_ids[:0],
        inputs.positions,
        inputs.write_slots,
        inputs.page_table.reshape(-1),
        inputs.kv_lens,
        inputs.q_starts,
        inputs.row_slots,
        np.asarray(sampling.rows).reshape(-1),
        np.asarray(sampling.flags),
    ]
    return np.concatenate(parts, dtype=np.int32, casting="no")


def unpack(packed: jax.Array, bucket: Bucket) -> DeviceInputs:
    """Undo ``pack`` inside a trace; every slice is static."""
    offset = 0

    def take(shape: tuple[int, ...]) -> jax.Array:
        nonlocal offset
        start, offset = offset, offset + _size(shape)
        return lax.slice(packed, (start,), (offset,)).reshape(shape)

    inputs = {name: take(shape(bucket)) for name, shape in _INPUT_SHAPES.items()}
    sampling = {name: take(shape(bucket)) for name, shape in _SAMPLING_SHAPES.items()}
    return DeviceInputs(**inputs, sampling=PackedSampling(**sampling))


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
