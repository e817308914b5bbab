"""Logits to tokens, inside the jitted step: one pure function for every kind of row.

Order of a row's logits (SGLang's): frequency and presence penalty, repetition penalty,
logit_bias, stop ids masked while shorter than ``min_len``, the row's token mask; then
temperature; then top_k, top_p and min_p (``truncation``); then one draw.

- **A row's randomness** is ``fold_in(seed, kv_len)``: neither its company nor the bucket,
  its place in the batch or the cache can change it.
- **Logprobs** are those of the temperature-scaled distribution after penalties and bias and
  before truncation (SGLang's default); temperature 0 counts as 1.
- NaN logits count as -inf and +inf as the largest float, so that every id is in range.
- **A token mask always holds**: what it leaves is chosen whatever the logits are, and where it
  leaves only stop ids, ``min_len`` gives way.  Only rows that are sampled late have masks.

Every feature is behind a conditional on a scalar that the host computes: a step in which no
row uses it does not pay for it, and none of them changes the shape of the program.  There is no
loop: on a GPU the conditionals are part of the step's one CUDA graph, a loop would end it.

Axis letters: B rows, V vocabulary, M mask words.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxserve.executor import blocks, truncation
from jaxserve.executor.logprobs import Logprobs, logprobs, no_logprobs
from jaxserve.executor.sampling import GREEDY_TEMPERATURE, PackedSampling, Sampling
from jaxserve.executor.slots import COUNT_MASK, IN_PROMPT, IS_STOP, SlotTables

MASK_BITS = 32  # of a word of a token mask
_MAX_TEMPERATURE = 1e30  # uniform for any logits a model has
_F32_MAX = float(np.finfo(np.float32).max)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Sampled:
    """What one step sampled; the logprobs are zero where a row did not ask."""

    token_ids: Array  # i32[B]
    logprobs: Logprobs


def sample(
    logits: Array,
    packed: PackedSampling,
    slots: SlotTables,
    row_slots: Array,
    kv_lens: Array,
    masks: Array | None = None,
) -> Sampled:
    """Samples one token per row.

    Args:
        logits: f32[B, V].
        packed: the rows' parameters.
        slots: what the slots hold; read only.
        row_slots: i32[B]; padding rows point at slot 0.
        kv_lens: i32[B]; tokens before the one being sampled, so also its position.
        masks: u32[B, M]; bit t % 32 of word t // 32: token t is allowed.

    Returns:
        ``Sampled``; the id of a row that does not sample means nothing but is in range.
    """

    def greedy() -> Sampled:
        token_ids = blocks.argmax(without_nan(logits))
        return Sampled(token_ids, no_logprobs(len(token_ids), num_named))

    def full() -> Sampled:
        # One conditional: each copies the logits.
        changed = lax.cond(packed.any_adjusted, adjusted, unadjusted)
        return _choose(changed, packed, kv_lens, named_ids)

    def unadjusted() -> Array:
        return _masked(without_nan(logits), masks)

    def adjusted() -> Array:
        sampling = packed.unpack()
        info = slots.token_info.at[row_slots].get(mode="promise_in_bounds")  # [B, V]
        bias = slots.logit_bias.at[row_slots].get(mode="promise_in_bounds")
        bias = jnp.where(sampling.has_logit_bias[:, None], bias, 0.0)
        is_stopped = (kv_lens < sampling.min_lens)[:, None] & ((info & IS_STOP) > 0)
        return _masked(without_nan(_adjust(logits, sampling, info, bias)), masks, is_stopped)

    def named_ids() -> Array:
        return slots.logprob_ids.at[row_slots].get(mode="promise_in_bounds")

    num_named = slots.logprob_ids.shape[1]
    if masks is not None:
        return full()
    # The common step first: greedy rows copy no logits, which the branches of ``full`` do.
    sampled: Sampled = lax.cond(packed.all_greedy, greedy, full)
    return sampled


def _choose(
    logits: Array, packed: PackedSampling, kv_lens: Array, named_ids: Callable[[], Array]
) -> Sampled:
    """A token of every row, greedy or drawn, with the logprobs that were asked for."""
    greedy_ids = blocks.argmax(logits)

    def draw() -> Array:
        ids = _draw(logits, packed, kv_lens)
        return jnp.where(packed.unpack().is_greedy, greedy_ids, ids)

    token_ids = lax.cond(packed.any_random, draw, lambda: greedy_ids)

    def compute() -> Logprobs:
        sampling = packed.unpack()
        found = logprobs(logits, _temperature(sampling), token_ids, named_ids())
        wants = sampling.wants_logprobs[:, None]
        return Logprobs(
            jnp.where(wants, found.values, 0.0), jnp.where(wants, found.top_token_ids, 0)
        )

    def nothing() -> Logprobs:
        return no_logprobs(len(token_ids), num_named)

    num_named = jax.eval_shape(named_ids).shape[1]
    return Sampled(token_ids, lax.cond(packed.any_logprobs, compute, nothing))


def without_nan(logits: Array) -> Array:
    """NaN as -inf, and +inf as the largest float."""
    return jnp.where(jnp.isnan(logits), -jnp.inf, jnp.minimum(logits, _F32_MAX))


def _temperature(sampling: Sampling) -> Array:
    """f32[B]: what the logits are divided by; 1 where the temperature says greedy.

    Bounded: XLA multiplies by the reciprocal, and -inf times one flushed to 0 would be NaN.
    """
    temperature = jnp.minimum(sampling.temperature, _MAX_TEMPERATURE)
    return jnp.where(temperature < GREEDY_TEMPERATURE, 1.0, temperature)


def _adjust(logits: Array, sampling: Sampling, info: Array, bias: Array) -> Array:
    """f32[B, V] after penalties and bias; info, bias [B, V]."""
    counts = info & COUNT_MASK
    frequency = sampling.frequency_penalty[:, None] * counts.astype(jnp.float32)
    presence = jnp.where(counts > 0, sampling.presence_penalty[:, None], 0.0)
    logits = logits - frequency - presence
    seen = (info & (COUNT_MASK | IN_PROMPT)) > 0
    penalty = sampling.repetition_penalty[:, None]
    factor = jnp.where(logits > 0, 1.0 / penalty, penalty)
    return logits * jnp.where(seen, factor, 1.0) + bias


def _bits(words: Array, vocab_size: int) -> Array:
    """bool[B, V] of u32[B, M]."""
    shifts = jnp.arange(MASK_BITS, dtype=jnp.uint32)[None, None, :]
    bits = (words[:, :, None] >> shifts) & jnp.uint32(1)
    return bits.reshape(words.shape[0], -1)[:, :vocab_size] != 0


def _masked(logits: Array, masks: Array | None, is_stopped: Array | None = None) -> Array:
    """f32[B, V] under the masks u32[B, M], and without the stop ids bool[B, V].

    Finite wherever a mask allows a token, so that one of those is the largest.
    """
    if masks is None:
        return logits if is_stopped is None else jnp.where(is_stopped, -jnp.inf, logits)
    remains = allowed = _bits(masks, logits.shape[1])
    if is_stopped is not None:
        remains = allowed & ~is_stopped
        remains = remains | (allowed & ~jnp.any(remains, axis=1, keepdims=True))
    return jnp.where(remains, jnp.maximum(logits, -_F32_MAX), -jnp.inf)


def _draw(logits: Array, packed: PackedSampling, kv_lens: Array) -> Array:
    """i32[B]: one token of each row's truncated distribution; logits without NaN."""
    sampling = packed.unpack()
    kept = _truncation(logits, sampling)
    # The other branch returns its operand: XLA turns a branch that computes into a select, and
    # every draw would pay for a truncation.
    thresholds = lax.cond(
        packed.any_truncated,
        lambda _: truncation.thresholds(logits, kept),
        lambda nothing: nothing,
        jnp.full_like(kept.min_p, -jnp.inf),
    )

    def weigh(logits: Array) -> Array:
        # The threshold is a logit and not a weight: exp may differ in its last bit between
        # the two places this is compiled into, a comparison of logits may not.
        axes = tuple(range(1, logits.ndim))
        scaled = logits - jnp.expand_dims(kept.largest, axes)
        weights = jnp.exp(scaled / jnp.expand_dims(kept.temperature, axes))
        return jnp.where(logits >= jnp.expand_dims(thresholds, axes), weights, 0.0)

    uniforms = _uniforms(sampling.seeds, kv_lens)
    # Two uniforms rather than one: the second draw does not live on the first one's last
    # bits, so a token's chance is right to 2^-23 of its block's, not of the whole row's.
    split = blocks.split(logits)
    block_ids = _inverse_cdf(jnp.sum(weigh(split), axis=2), uniforms[:, 0])
    chosen = weigh(blocks.pick(split, block_ids))
    return block_ids * blocks.BLOCK + _inverse_cdf(chosen, uniforms[:, 1])


def _truncation(logits: Array, sampling: Sampling) -> truncation.Truncation:
    """The rows whose draw nobody reads keep everything, which costs nothing."""
    is_off = sampling.is_greedy | ~sampling.samples
    return truncation.Truncation(
        largest=blocks.largest(logits),
        temperature=_temperature(sampling),
        top_k=jnp.where(is_off | (sampling.top_k <= 0), logits.shape[1], sampling.top_k),
        top_p=jnp.where(is_off | (sampling.top_p >= 1.0), jnp.inf, sampling.top_p),
        min_p=jnp.where(is_off, 0.0, sampling.min_p),
    )


def _uniforms(seeds: Array, kv_lens: Array) -> Array:
    """f32[B, 2] in [0, 1), from the row's seed and position alone."""
    keys = jax.random.wrap_key_data(seeds, impl="threefry2x32")
    keys = jax.vmap(jax.random.fold_in)(keys, kv_lens.astype(jnp.uint32))
    return jax.vmap(lambda key: jax.random.uniform(key, (2,), jnp.float32))(keys)


def _inverse_cdf(weights: Array, uniforms: Array) -> Array:
    """i32[B]: an index drawn by weights f32[B, N]; never one of weight 0 unless all are.

    Rounding can leave the target at or past the last partial sum, and nothing promises that
    partial sums computed in parallel never fall: hence the test of the weight itself, and
    the last index with a weight when no sum is past the target.
    """
    sums = jnp.cumsum(weights, axis=1)
    target = uniforms[:, None] * sums[:, -1:]
    has_weight = weights > 0.0
    size = weights.shape[1]
    first = blocks.first((sums > target) & has_weight)
    last = jnp.maximum(size - 1 - blocks.first(has_weight[:, ::-1]), 0)
    return jnp.where(first < size, first, last)
