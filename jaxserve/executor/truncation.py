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
from jax import Array, lax

from jaxserve.executor import blocks

_NUM_SORTED = 128
_ONE_BITS = 0x3F800000  # 1.0 as bits; non-negative floats are ordered as their bits are


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
    """f32[B]: the least logit that top_k and top_p both keep, by bisection.

    A threshold t is low enough when the tokens of weight >= t are at least top_k, or weigh
    at least top_p of all.  The highest such t is found by bisection on its bits: exact, and
    30 passes over the row whatever it holds.
    """
    scaled = (logits - truncation.largest[:, None]) / truncation.temperature[:, None]
    weights = jnp.exp(scaled)  # [B, V], in [0, 1]
    mass = truncation.top_p * jnp.sum(weights, axis=1)
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
    low, _ = lax.fori_loop(0, 30, halve, (low, jnp.full_like(low, _ONE_BITS + 1)))
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
            return rank_thresholds(lax.dynamic_slice_in_dim(logits, row, 1), one)[0]

        return answers.at[row].set(lax.cond(is_found[row], lambda: answers[row], bisect))

    answers: Array = lax.fori_loop(0, logits.shape[0], fix, jnp.where(is_off, -jnp.inf, found))
    return answers
