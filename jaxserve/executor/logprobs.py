"""Log-probabilities of rows of logits: of one token, of the most likely, of named ones.

Used for sampled tokens inside the step, and for prompts in a program of its own.

Axis letters: B rows, V vocabulary, K = MAX_TOP_LOGPROBS, I = MAX_LOGPROB_TOKEN_IDS.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxserve.batch import MIN_LOGPROB
from jaxserve.executor import blocks

MAX_TOP_LOGPROBS = 20  # request.py's, which this layer may not import; a test holds them equal

_F32_TINY = float(np.finfo(np.float32).tiny)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Logprobs:
    """One array for all numbers of a row: each output of a program costs its host time."""

    values: Array  # f32[B, 1 + K + I]; the token's, the top ones most likely first, the named ids'
    top_token_ids: Array  # i32[B, K]

    @property
    def chosen(self) -> Array:
        """f32[B]."""
        return self.values[:, 0]

    @property
    def top(self) -> Array:
        """f32[B, K]."""
        return self.values[:, 1 : 1 + MAX_TOP_LOGPROBS]

    @property
    def named(self) -> Array:
        """f32[B, I]."""
        return self.values[:, 1 + MAX_TOP_LOGPROBS :]


def logprobs(logits: Array, temperature: Array, token_ids: Array, named_ids: Array) -> Logprobs:
    """Log-softmax of logits over temperature, at the places that are wanted.

    Args:
        logits: f32[B, V], without NaN and +inf.
        temperature: f32[B], > 0.
        token_ids: i32[B].
        named_ids: i32[B, I]; of ids outside the vocabulary the result means nothing.

    Returns:
        Values of at least ``MIN_LOGPROB``; places beyond the vocabulary are 0.
    """
    largest = blocks.largest(logits)
    total = blocks.weight_sums(logits, largest, temperature)
    log_total = jnp.log(jnp.maximum(total, _F32_TINY))  # 0 where every token is masked
    wanted = jnp.concatenate([token_ids[:, None], named_ids], axis=1)
    chosen = jnp.take_along_axis(logits, wanted, axis=1, mode="clip")  # [B, 1 + I]
    top, top_ids = blocks.top(logits, min(MAX_TOP_LOGPROBS, logits.shape[1]))
    num_missing = MAX_TOP_LOGPROBS - top_ids.shape[1]
    values = jnp.concatenate([chosen[:, :1], top, chosen[:, 1:]], axis=1)
    values = (values - largest[:, None]) / temperature[:, None] - log_total[:, None]
    values = jnp.maximum(values, MIN_LOGPROB)
    if num_missing:
        middle = 1 + top_ids.shape[1]
        filler = jnp.zeros((values.shape[0], num_missing), jnp.float32)
        values = jnp.concatenate([values[:, :middle], filler, values[:, middle:]], axis=1)
        top_ids = jnp.pad(top_ids, ((0, 0), (0, num_missing)))
    return Logprobs(values, top_ids)


def no_logprobs(num_rows: int, num_named: int) -> Logprobs:
    """What stands where nobody asked: zeros."""
    return Logprobs(
        jnp.zeros((num_rows, 1 + MAX_TOP_LOGPROBS + num_named), jnp.float32),
        jnp.zeros((num_rows, MAX_TOP_LOGPROBS), jnp.int32),
    )
