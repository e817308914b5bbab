"""One i32 vector carries all of a step's inputs: one transfer instead of two dozen.

Floats and unsigned words travel as their bits.  ``pack`` runs on the host, ``unpack`` in the
trace; both read the same table.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxserve.batch import Bucket, Mode, StepInputs
from jaxserve.executor.sampler import Sampling, sampling_from


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
    sampling: Sampling


_INPUT_SHAPES: dict[str, Callable[[Bucket], tuple[int, ...]]] = {
    "token_ids": lambda b: (b.num_tokens if b.mode is Mode.EXTEND else 0,),
    "positions": lambda b: (b.num_tokens,),
    "write_slots": lambda b: (b.num_tokens,),
    "page_table": lambda b: (b.num_rows, b.pages_per_row),
    "kv_lens": lambda b: (b.num_rows,),
    "q_starts": lambda b: (b.num_rows + 1,),
    "row_slots": lambda b: (b.num_rows,),
}
_FLOATS = (
    "temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
)  # fmt: skip
_SAMPLING_FIELDS = tuple(field.name for field in fields(Sampling))


def packed_len(bucket: Bucket) -> int:
    """Number of i32 of a step of this shape."""
    sizes = [_size(shape(bucket)) for shape in _INPUT_SHAPES.values()]
    return sum(sizes) + sum(_size(_sampling_shape(name, bucket)) for name in _SAMPLING_FIELDS)


def pack(inputs: StepInputs) -> np.ndarray:
    """``i32[packed_len]``, a new array each time: the device may go on reading the last one."""
    bucket = inputs.bucket
    # in order of _INPUT_SHAPES: getattr by a computed name costs more than the copy
    parts = [
        inputs.token_ids if bucket.mode is Mode.EXTEND else inputs.token_ids[:0],
        inputs.positions,
        inputs.write_slots,
        inputs.page_table.reshape(-1),
        inputs.kv_lens,
        inputs.q_starts,
        inputs.row_slots,
    ]
    sampling = sampling_from(inputs.sampling)
    for name in _SAMPLING_FIELDS:
        value = np.asarray(getattr(sampling, name))
        if value.dtype == np.float32 or value.dtype == np.uint32:
            parts.append(value.reshape(-1).view(np.int32))
        else:
            parts.append(value.reshape(-1).astype(np.int32, copy=False))
    return np.concatenate(parts, dtype=np.int32, casting="no")


def unpack(packed: jax.Array, bucket: Bucket) -> DeviceInputs:
    """Undo ``pack`` inside a trace; every slice is static."""
    offset = 0

    def take(shape: tuple[int, ...]) -> jax.Array:
        nonlocal offset
        start, offset = offset, offset + _size(shape)
        return lax.slice(packed, (start,), (offset,)).reshape(shape)

    inputs = {name: take(shape(bucket)) for name, shape in _INPUT_SHAPES.items()}
    sampling = {
        name: _restored(name, take(_sampling_shape(name, bucket))) for name in _SAMPLING_FIELDS
    }
    return DeviceInputs(**inputs, sampling=Sampling(**sampling))


def _restored(name: str, bits: jax.Array) -> jax.Array:
    if name in _FLOATS:
        return lax.bitcast_convert_type(bits, jnp.float32)
    if name == "seeds":
        return lax.bitcast_convert_type(bits, jnp.uint32)
    if name in ("top_k", "min_lens"):
        return bits
    return bits != 0


def _sampling_shape(name: str, bucket: Bucket) -> tuple[int, ...]:
    if name.startswith("any_"):
        return ()
    return (bucket.num_rows, 2) if name == "seeds" else (bucket.num_rows,)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
