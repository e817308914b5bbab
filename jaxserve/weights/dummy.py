"""Random weights of the right shapes, for benchmarks: made on the device, in no time."""

import math
import zlib
from collections.abc import Callable, Mapping
from functools import cache

import jax
import jax.numpy as jnp


def dummy_weights(expected: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Make every parameter up, the same at every call.

    Kernels have variance 1 / fan-in, so that activations and logits keep a sane size; norm scales
    lie around 1, biases around 0.
    """
    return {path: _parameter(path, struct) for path, struct in expected.items()}


def _parameter(path: str, struct: jax.ShapeDtypeStruct) -> jax.Array:
    seed = jnp.uint32(zlib.crc32(path.encode()))
    kind = path.rpartition(".")[-1]
    mean = 1.0 if kind == "scale" else 0.0
    std = 1.0 / math.sqrt(struct.shape[-1]) if kind in ("kernel", "embedding") else 0.02
    make = _maker(struct.sharding)
    return make(seed, mean, std, shape=struct.shape, dtype=jnp.dtype(struct.dtype))


@cache
def _maker(sharding: jax.sharding.Sharding | None) -> Callable[..., jax.Array]:
    """``_uniform`` for arrays of one sharding: each device makes its own shard."""
    return jax.jit(_uniform, static_argnames=("shape", "dtype"), out_shardings=sharding)


def _uniform(
    seed: jax.Array, mean: float, std: float, *, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
    # A hash of the index, not jax.random: 64 M values take 0.2 s on two CPU cores instead of 3 s,
    # and a benchmark needs no better numbers.
    # The finaliser of MurmurHash3, https://github.com/aappleby/smhasher/wiki/MurmurHash3
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    bits = seed
    for axis, stride in enumerate(strides):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        bits = bits + index * jnp.uint32(stride % 2**32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    bits = bits ^ (bits >> 16)
    unit = bits.astype(jnp.float32) * jnp.float32(2.0**-31) - 1.0  # [-1, 1]
    return (mean + std * math.sqrt(3.0) * unit).astype(dtype)
