"""Rotary position embedding (https://arxiv.org/abs/2104.09864) and the ways it is stretched.

Frequencies are numbers of the config, so they are computed once, in f64 by numpy, and enter the
trace as a small constant.  Which frequencies a sequence gets must not depend on its company or
on its own growth, or cached keys would be wrong: where transformers switches with the length of
the input (``dynamic``, ``longrope``), the served context length decides instead.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxserve.errors import ConfigError
from jaxserve.model_config import ModelConfig, RopeScaling


def rope_frequencies(config: ModelConfig, context_len: int) -> tuple[np.ndarray, float]:
    """Angular frequencies ``f32[H / 2]`` and the factor on cos and sin."""
    half = config.head_dim // 2
    exponent = np.arange(half, dtype=np.float64) / half
    base = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return base.astype(np.float32), 1.0
    if scaling.type not in _STRETCH:
        raise ConfigError(
            f"rope type {scaling.type!r} is not supported; supported: {', '.join(_STRETCH)}"
        )
    frequencies, factor = _STRETCH[scaling.type](base, scaling, config, context_len)
    return frequencies.astype(np.float32), factor


def rotation(
    positions: jax.Array, frequencies: np.ndarray, factor: float
) -> tuple[jax.Array, jax.Array]:
    """cos and sin ``f32[T, H / 2]`` of the angles of ``positions`` i32[T]."""

    def compute(positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        # f32: bf16 rounds 257 to 256, and sin(257) is far from sin(256)
        angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(frequencies)[None, :]
        return jnp.cos(angles) * factor, jnp.sin(angles) * factor

    def compute_once(positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        # XLA:CPU fuses cos and sin into every layer's every rotation (and drops optimization
        # barriers before it does): at 512 tokens 4x the time of the rotations themselves.  What
        # a conditional returns it stores.
        zeros = jnp.zeros((positions.shape[0], len(frequencies)), jnp.float32)
        return lax.cond(positions[0] >= 0, compute, lambda _: (zeros, zeros), positions)

    cos_sin: tuple[jax.Array, jax.Array] = lax.platform_dependent(
        positions, cpu=compute_once, default=compute
    )
    return cos_sin


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate ``x [T, heads, H]``; the two halves of H form the pairs, as in HF checkpoints."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _linear(
    base: np.ndarray, scaling: RopeScaling, config: ModelConfig, context_len: int
) -> tuple[np.ndarray, float]:
    return base / scaling.factor, 1.0


def _dynamic(
    base: np.ndarray, scaling: RopeScaling, config: ModelConfig, context_len: int
) -> tuple[np.ndarray, float]:
    """NTK-aware base for the served context; the plain base up to the trained one."""
    trained = scaling.original_context_len or config.context_len
    if context_len <= trained:
        return base, 1.0
    dim = config.head_dim
    stretch = scaling.factor * context_len / trained - (scaling.factor - 1)
    theta = config.rope_theta * stretch ** (dim / (dim - 2))
    return 1.0 / theta ** (np.arange(dim // 2, dtype=np.float64) * 2 / dim), 1.0


def _llama3(
    base: np.ndarray, scaling: RopeScaling, config: ModelConfig, context_len: int
) -> tuple[np.ndarray, float]:
    """Long wavelengths are slowed by ``factor``, short ones kept, a ramp between."""
    wavelength = 2 * math.pi / base
    turns = scaling.original_context_len / wavelength
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - keep) * base / scaling.factor + keep * base, 1.0


def _yarn(
    base: np.ndarray, scaling: RopeScaling, config: ModelConfig, context_len: int
) -> tuple[np.ndarray, float]:
    """YaRN (https://arxiv.org/abs/2309.00071)."""
    trained = scaling.original_context_len or config.context_len
    dim = config.head_dim

    def dimension_of(turns: float) -> float:
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # the ramp below must not divide by zero
    ramp = np.clip((np.arange(dim // 2, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
    frequencies = base / scaling.factor * ramp + base * (1 - ramp)
    if scaling.attention_factor is not None:
        return frequencies, scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return frequencies, _yarn_scale(scaling.factor, scaling.mscale) / _yarn_scale(
            scaling.factor, scaling.mscale_all_dim
        )
    return frequencies, _yarn_scale(scaling.factor, 1.0)


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(
    base: np.ndarray, scaling: RopeScaling, config: ModelConfig, context_len: int
) -> tuple[np.ndarray, float]:
    """LongRoPE (https://arxiv.org/abs/2402.13753)."""
    trained = scaling.original_context_len or config.context_len
    factors = scaling.long_factor if context_len > trained else scaling.short_factor
    stretch = np.asarray(factors, np.float64)
    if stretch.shape != base.shape:
        raise ConfigError(
            f"rope_scaling of type longrope needs {base.shape[0]} factors (head_dim / 2); "
            f"got {stretch.shape[0]}"
        )
    factor = scaling.attention_factor
    if factor is None:
        ratio = scaling.factor
        factor = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(trained))
    return base / stretch, factor


_STRETCH = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
