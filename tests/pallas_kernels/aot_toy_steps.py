"""A provider of toy steps for ``python -m pallas_kernels.aot step``: one good, the others broken.

Imported by the tool, in its environment: ``--provider aot_toy_steps:toy_step``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import SingleDeviceSharding

from pallas_kernels.aot_step import StepFacts, StepProgram, StepRequest

NUM_LAYERS, SIZE = 3, 512
POOL = (1024, 2, 16, 64)  # 4 MiB in bf16
POOL_BYTES = 2 * 1024 * 2 * 16 * 64
WEIGHT = (SIZE, SIZE)
Arrays = list[jax.Array]


def layer(x: jax.Array, pool: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Something of every kind: a product, a write to a few pages, a read of a few."""
    y = jnp.tanh(x @ weight)  # [B, SIZE]
    rows = jnp.arange(x.shape[0])
    pool = pool.at[rows, :, 0].set(y[:, :128].reshape(-1, 2, 64))
    return x + jnp.repeat(pool[rows, 0, 0], SIZE // 64, axis=1) * y, pool


def good(x: jax.Array, pools: Arrays, weights: Arrays) -> tuple[jax.Array, Any]:
    """Layers in a Python loop, every pool an array of its own."""
    written = []
    for pool, weight in zip(pools, weights, strict=True):
        x, pool = layer(x, pool, weight)
        written.append(pool)
    return x, written


def scan(x: jax.Array, pools: jax.Array, weights: jax.Array) -> tuple[jax.Array, Any]:
    """Layers in a loop of the program, over stacked pools."""
    return lax.scan(lambda x, slices: layer(x, *slices), x, (pools, weights))


def kept(x: jax.Array, pools: Arrays, weights: Arrays) -> tuple[jax.Array, Any]:
    """The old contents of a pool are still wanted after the write: it must be copied."""
    before = pools[1]
    x, written = good(x, pools, weights)
    return before[jnp.argmax(x, axis=1), 0, 0], written


def transposed(x: jax.Array, pools: Arrays, weights: Arrays) -> tuple[jax.Array, Any]:
    """A weight leaves the step in another layout."""
    x, written = good(x, pools, weights)
    return x, (written, lax.optimization_barrier(weights[0].T))


def greedy(x: jax.Array, pools: Arrays, weights: Arrays) -> tuple[jax.Array, Any]:
    """Temporaries of 8 MiB."""
    wide = lax.optimization_barrier(jnp.tanh(x[:, :, None] * x[:, None, :]))
    return good(x + wide.sum(axis=2), pools, weights)


STEPS: dict[str, Callable[..., Any]] = {
    "good": good, "scan": scan, "kept": kept, "transposed": transposed, "greedy": greedy,
    "undonated": good, "mismatched": lambda x, pools, weights: x @ pools[0],
}  # fmt: skip


def toy_step(request: StepRequest) -> StepProgram:
    """The step that ``request.model`` names; of the rest of the request only the rows count.

    The model is taken to be a hundred times as deep, so that 2 % of it is 3 MB.
    """
    name = request.model
    weight_bytes = 2 * NUM_LAYERS * SIZE * SIZE

    def lower(devices: Sequence[Any]) -> Any:
        sharding = SingleDeviceSharding(devices[0])

        def array(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

        pools, weights = [array(*POOL)] * NUM_LAYERS, [array(*WEIGHT)] * NUM_LAYERS
        if name == "scan":
            pools, weights = array(NUM_LAYERS, *POOL), array(NUM_LAYERS, *WEIGHT)
        donated = () if name == "undonated" else (1,)
        step = jax.jit(STEPS[name], donate_argnums=donated)
        traced = step.trace(array(request.num_rows, SIZE), pools, weights)
        return traced.lower(lowering_platforms=("cuda",))

    facts = StepFacts(
        num_layers=NUM_LAYERS,
        kv_bytes=NUM_LAYERS * POOL_BYTES,
        state_bytes=NUM_LAYERS * POOL_BYTES,
        weight_bytes=weight_bytes,
        full_weight_bytes=100 * weight_bytes,
        activation_bytes=0,
        pool_shape=POOL,
        big_sizes=frozenset({POOL_BYTES // 2, SIZE * SIZE}),
        flops=2 * NUM_LAYERS * SIZE * SIZE * request.num_rows,
        attention_flops=0,
        attention_bytes=0,
        floor_bytes=weight_bytes,
    )
    return StepProgram(num_devices=1, lower=lower, facts=facts)
