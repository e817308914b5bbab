"""The process that runs kernels for ``tune_kernels.py``: a kernel that hangs is killed with it.

Reads one JSON job per line, ``{"op", "shape", "config"}``, and answers each with one line:
``{"us": median microseconds of a call}`` or ``{"error": text}``.  The first line it writes says
where it runs.  Inputs are random; pages that no row owns hold NaN; every configuration's output
is compared with the ``xla`` implementation's before it is timed.
"""

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import pallas, xla
from pallas_kernels.tuning import CONFIG_OF_OP, AttentionShape, device_name

CHAINED_CALLS = 20  # in one program: a dispatch costs more than a short kernel
DRY_CALLS = 2
ROUNDS = 5
DISPATCHES = 4  # in a row before waiting
COLD_BYTES = 160 * 2**20  # over three times the L2 of an H100: what one input set must not fit
MAX_POOL_BYTES = 8 * 2**30
EXTEND_ROWS = 8
TOLERANCE = 2e-2  # of bf16 against f32 statistics, outputs of unit size


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """Several page tables over one pool, so that no call finds the last one's keys in L2."""

    q: jax.Array
    k_pages: jax.Array
    v_pages: jax.Array
    page_tables: tuple[jax.Array, ...]
    kv_lens: jax.Array
    q_starts: jax.Array  # of extend

    @property
    def num_tokens(self) -> int:
        return int(self.q_starts[-1])


def make_inputs(op: str, shape: AttentionShape, seed: int = 0) -> Inputs:
    """Random rows that the shape's table can hold, of at least a quarter of its context."""
    rng = np.random.default_rng(seed)
    num_rows = shape.num_tokens if op == "decode" else EXTEND_ROWS
    q_lens = np.ones(num_rows, np.int64)
    if op == "extend":
        cuts = np.sort(rng.integers(0, shape.num_tokens + 1, num_rows - 1))
        q_lens = np.diff(np.concatenate([[0], cuts, [shape.num_tokens]]))
        q_lens = np.minimum(q_lens, shape.context)
    lowest = np.maximum(q_lens, shape.context // 4)
    kv_lens = np.where(q_lens > 0, rng.integers(lowest, shape.context + 1), 0)
    pages = -(-kv_lens // shape.page_size)
    page_bytes = 2 * shape.num_kv_heads * shape.page_size * shape.head_dim * shape.kv_itemsize
    set_bytes = int(pages.sum()) * page_bytes
    num_sets = int(min(CHAINED_CALLS, -(-COLD_BYTES // set_bytes), MAX_POOL_BYTES // set_bytes))
    num_sets = max(1, num_sets)
    num_pages = 1 + num_sets * int(pages.sum()) + 1  # the null page, and one that nobody owns
    free = iter(rng.permutation(np.arange(1, num_pages - 1)).tolist())
    tables = []
    for _ in range(num_sets):
        table = np.zeros((num_rows, shape.pages_per_row), np.int32)
        for row, count in enumerate(pages):
            table[row, :count] = [next(free) for _ in range(count)]
        tables.append(jnp.asarray(table))
    pool = (num_pages, shape.num_kv_heads, shape.page_size, shape.head_dim)
    keys = jax.random.split(jax.random.key(seed), 3)
    k_pages, v_pages = (_poisoned(key, pool, shape.kv_dtype) for key in keys[:2])
    q = jax.random.normal(
        keys[2], (shape.num_tokens, shape.num_heads, shape.head_dim), jnp.float32
    ).astype(jnp.bfloat16 if shape.is_fp8 else shape.kv_dtype)
    q_starts = np.concatenate([[0], np.cumsum(q_lens)])
    ints = (jnp.asarray(x, jnp.int32) for x in (kv_lens, q_starts))
    return Inputs(q, k_pages, v_pages, tuple(tables), *ints)


@partial(jax.jit, static_argnums=(1, 2))
def _poisoned(key: jax.Array, pool: tuple[int, ...], dtype: str) -> jax.Array:
    """Normal numbers; NaN in the null page and in the last, which no row owns."""
    pages = jax.random.normal(key, pool, jnp.float32).astype(dtype)
    return pages.at[jnp.asarray([0, pool[0] - 1], jnp.int32)].set(jnp.nan)


def attention(module: object, op: str, shape: AttentionShape, **config: object) -> Callable:
    """``op`` of an implementation module as a function of (inputs, page table, kv_lens)."""
    function = vars(module)[f"paged_{op}_attention"]
    call = jax.jit(partial(function, scale=shape.head_dim**-0.5, **config))

    def attend(inputs: Inputs, page_table: jax.Array, kv_lens: jax.Array) -> jax.Array:
        starts = () if op == "decode" else (inputs.q_starts,)
        return call(inputs.q, inputs.k_pages, inputs.v_pages, page_table, kv_lens, *starts)

    return attend


def seconds_per_call(attend: Callable, inputs: Inputs, num_calls: int) -> float:
    """Median over rounds; one call starts when the one before has ended, as in a model."""

    def chain(tree: Inputs) -> jax.Array:
        kv_lens = tree.kv_lens
        for index in range(num_calls):
            out = attend(tree, tree.page_tables[index % len(tree.page_tables)], kv_lens)
            # never true of a kernel that passed the check, but XLA cannot know
            kv_lens = jnp.where(jnp.isnan(out[0, 0, 0]), 0, kv_lens)
        return out

    run = jax.jit(chain)
    run(inputs).block_until_ready()
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        outs = [run(inputs) for _ in range(DISPATCHES)]
        jax.block_until_ready(outs)
        rounds.append((time.perf_counter() - started) / (num_calls * DISPATCHES))
    return statistics.median(rounds)


@functools.lru_cache(maxsize=1)  # jobs come shape by shape
def prepared(op: str, shape: AttentionShape) -> tuple[Inputs, np.ndarray]:
    """Inputs, and what ``xla`` makes of them."""
    inputs = make_inputs(op, shape)
    expected = attention(xla, op, shape)(inputs, inputs.page_tables[0], inputs.kv_lens)
    return inputs, np.asarray(expected, np.float32)


def measure(job: dict, *, is_dry: bool) -> dict:
    """Check and time one configuration."""
    op, shape = job["op"], AttentionShape(**job["shape"])
    config = CONFIG_OF_OP[op](**job["config"])
    inputs, expected = prepared(op, shape)
    attend = attention(xla, op, shape) if is_dry else attention(pallas, op, shape, config=config)
    out = attend(inputs, inputs.page_tables[0], inputs.kv_lens)
    difference = np.abs(np.asarray(out, np.float32) - expected).max()
    if not difference <= TOLERANCE:  # NaN is a failure
        return {"error": f"differs from xla by {difference:.3g}, allowed is {TOLERANCE}"}
    num_calls = DRY_CALLS if is_dry else CHAINED_CALLS
    return {"us": seconds_per_call(attend, inputs, num_calls) * 1e6}


def main() -> None:
    """Answer jobs until standard input ends."""
    is_dry = "--dry-run" in sys.argv[1:]
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    kind = "dry_run" if is_dry else device_name()
    hello = {"device": kind, "backend": jax.default_backend(), "jax": jax.__version__}
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = measure(json.loads(line), is_dry=is_dry)
        except Exception as error:  # a configuration that fails is an answer
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
