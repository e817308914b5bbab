"""The sampling parameters of a step's rows, as one array that the device takes apart.

A conditional's operands are copied next to each other before it runs, so a dozen small arrays
would be a dozen copies in every step, also in those that take no notice of them.  One array is
one; each branch takes it apart itself, where the pieces fuse into what reads them.

Axis letters: B rows, F fields.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxserve.batch import SamplingArrays

GREEDY_TEMPERATURE = 1e-6  # request.py's, which this layer may not import; a test holds them equal

_FLOATS = (
    "temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
)  # fmt: skip
_INTEGERS = ("top_k", "min_lens")
_BOOLEANS = ("samples", "has_logit_bias", "wants_logprobs")
_ARRAY_FIELDS = (*_FLOATS, *_INTEGERS, *_BOOLEANS)
_NUM_SEEDS = 2
NUM_FIELDS = len(_ARRAY_FIELDS) + _NUM_SEEDS
NUM_FLAGS = 1

_ADJUSTING = (
    "frequency_penalty", "presence_penalty", "repetition_penalty", "min_lens", "has_logit_bias",
)  # fmt: skip
_TRUNCATING = ("top_k", "top_p", "min_p")
_NEUTRAL = np.array(  # i32[fields, 1]; as bits
    [[float(name in ("top_p", "repetition_penalty"))] for name in _ARRAY_FIELDS], np.float32
).view(np.int32)

# bits of the flags: what some row of the step needs
_ADJUSTED, _RANDOM, _TRUNCATED, _LOGPROBS = 1, 2, 4, 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Sampling:
    """``batch.SamplingArrays`` on the device."""

    samples: Array  # bool[B]
    temperature: Array  # f32[B]
    top_k: Array  # i32[B]
    top_p: Array  # f32[B]
    min_p: Array  # f32[B]
    frequency_penalty: Array  # f32[B]
    presence_penalty: Array  # f32[B]
    repetition_penalty: Array  # f32[B]
    seeds: Array  # u32[B, 2]
    min_lens: Array  # i32[B]
    has_logit_bias: Array  # bool[B]
    wants_logprobs: Array  # bool[B]

    @property
    def is_greedy(self) -> Array:
        """bool[B]: where the most likely token is always taken."""
        return (self.temperature < GREEDY_TEMPERATURE) | (self.top_k == 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class PackedSampling:
    """``Sampling`` as bits, and what any row of the step needs.

    Rows with neutral values are unchanged by a feature that another row uses.
    """

    rows: Array  # i32[F, B]
    flags: Array  # i32[NUM_FLAGS]

    @property
    def all_greedy(self) -> Array:
        """bool[]: no row needs more than the most likely token."""
        return self.flags[0] == 0

    @property
    def any_adjusted(self) -> Array:
        """bool[]: a penalty, a bias or a min_len."""
        return (self.flags[0] & _ADJUSTED) != 0

    @property
    def any_random(self) -> Array:
        """bool[]: a row that is not greedy."""
        return (self.flags[0] & _RANDOM) != 0

    @property
    def any_truncated(self) -> Array:
        """bool[]: top_k, top_p or min_p in a row that is not greedy."""
        return (self.flags[0] & _TRUNCATED) != 0

    @property
    def any_logprobs(self) -> Array:
        """bool[]."""
        return (self.flags[0] & _LOGPROBS) != 0

    def unpack(self) -> Sampling:
        """The rows' parameters; call it where they are used."""
        pieces = dict(zip(_ARRAY_FIELDS, self.rows, strict=False))
        values: dict[str, Array] = {name: pieces[name] for name in _INTEGERS}
        for name in _FLOATS:
            values[name] = lax.bitcast_convert_type(pieces[name], jnp.float32)
        for name in _BOOLEANS:
            values[name] = pieces[name] != 0
        seeds = lax.bitcast_convert_type(self.rows[-_NUM_SEEDS:], jnp.uint32)
        return Sampling(**values, seeds=seeds.T)


def pack_sampling(arrays: SamplingArrays) -> PackedSampling:
    """On the host: the leaves are numpy arrays."""
    rows = np.empty((NUM_FIELDS, len(arrays.samples)), np.int32)
    for index, name in enumerate(_ARRAY_FIELDS):
        value: np.ndarray[Any, Any] = getattr(arrays, name)
        rows[index] = value.view(np.int32) if name in _FLOATS else value
    rows[-_NUM_SEEDS:] = arrays.seeds.view(np.int32).T
    leaves: dict[str, Any] = {"rows": rows, "flags": np.array([_flags(rows, arrays)], np.int32)}
    return PackedSampling(**leaves)


def _flags(rows: np.ndarray, arrays: SamplingArrays) -> int:
    """What the rows that sample need.  One comparison for all fields: this is in every step."""
    differs = (rows[: len(_ARRAY_FIELDS)] != _NEUTRAL) & arrays.samples
    changed = dict(zip(_ARRAY_FIELDS, differs.any(axis=1).tolist(), strict=True))
    flags = _ADJUSTED if any(changed[name] for name in _ADJUSTING) else 0
    flags |= _LOGPROBS if changed["wants_logprobs"] else 0
    if changed["temperature"]:
        is_random = (arrays.temperature >= GREEDY_TEMPERATURE) & (arrays.top_k != 1)
        is_random &= arrays.samples
        is_truncated = differs[[_ARRAY_FIELDS.index(name) for name in _TRUNCATING]].any(axis=0)
        flags |= _RANDOM if is_random.any() else 0
        flags |= _TRUNCATED if (is_random & is_truncated).any() else 0
    return flags
