"""Decode calls with their answer in f64, and a check of the kernel under the GPU interpreter.

Run as a program it runs the cases it is given (a JSON list of ``Spec`` fields) one after the other
and prints one JSON line for each.  The interpreter can hang after an error, so tests run it in a
process of its own, with a timeout; on a race it prints, from jax 0.12 on it raises.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import hopper, paged_decode
from pallas_kernels.decode_tiles import DecodePlan
from pallas_kernels.layout import FP8, KVLayout
from pallas_kernels.tuning import DecodeConfig


@dataclass(frozen=True)
class Spec:
    """One call; ``shared`` rows begin with the first pages of row 0."""

    kv_lens: tuple[int, ...]
    group: int = 4
    num_kv_heads: int = 1
    head_dim: int = 64
    page_size: int = 16
    dtype: str = "bfloat16"
    kv_dtype: str = ""  # of the pools; "": dtype
    kv_scales: tuple[float, float] = (1.0, 1.0)  # of keys and of values, with e4m3
    num_splits: int = 1
    block_kv: int = 64
    num_stages: int = 2
    logit_soft_cap: float | None = None
    sliding_window: int | None = None
    shared_pages: int = 0
    waits_for_slot: bool = True
    waits_for_data: bool = True

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def is_fp8(self) -> bool:
        return self.kv_dtype == FP8.name

    @classmethod
    def of(cls, values: dict[str, object]) -> "Spec":
        """From decoded JSON, which has no tuples."""
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **tuples})


@dataclass(frozen=True)
class Case:
    """Arguments of the call, and its result in f64."""

    arrays: tuple[jax.Array, ...]
    expected: np.ndarray  # [B, N, H]


def make_case(spec: Spec, seed: int = 0) -> Case:
    """Random rows; NaN in the null page, in pages of nobody, and past every row's end."""
    rng = np.random.default_rng(seed)
    pages_of = [-(-length // spec.page_size) for length in spec.kv_lens]
    num_pages, width = 2 + sum(pages_of), max(1, *pages_of)
    pools = np.full((2, num_pages, spec.num_kv_heads, spec.page_size, spec.head_dim), np.nan)
    table = np.zeros((len(spec.kv_lens), width), np.int32)
    free = iter(rng.permutation(np.arange(1, num_pages)))
    for row, (length, count) in enumerate(zip(spec.kv_lens, pages_of, strict=True)):
        table[row, :count] = [next(free) for _ in range(count)]
        if row:
            shared = min(spec.shared_pages, length // spec.page_size)
            table[row, :shared] = table[0, :shared]
        for position in range(length):
            slot = (slice(None), table[row, position // spec.page_size], slice(None))
            shape = pools[slot][:, :, 0].shape
            if np.isnan(pools[slot][:, :, position % spec.page_size]).any():
                pools[slot][:, :, position % spec.page_size] = rng.standard_normal(shape)
    heads = spec.num_kv_heads * spec.group
    q = rng.standard_normal((len(spec.kv_lens), heads, spec.head_dim))
    q, kv_lens = jnp.asarray(q, spec.dtype), jnp.asarray(spec.kv_lens, jnp.int32)
    pools = [
        jnp.asarray(pool / scale, jnp.float32).astype(spec.kv_dtype or spec.dtype)
        for pool, scale in zip(pools, spec.kv_scales, strict=True)
    ]
    used = (
        np.asarray(pool, np.float64) * scale
        for pool, scale in zip(pools, spec.kv_scales, strict=True)
    )
    arrays = (q, *pools, jnp.asarray(table), kv_lens)
    return Case(arrays, _oracle(spec, np.asarray(q, np.float64), *used, table))


def _oracle(spec: Spec, q, k_pages, v_pages, table) -> np.ndarray:
    """Attention of each row over its own keys, gathered one position at a time."""
    out = np.zeros_like(q)
    for row, length in enumerate(spec.kv_lens):
        start = 0 if spec.sliding_window is None else max(0, length - spec.sliding_window)
        positions = range(start, length)
        if not positions:
            continue
        keys, values = (
            np.stack([p[table[row, i // spec.page_size], :, i % spec.page_size] for i in positions])
            for p in (k_pages, v_pages)
        )  # [S, K, H]
        for head in range(q.shape[1]):
            scores = keys[:, head // spec.group] @ q[row, head] * spec.scale
            if spec.logit_soft_cap is not None:
                scores = spec.logit_soft_cap * np.tanh(scores / spec.logit_soft_cap)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ values[:, head // spec.group] / weights.sum()
    return out


def run_kernel(spec: Spec, case: Case) -> jax.Array:
    """The kernel under the interpreter, with race detection."""
    q, k_pages, *_ = case.arrays
    plan = DecodePlan(
        num_rows=q.shape[0],
        num_heads=q.shape[1],
        layout=KVLayout.of(k_pages),
        scale=spec.scale,
        logit_soft_cap=spec.logit_soft_cap,
        sliding_window=spec.sliding_window,
        config=DecodeConfig(spec.num_splits, spec.block_kv, spec.num_stages),
        warpgroup=hopper.Warpgroup(interpreted=True),
        is_fp8=spec.is_fp8,
        waits_for_slot=spec.waits_for_slot,
        waits_for_data=spec.waits_for_data,
    )
    scales = None
    if spec.kv_scales != (1.0, 1.0):
        scales = jnp.asarray(spec.kv_scales, jnp.float32)
    run = jax.jit(
        lambda *arrays: paged_decode.run(plan, *arrays, hopper.interpreter_params(), scales)
    )
    return run(*case.arrays)


def error_of(spec: Spec) -> float:
    """The largest absolute error; NaN if there is one in the result."""
    case = make_case(spec)
    out = np.asarray(run_kernel(spec, case), np.float64)
    return float(np.max(np.abs(out - case.expected)))


def main() -> None:
    for values in json.loads(sys.argv[1]):
        spec = Spec.of(values)
        print(json.dumps({**dataclasses.asdict(spec), "error": error_of(spec)}), flush=True)


if __name__ == "__main__":
    main()
