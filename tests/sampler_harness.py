"""The sampler on the host: rows of parameters, slots as used ones are, and a float64 oracle."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.batch import SamplingArrays, SlotInit
from jaxserve.executor import sampler, slots
from jaxserve.executor.sampling import pack_sampling
from jaxserve.executor.slots import SlotTables

DEFAULTS: dict[str, tuple[object, type]] = {
    "samples": (True, np.bool_),
    "temperature": (0.0, np.float32),
    "top_k": (0, np.int32),
    "top_p": (1.0, np.float32),
    "min_p": (0.0, np.float32),
    "frequency_penalty": (0.0, np.float32),
    "presence_penalty": (0.0, np.float32),
    "repetition_penalty": (1.0, np.float32),
    "min_lens": (0, np.int32),
    "has_logit_bias": (False, np.bool_),
    "wants_logprobs": (False, np.bool_),
}

jitted_sample = jax.jit(sampler.sample)
jitted_record = jax.jit(slots.record, donate_argnums=0)
jitted_set_slot = jax.jit(slots.set_slot, donate_argnums=0)


def make_arrays(num_rows: int, **values: object) -> SamplingArrays:
    columns = {
        name: np.broadcast_to(np.asarray(values.get(name, default), dtype), num_rows).copy()
        for name, (default, dtype) in DEFAULTS.items()
    }
    return SamplingArrays(**columns, seeds=np.arange(2 * num_rows, dtype=np.uint32).reshape(-1, 2))


def garbage_tables(num_slots: int, vocab_size: int) -> SlotTables:
    return SlotTables(
        token_info=jnp.full((num_slots, vocab_size), 7 | slots.IN_PROMPT, jnp.int32),
        logit_bias=jnp.full((num_slots, vocab_size), 99.0, jnp.float32),
        logprob_ids=jnp.full((num_slots, slots.MAX_LOGPROB_TOKEN_IDS), 3, jnp.int32),
    )


def run(
    logits: np.ndarray,
    arrays: SamplingArrays,
    inits: tuple[SlotInit, ...] = (),
    kv_lens: np.ndarray | None = None,
) -> sampler.Sampled:
    """Row b has slot b + 1; slots without an init hold garbage, as a used slot would."""
    num_rows, vocab_size = logits.shape
    tables = garbage_tables(num_rows + 1, vocab_size)
    for init in inits:
        row = slots.init_slot(init, vocab_size)
        tables = jitted_set_slot(tables, np.int32(init.slot), row)
    if kv_lens is None:
        kv_lens = np.full(num_rows, 5, np.int32)
    row_slots = np.arange(1, num_rows + 1, dtype=np.int32)
    sampling = pack_sampling(arrays)
    return jitted_sample(logits.astype(np.float32), sampling, tables, row_slots, kv_lens)


def oracle_logits(
    logits: np.ndarray, arrays: SamplingArrays, inits: tuple[SlotInit, ...], kv_lens: np.ndarray
) -> np.ndarray:
    """What temperature is applied to, one token at a time."""
    adjusted = logits.astype(np.float64)
    for row, init in enumerate(inits):
        for token in range(logits.shape[1]):
            x, count = adjusted[row, token], init.output_ids.count(token)
            x -= arrays.frequency_penalty[row] * count
            x -= arrays.presence_penalty[row] * (count > 0)
            if count or token in init.prompt_ids:
                factor = float(arrays.repetition_penalty[row])
                x = x / factor if x > 0 else x * factor
            if arrays.has_logit_bias[row]:
                x += dict(init.logit_bias).get(token, 0.0)
            if kv_lens[row] < arrays.min_lens[row] and token in init.stop_ids:
                x = -np.inf
            adjusted[row, token] = x
    return adjusted


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))
