"""Programs of many chained kernel calls over large pools, and their times.

A program holds several calls, each one's output the next one's queries, so that they run one
after another without the host in between; every call reads other pages than the one before it,
so that no call finds its keys in the L2 cache.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpu.kernel_cases import DTYPES, KernelCase, argument_specs, attention_of
from gpu.timing import Timing, measure

L2_BYTES = 256 << 20  # of pages read before one is read again; an H100's L2 has 50 MB
PROGRAM_S = 400e-6  # a program runs for about so long
MAX_CALLS = 16
GUESSED_BYTES_PER_S, GUESSED_FLOPS, GUESSED_LEAST_S = 3e12, 5e14, 10e-6
RANDOM_PAGES = 512  # that differ; a larger pool repeats them


def num_calls(case: KernelCase) -> int:
    """Calls in one program."""
    once = max(case.kv_bytes / GUESSED_BYTES_PER_S, case.flops / GUESSED_FLOPS, GUESSED_LEAST_S)
    return max(2, min(MAX_CALLS, round(PROGRAM_S / once)))


def num_tables(case: KernelCase) -> int:
    """Sets of pages that the calls take in turns."""
    return max(1, min(num_calls(case), math.ceil(L2_BYTES / max(case.kv_bytes, 1))))


def pages_needed(case: KernelCase) -> int:
    """Of a pool, the null page included."""
    return 1 + num_tables(case) * case.num_owned_pages


@dataclass(frozen=True, slots=True)
class Pool:
    """Keys and values on the device, large enough for every case that is to use it."""

    k: jax.Array
    v: jax.Array
    key: tuple[Any, ...]


def pool_key(case: KernelCase) -> tuple[Any, ...]:
    return (case.num_kv_heads, case.page_size, case.head_dim, case.stored_dtype)


class Pools:
    """Holds one pool at a time, of the pages that the largest of ``cases`` of its kind needs."""

    def __init__(self, cases: Sequence[KernelCase], seed: int) -> None:
        self._seed = seed
        self._num_pages: dict[tuple[Any, ...], int] = {}
        for case in cases:
            key = pool_key(case)
            self._num_pages[key] = max(self._num_pages.get(key, 0), pages_needed(case))
        self._held: list[Pool] = []

    def num_pages(self, case: KernelCase) -> int:
        return self._num_pages[pool_key(case)]

    def get(self, case: KernelCase) -> Pool:
        """The pool for ``case``; a pool of another kind is let go first."""
        if not self._held or self._held[0].key != pool_key(case):
            self._held.clear()
            shape = case.pool_shape(self.num_pages(case))
            fill = jax.jit(_random_pool, static_argnums=(1, 2))
            keys = jax.random.split(jax.random.key(self._seed))
            k, v = (fill(key, shape, DTYPES[case.stored_dtype]) for key in keys)
            self._held.append(Pool(k, v, pool_key(case)))
        return self._held[0]


def _random_pool(key: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    block = jax.random.normal(key, (min(RANDOM_PAGES, shape[0]), *shape[1:]), jnp.float32)
    repeats = -(-shape[0] // block.shape[0])
    return jnp.tile(block.astype(dtype), (repeats, 1, 1, 1))[: shape[0]]


@dataclass(frozen=True, slots=True)
class TimedKernel:
    """A case, timed with one implementation over a shared pool."""

    case: KernelCase
    implementation: str
    pools: Pools
    seed: int = 0

    def lower(self) -> list[Any]:
        case = self.case
        specs = argument_specs(case, self.pools.num_pages(case))
        table = specs.pop("page_table")
        tables = tuple(table for _ in range(num_tables(case)))
        return [jax.jit(chained(case, self.implementation)).lower(specs, tables)]

    def time(self, program: Any, budget_s: float) -> Timing:
        arguments, tables = self._arguments()
        return measure(
            lambda: program(arguments, tables),
            jax.block_until_ready,
            calls_per_launch=num_calls(self.case),
            budget_s=budget_s,
        )

    def _arguments(self) -> tuple[dict[str, jax.Array], tuple[jax.Array, ...]]:
        case, rng = self.case, np.random.default_rng(self.seed)
        pool = self.pools.get(case)
        specs = argument_specs(case, pool.k.shape[0])
        q = jax.random.normal(jax.random.key(self.seed), specs["q"].shape, jnp.float32)
        arguments = {
            "q": q.astype(specs["q"].dtype),
            "k_pages": pool.k,
            "v_pages": pool.v,
            "kv_lens": jnp.asarray(case.kv_lens, jnp.int32),
        }
        if case.op == "extend":
            ends = np.cumsum([new for _, new in case.rows])
            arguments["q_starts"] = jnp.asarray([0, *ends], jnp.int32)
        if case.is_fp8:
            arguments |= {"k_scale": jnp.float32(0.05), "v_scale": jnp.float32(0.05)}
        free = 1 + rng.permutation(pool.k.shape[0] - 1)
        tables = []
        for _ in range(num_tables(case)):
            table = np.zeros((len(case.rows), case.pages_per_row), np.int32)
            for row, length in enumerate(case.kv_lens):
                count = -(-length // case.page_size)
                table[row, :count], free = free[:count], free[count:]
            tables.append(jnp.asarray(table))
        return arguments, tuple(tables)


def chained(case: KernelCase, implementation: str) -> Callable[..., jax.Array]:
    """``f(arguments without page_table, tables) -> out`` of ``num_calls`` calls in a row."""
    # A jit of its own: traced and lowered once, not once per call.
    attention = jax.jit(attention_of(case, implementation))

    def run(arguments: dict[str, jax.Array], tables: tuple[jax.Array, ...]) -> jax.Array:
        q = arguments["q"]
        for index in range(num_calls(case)):
            table = tables[index % len(tables)]
            q = attention(arguments | {"q": q, "page_table": table})
        return q

    return run


def decode_case(batch: int, context: int, **fields: Any) -> KernelCase:
    """``batch`` rows of ``context`` tokens each."""
    label = f"B{batch} ctx{context}"
    return KernelCase(op="decode", rows=((context - 1, 1),) * batch, label=label, **fields)


def extend_case(new: int, before: int = 0, **fields: Any) -> KernelCase:
    """One prompt of ``new`` tokens behind ``before`` cached ones."""
    label = f"{new} tokens" + (f" on {before}" if before else "")
    return KernelCase(op="extend", rows=((before, new),), label=label, **fields)


def mixed_case(num_tokens: int, num_decode_rows: int, seed: int = 0, **fields: Any) -> KernelCase:
    """Prompts of many lengths, a third of them behind a cached prefix, and decode rows."""
    rng = np.random.default_rng(seed)
    rows = [(int(rng.integers(1, num_tokens)), 1) for _ in range(num_decode_rows)]
    left = num_tokens - num_decode_rows
    while left > 0:
        new = min(left, max(1, int(rng.lognormal(math.log(num_tokens / 24), 1.0))))
        rows.append((int(rng.integers(0, num_tokens // 4)) if rng.random() < 1 / 3 else 0, new))
        left -= new
    case = KernelCase(op="extend", rows=tuple(rows), **fields)
    return replace(case, label=f"mix of {len(rows)} rows, {num_tokens} tokens")
