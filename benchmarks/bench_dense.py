"""Milliseconds of all the matrix products of one step, by weight dtype, layout and rows.

    python benchmarks/bench_dense.py

The floor under a step of the demo model (SmolLM2-135M's shapes), and the reason for the CPU's
default dtype, for kernels kept [out, in], and for its smallest DECODE bucket.
"""

import argparse
import time

import jax
import jax.numpy as jnp
from jax import lax

NUM_LAYERS, MODEL, FFN, QKV, VOCAB = 30, 576, 1536, 960, 49152
SHAPES = ((QKV, MODEL), (MODEL, MODEL), (2 * FFN, MODEL), (MODEL, FFN))  # [out, in]
VARIANTS = (("float32", "oi"), ("float32", "io"), ("bfloat16", "oi"), ("bfloat16", "io"))


def make_weights(dtype: str, layout: str) -> tuple[list[list[jax.Array]], jax.Array]:
    key = jax.random.key(0)

    def one(shape: tuple[int, int]) -> jax.Array:
        return 0.02 * jax.random.normal(key, shape if layout == "oi" else shape[::-1], dtype)

    return [[one(shape) for shape in SHAPES] for _ in range(NUM_LAYERS)], one((VOCAB, MODEL))


def make_step(layout: str):
    dimensions = ((1,), (1,)) if layout == "oi" else ((1,), (0,))

    def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
        x = x.astype(kernel.dtype)
        return lax.dot_general(x, kernel, (dimensions, ((), ())), preferred_element_type="float32")

    def step(layers: list[list[jax.Array]], head: jax.Array, x: jax.Array) -> jax.Array:
        for qkv, out, gate_up, down in layers:
            x = x + linear(linear(x, qkv)[:, :MODEL], out)
            gate, up = jnp.split(linear(x, gate_up), 2, axis=-1)
            x = x + linear(jax.nn.silu(gate) * up, down)
        return linear(x, head)

    return jax.jit(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 8, 32, 128])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print("| weights | " + " | ".join(f"{rows} rows" for rows in args.rows) + " |")
    print("|---" * (len(args.rows) + 1) + "|")
    for dtype, layout in VARIANTS:
        weights, step, cells = make_weights(dtype, layout), make_step(layout), []
        for rows in args.rows:
            x = jnp.ones((rows, MODEL), jnp.float32)
            step(*weights, x).block_until_ready()
            times = []
            for _ in range(args.repeats):
                start = time.perf_counter()
                step(*weights, x).block_until_ready()
                times.append((time.perf_counter() - start) * 1e3)
            cells.append(f"{min(times):.1f}")
        name = "[out, in]" if layout == "oi" else "[in, out]"
        print(f"| {dtype} {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
