"""Logits to tokens, inside the jitted step: one pure function for every kind of row.

Order of a row's logits (SGLang's): frequency and presence penalty, repetition penalty,
logit_bias, stop ids masked while shorter than ``min_len``; then temperature; then top_k,
top_p and min_p (``truncation``); then one draw.

- **A row's randomness** is ``fold_in(seed, kv_len)``: neither its company nor the bucket,
  its place in the batch or the cache can change it.
- **Logprobs** are those of the temperature-scaled distribution after penalties and bias and
  before truncation (SGLang's default); temperature 0 counts as 1.
- NaN logits count as -inf and +inf as the largest float, so that every id is in range.

Every feature is behind a conditional on a scalar that the host computes: a step in which no
row uses it does not pay for it, and none of them changes the shape of the program.  There is no
loop: on a GPU the conditionals are part of the step's one CUDA graph, a loop would end it.

Axis letters: B rows, V vocabulary, S slots, K = MAX_TOP_LOGPROBS.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxserve.batch import SlotInit
from jaxserve.executor import blocks, truncation
from jaxserve.executor.sampling import GREEDY_TEMPERATURE, PackedSampling, Sampling

MAX_TOP_LOGPROBS = 20  # request.py's, which this layer may not import; a test holds them equal

MIN_LOGPROB = -9999.0  # what OpenAI's API says for "very unlikely"; -inf is not JSON

# A token_info entry: how often the output holds this token, and two facts about it.
COUNT_MASK = (1 << 24) - 1
IN_PROMPT = 1 << 24
IS_STOP = 1 << 25

_MAX_TEMPERATURE = 1e30  # uniform for any logits a model has
_F32_MAX = float(np.finfo(np.float32).max)
_F32_TINY = float(np.finfo(np.float32).tiny)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Sampled:
    """What one step sampled; the logprob arrays are zero where a row did not ask."""

    token_ids: Array  # i32[B]
    logprobs: Array  # f32[B]
    top_logprobs: Array  # f32[B, K], most likely first
    top_token_ids: Array  # i32[B, K]


def sample(
    logits: Array,
    packed: PackedSampling,
    token_info: Array,
    logit_bias: Array,
    row_slots: Array,
    kv_lens: Array,
) -> Sampled:
    """Samples one token per row.

    Args:
        logits: f32[B, V].
        packed: the rows' parameters.
        token_info: i32[S, V], see ``init_slot``; read only.
        logit_bias: f32[S, V]; read only.
        row_slots: i32[B]; padding rows point at slot 0.
        kv_lens: i32[B]; tokens before the one being sampled, so also its position.

    Returns:
        ``Sampled``; the id of a row that does not sample means nothing but is in range.
    """

    def greedy() -> Sampled:
        return _without_logprobs(blocks.argmax(_clean(logits)))

    def full() -> Sampled:
        return _choose(adjusted(), packed, kv_lens)

    def adjusted() -> Array:
        return lax.cond(packed.any_adjusted, adjust, lambda: _clean(logits))

    def adjust() -> Array:
        sampling = packed.unpack()
        info = token_info.at[row_slots].get(mode="promise_in_bounds")  # [B, V]
        bias = logit_bias.at[row_slots].get(mode="promise_in_bounds")
        bias = jnp.where(sampling.has_logit_bias[:, None], bias, 0.0)
        return _clean(_adjust(logits, sampling, info, bias, kv_lens))

    # The common step first: greedy rows copy no logits, which the branches of ``adjusted`` do.
    sampled: Sampled = lax.cond(packed.all_greedy, greedy, full)
    return sampled


def _choose(logits: Array, packed: PackedSampling, kv_lens: Array) -> Sampled:
    """A token of every row, greedy or drawn, with the logprobs that were asked for."""
    greedy_ids = blocks.argmax(logits)

    def draw() -> Array:
        ids = _draw(logits, packed, kv_lens)
        return jnp.where(packed.unpack().is_greedy, greedy_ids, ids)

    token_ids = lax.cond(packed.any_random, draw, lambda: greedy_ids)
    return _with_logprobs(logits, packed, token_ids)


def record(token_info: Array, row_slots: Array, token_ids: Array, samples: Array) -> Array:
    """Counts the sampled tokens: i32[S, V] with one added at each sampling row's token.

    Donate ``token_info`` (or call it in a step that does): the update is then in place.
    """
    return token_info.at[row_slots, token_ids].add(samples.astype(jnp.int32))


def init_slot(init: SlotInit, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The token_info row i32[V] and the logit_bias row f32[V] of a sequence's past.

    Stop ids outside the vocabulary can never be sampled and are left out.
    """
    info = np.bincount(np.asarray(init.output_ids, np.int64), minlength=vocab_size)
    info = info.astype(np.int32)
    info[list(init.prompt_ids)] |= IN_PROMPT
    info[[token_id for token_id in init.stop_ids if 0 <= token_id < vocab_size]] |= IS_STOP
    bias = np.zeros(vocab_size, np.float32)
    for token_id, value in init.logit_bias:
        bias[token_id] = value
    return info, bias


def set_slot(
    token_info: Array, logit_bias: Array, slot: Array, info_row: Array, bias_row: Array
) -> tuple[Array, Array]:
    """Writes the rows of ``init_slot`` to ``slot`` (i32[]); donate the first two arguments."""
    return token_info.at[slot].set(info_row), logit_bias.at[slot].set(bias_row)


def _clean(logits: Array) -> Array:
    """Without NaN and +inf."""
    return jnp.where(jnp.isnan(logits), -jnp.inf, jnp.minimum(logits, _F32_MAX))


def _temperature(sampling: Sampling) -> Array:
    """f32[B]: what the logits are divided by; 1 where the temperature says greedy.

    Bounded: XLA multiplies by the reciprocal, and -inf times one flushed to 0 would be NaN.
    """
    temperature = jnp.minimum(sampling.temperature, _MAX_TEMPERATURE)
    return jnp.where(temperature < GREEDY_TEMPERATURE, 1.0, temperature)


def _adjust(logits: Array, sampling: Sampling, info: Array, bias: Array, kv_lens: Array) -> Array:
    """f32[B, V] after penalties, bias and the mask of stop ids; info, bias [B, V]."""
    counts = info & COUNT_MASK
    frequency = sampling.frequency_penalty[:, None] * counts.astype(jnp.float32)
    presence = jnp.where(counts > 0, sampling.presence_penalty[:, None], 0.0)
    logits = logits - frequency - presence
    seen = (info & (COUNT_MASK | IN_PROMPT)) > 0
    penalty = sampling.repetition_penalty[:, None]
    factor = jnp.where(logits > 0, 1.0 / penalty, penalty)
    logits = logits * jnp.where(seen, factor, 1.0) + bias
    is_masked = (kv_lens < sampling.min_lens)[:, None] & ((info & IS_STOP) > 0)
    return jnp.where(is_masked, -jnp.inf, logits)


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


def _with_logprobs(logits: Array, packed: PackedSampling, token_ids: Array) -> Sampled:
    """The sampled tokens with the logprobs that were asked for."""

    def compute() -> Sampled:
        sampling = packed.unpack()
        temperature = _temperature(sampling)
        largest = blocks.largest(logits)
        total = blocks.weight_sums(logits, largest, temperature)
        log_total = jnp.log(jnp.maximum(total, _F32_TINY))  # 0 where every token is masked
        chosen = jnp.take_along_axis(logits, token_ids[:, None], axis=1)
        top, top_ids = blocks.top(logits, min(MAX_TOP_LOGPROBS, logits.shape[1]))
        values = jnp.concatenate([chosen, top], axis=1)  # [B, 1 + K]
        values = (values - largest[:, None]) / temperature[:, None] - log_total[:, None]
        values = jnp.maximum(values, MIN_LOGPROB)
        values = jnp.where(sampling.wants_logprobs[:, None], values, 0.0)
        top_ids = jnp.where(sampling.wants_logprobs[:, None], top_ids, 0)
        missing = ((0, 0), (0, MAX_TOP_LOGPROBS - top_ids.shape[1]))
        return Sampled(
            token_ids, values[:, 0], jnp.pad(values[:, 1:], missing), jnp.pad(top_ids, missing)
        )

    sampled: Sampled = lax.cond(packed.any_logprobs, compute, lambda: _without_logprobs(token_ids))
    return sampled


def _without_logprobs(token_ids: Array) -> Sampled:
    top = jnp.zeros((token_ids.shape[0], MAX_TOP_LOGPROBS), jnp.float32)
    return Sampled(token_ids, top[:, 0], top, jnp.zeros(top.shape, jnp.int32))
