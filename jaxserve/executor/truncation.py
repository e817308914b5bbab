"""top_k, top_p and min_p as one threshold per row, found without sorting the vocabulary.

All three look at the same temperature-scaled distribution over the whole vocabulary, and a
token stays if each of them keeps it (SGLang's joint truncation; vLLM and transformers
renormalise after top_k).  Each keeps the tokens at least as likely as some threshold:

- top_k: the k-th largest, so **tokens tied with the k-th are kept too**: what stays does not
  depend on the order of the vocabulary;
- top_p: the last one needed, most likely first, to reach the mass p (ties likewise);
- min_p: min_p times the largest.

Axis letters: B rows, V vocabulary, M tokens that are sorted.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxserve.executor import blocks

_NUM_SORTED = 128
_ONE_BITS = 0x3F800000  # 1.0 as bits; non-negative floats are ordered as their bits are
_NUM_BITS = 30  # of floats in [0, 1]
_DIGIT_SHIFTS = range(_NUM_BITS - 3, -1, -3)
_DIGITS = np.arange(1, 8, dtype=np.int32)  # octal
_F32_BYTES = 4
# Weights that are in memory at a time: they stay in a GPU's cache from pass to pass, and at
# 256 rows of a large vocabulary all of them would be a percent of the model.
MAX_WEIGHT_BYTES = 2**25


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Truncation:
    """What each row keeps of its distribution."""

    largest: Array  # f32[B]; the row's largest logit, finite
    temperature: Array  # f32[B]; > 0
    top_k: Array  # i32[B]; V (or more) is off
    top_p: Array  # f32[B]; inf is off
    min_p: Array  # f32[B]; 0 is off


def thresholds(logits: Array, truncation: Truncation) -> Array:
    """f32[B]: the least logit that each row keeps; -inf keeps all of f32[B, V] (no NaN)."""
    by_rank = lax.platform_dependent(
        logits, truncation, cpu=rank_thresholds_by_sorting_few, default=rank_thresholds
    )
    by_min_p = truncation.largest + truncation.temperature * jnp.log(truncation.min_p)
    return jnp.maximum(by_rank, by_min_p)


def rank_thresholds(logits: Array, truncation: Truncation) -> Array:
    """f32[B]: the least logit that top_k and top_p both keep.

    A threshold t is low enough when the tokens of weight >= t are at least top_k, or weigh
    at least top_p of all.  The highest such t is found digit by digit of its bits: exact, and
    ten passes over the row whatever it holds.  No loop: it would end the step's CUDA graph.
    """
    num_rows, vocab_size = logits.shape
    num_parts = -(-num_rows * vocab_size * _F32_BYTES // MAX_WEIGHT_BYTES)
    size = -(-num_rows // num_parts)
    found: list[Array] = []
    for start in range(0, num_rows, size):
        rows = slice(start, start + size)
        limits = jax.tree.map(lambda x, rows=rows: x[rows], truncation)
        if found:  # one part after the other: the next one's limits wait for the last one's answer
            limits, found[-1] = lax.optimization_barrier((limits, found[-1]))
        found.append(_thresholds_by_digits(logits[rows], limits))
    return jnp.concatenate(found)


def _thresholds_by_digits(logits: Array, truncation: Truncation) -> Array:
    """The barriers make the passes equal to each other: XLA compiles one kernel for all."""
    weights, mass = lax.optimization_barrier(_weights_and_mass(logits, truncation))
    low = jnp.zeros_like(truncation.top_k)
    for shift in _DIGIT_SHIFTS:
        bits = low[None, :] + jnp.asarray(_DIGITS << shift)[:, None]  # [7, B]
        candidates = lax.optimization_barrier(lax.bitcast_convert_type(bits, jnp.float32))
        is_low = _are_low(weights, candidates, truncation.top_k, mass)
        low = low + (jnp.sum(is_low, axis=0, dtype=jnp.int32) << shift)
    is_kept = weights >= lax.bitcast_convert_type(low, jnp.float32)[:, None]
    return jnp.min(jnp.where(is_kept, logits, jnp.inf), axis=1)


def _are_low(weights: Array, candidates: Array, top_k: Array, mass: Array) -> Array:
    """bool[C, B]: which of the thresholds f32[C, B] are low enough.

    One reduction counts and sums for all candidates: the rows are read once.
    """
    parts = []
    for candidate in candidates:
        is_kept = weights >= candidate[:, None]
        parts += [jnp.where(is_kept, 1.0, 0.0), jnp.where(is_kept, weights, 0.0)]
    zeros = [np.float32(0.0)] * len(parts)
    sums = lax.reduce(parts, zeros, lambda a, b: [x + y for x, y in zip(a, b, strict=True)], (1,))
    counts, masses = jnp.stack(sums[::2]), jnp.stack(sums[1::2])  # [C, B]
    # counts are exact: f32 holds every integer up to 2^24
    return (counts >= top_k.astype(jnp.float32)[None]) | (masses >= mass[None])


def _weights_and_mass(logits: Array, truncation: Truncation) -> tuple[Array, Array]:
    """f32[B, V] in [0, 1], and f32[B]: how much of each row's sum top_p wants."""
    scaled = (logits - truncation.largest[:, None]) / truncation.temperature[:, None]
    weights = jnp.exp(scaled)
    return weights, truncation.top_p * jnp.sum(weights, axis=1)


def rank_thresholds_by_bisection(logits: Array, truncation: Truncation) -> Array:
    """``rank_thresholds`` bit by bit: 30 passes, each of few instructions (CPU)."""
    weights, mass = _weights_and_mass(logits, truncation)
    count = truncation.top_k.astype(jnp.float32)  # exact; XLA:CPU sums floats faster

    def keeps(bits: Array) -> Array:
        return weights >= lax.bitcast_convert_type(bits, jnp.float32)[:, None]

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # low is low enough, high is not
        middle = low + (high - low) // 2
        is_kept = keeps(middle)
        is_low = (jnp.sum(jnp.where(is_kept, 1.0, 0.0), axis=1) >= count) | (
            jnp.sum(jnp.where(is_kept, weights, 0.0), axis=1) >= mass
        )
        return jnp.where(is_low, middle, low), jnp.where(is_low, high, middle)

    low = jnp.zeros_like(truncation.top_k)
    low, _ = lax.fori_loop(0, _NUM_BITS, halve, (low, jnp.full_like(low, _ONE_BITS + 1)))
    return jnp.min(jnp.where(keeps(low), logits, jnp.inf), axis=1)


def rank_thresholds_by_sorting_few(logits: Array, truncation: Truncation) -> Array:
    """``rank_thresholds`` for where a pass over all rows is dear and a branch cheap (CPU).

    The M most likely tokens answer for most rows.  The others are done by bisection one by
    one: each stays in the core's cache, and the rest do not wait for them.
    """
    num_sorted = min(_NUM_SORTED, logits.shape[1])
    total = blocks.weight_sums(logits, truncation.largest, truncation.temperature)
    top, _ = blocks.top(logits, num_sorted)  # [B, M]
    scaled = (top - truncation.largest[:, None]) / truncation.temperature[:, None]
    weights = jnp.exp(scaled)
    is_enough = jnp.cumsum(weights, axis=1) >= (truncation.top_p * total)[:, None]
    num_kept = jnp.minimum(blocks.first(is_enough) + 1, truncation.top_k)
    last = jnp.minimum(num_kept, num_sorted) - 1
    found = jnp.take_along_axis(top, last[:, None], axis=1, mode="clip")[:, 0]
    is_off = (truncation.top_k >= logits.shape[1]) & jnp.isinf(truncation.top_p)
    # Where even the last sorted one is below min_p, min_p's threshold is the higher one.
    # (Not weights[:, -1]: XLA:CPU turns top_k into a whole sort when its result is sliced.)
    is_found = (num_kept <= num_sorted) | (jnp.min(weights, axis=1) < truncation.min_p) | is_off

    def fix(row: int, answers: Array) -> Array:
        def bisect() -> Array:
            one = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, row, 1), truncation)
            return rank_thresholds_by_bisection(lax.dynamic_slice_in_dim(logits, row, 1), one)[0]

        return answers.at[row].set(lax.cond(is_found[row], lambda: answers[row], bisect))

    answers: Array = lax.fori_loop(0, logits.shape[0], fix, jnp.where(is_off, -jnp.inf, found))
    return answers
