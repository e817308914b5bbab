"""The start-up check of attention kernels: on random pages of the real shapes, do two agree?

A kernel can be wrong on one machine and right on all others: a driver, a compiler, a card.  So
the implementation that is about to serve is compared with another one before it does, in
milliseconds and before any memory is planned.  Rows end just before, at and after the edges of
pages and tiles; everything that no row owns is NaN, so that reading it shows.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.errors import DeviceHangError
from jaxserve.models import (
    BF16_BITS,
    FP8,
    FP8_BITS,
    AttnContext,
    add_rms_norm,
    attend,
    supports_add_rms_norm,
)

TILE = 64  # tokens that the kernels work on at a time
# Allowed difference of outputs of size one, by the dtype that they are rounded to.
TOLERANCES = {"bfloat16": 3e-2, "float16": 4e-3, "float32": 1e-3}
# Scores of this spread let a few keys decide each output: one key too many or too few shows.
SCORE_SPREAD = 3.0

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShapes:
    """The static sizes of one device's attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    hidden_size: int  # of the residual stream
    dtype: jnp.dtype  # of queries, keys and values, and of the residual stream
    kv_dtype: jnp.dtype  # of the pools


@dataclass(frozen=True, slots=True)
class _Case:
    """One call of ``attend``: rows of ``kv_lens``, of which the last ``q_lens`` are new."""

    name: str
    kv_lens: tuple[int, ...]
    q_lens: tuple[int, ...]
    is_decode: bool


def find_problem(
    implementation: str, shapes: KernelShapes, *, baseline: str = "xla", timeout_s: float = 120.0
) -> str | None:
    """What is wrong with ``implementation`` on this device; None when it agrees with ``baseline``.

    Raises:
        DeviceHangError: no answer in time: the device will not take other work either.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="kernel-check")
    future = pool.submit(_compare, implementation, baseline, shapes)
    pool.shutdown(wait=False)
    try:
        error = future.exception(timeout_s)
    except TimeoutError:
        raise DeviceHangError(
            f"the {implementation} attention kernels gave no answer in {timeout_s:.0f} s, and the "
            f"device is busy with them; restart with --attention-backend {baseline}"
        ) from None
    if error is not None:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return future.result()


def _compare(implementation: str, baseline: str, shapes: KernelShapes) -> str | None:
    tolerance = TOLERANCES[jnp.dtype(shapes.dtype).name]
    names = (implementation, baseline)
    for case in _cases(shapes.page_size):
        arrays, context = _inputs(case, shapes)
        got, expected = (_run(name, arrays, context, shapes) for name in names)
        problem = _difference(case, got, expected, tolerance)
        if problem is not None:
            return problem
    if supports_add_rms_norm(shapes.hidden_size, shapes.dtype):
        for num_parts in (0, 4):
            got, expected = (_run_norm(name, num_parts, shapes) for name in names)
            if not np.all(np.abs(got - expected) <= tolerance * (1.0 + np.abs(expected))):
                return f"add_rms_norm of {num_parts or 'no'} partial sums differs"
    return None


def _cases(page_size: int) -> tuple[_Case, ...]:
    edges = (1, page_size - 1, page_size, page_size + 1, TILE, TILE + 1, 2 * TILE - 1)
    decode = tuple(length for length in (*edges, 5 * TILE + 3) if length > 0)
    extend_kv = (page_size, 1, 2 * TILE + 5, page_size + 1, TILE + page_size, 0)
    extend_q = (page_size, 1, TILE + 7, 1, TILE, 0)
    return (
        _Case("decode", (*decode, 0), (*(1 for _ in decode), 0), is_decode=True),
        _Case("extend", extend_kv, extend_q, is_decode=False),
    )


def _inputs(case: _Case, shapes: KernelShapes) -> tuple[tuple[Array, ...], dict[str, Array | bool]]:
    """q, k, v, k_pages, v_pages and the fields of ``AttnContext``."""
    rng = np.random.default_rng(len(case.kv_lens))
    page_size = shapes.page_size
    kv_lens, q_lens = np.asarray(case.kv_lens, np.int32), np.asarray(case.q_lens, np.int32)
    num_pages = -(-kv_lens // page_size)
    table = np.zeros((len(kv_lens), int(num_pages.max())), np.int32)
    order = 1 + rng.permutation(int(num_pages.sum()) + 3).astype(np.int32)  # 3 of nobody
    starts = np.cumsum(num_pages) - num_pages
    for row, (start, count) in enumerate(zip(starts, num_pages, strict=True)):
        table[row, :count] = order[start : start + count]
    slots = [_slots(table[row], kv_lens[row], page_size) for row in range(len(kv_lens))]
    new = [mine[len(mine) - q_len :] for mine, q_len in zip(slots, q_lens, strict=True)]
    old = np.concatenate([mine[: len(mine) - q] for mine, q in zip(slots, q_lens, strict=True)])
    if case.is_decode:  # one token per row, also of a row that has none
        new = [mine if len(mine) else np.zeros(1, np.int32) for mine in new]
    write_slots = np.concatenate([*new, np.zeros(0 if case.is_decode else 3, np.int32)])
    num_tokens = len(write_slots)

    def random(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    pools = []
    for _ in range(2):
        flat = np.full(((len(order) + 1) * page_size, shapes.num_kv_heads, shapes.head_dim), np.nan)
        flat[old] = random(len(old), shapes.num_kv_heads, shapes.head_dim)
        paged = flat.reshape(-1, page_size, *flat.shape[1:]).swapaxes(1, 2)
        pools.append(_stored(paged.astype(np.float32), shapes.kv_dtype))
    heads = (shapes.num_heads, shapes.num_kv_heads, shapes.num_kv_heads)
    qkv = [random(num_tokens, count, shapes.head_dim).astype(shapes.dtype) for count in heads]
    context: dict[str, Array | bool] = {
        "positions": np.zeros(num_tokens, np.int32),  # turning is not the kernels' business
        "write_slots": write_slots.astype(np.int32),
        "page_table": table,
        "kv_lens": kv_lens,
        "q_starts": np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32),
        "is_decode": case.is_decode,
    }
    return (*qkv, *pools), context


def _slots(pages: Array, length: int, page_size: int) -> Array:
    """i32[length]: where a row's tokens lie in a pool."""
    positions = np.arange(length, dtype=np.int32)
    return pages[positions // page_size] * page_size + positions % page_size


def _stored(pages: Array, dtype: jnp.dtype) -> Array:
    if dtype == BF16_BITS:
        return pages.astype(jnp.bfloat16).view(np.uint16)
    if dtype == FP8_BITS:
        return pages.astype(FP8).view(np.uint8)
    return pages.astype(dtype)


def _run(
    implementation: str,
    arrays: Sequence[Array],
    fields: dict[str, Array | bool],
    shapes: KernelShapes,
) -> Array:
    context = AttnContext(**fields, implementation=implementation)  # type: ignore[arg-type]
    scale = SCORE_SPREAD * shapes.head_dim**-0.5
    step: Callable[..., tuple[jax.Array, ...]] = jax.jit(partial(attend, scale=scale))
    return np.asarray(step(*arrays, context)[0].astype(jnp.float32))


def _run_norm(implementation: str, num_parts: int, shapes: KernelShapes) -> Array:
    """The sum and its norm, of three rows; a delta of so many partial sums, or a whole one."""
    rng = np.random.default_rng(num_parts)
    rows = (3, shapes.hidden_size)
    x = rng.standard_normal(rows).astype(shapes.dtype)
    delta = rng.standard_normal((num_parts, *rows) if num_parts else rows).astype(np.float32)
    weight = rng.standard_normal(rows[1]).astype(shapes.dtype)
    step = jax.jit(partial(add_rms_norm, epsilon=1e-5, implementation=implementation))
    results = step(x, delta if num_parts else delta.astype(shapes.dtype), weight)
    return np.stack([np.asarray(result.astype(jnp.float32)) for result in results])


def _difference(case: _Case, got: Array, expected: Array, tolerance: float) -> str | None:
    """Which row differs by more than rounding; NaN differs from everything."""
    excess = np.abs(got - expected) - tolerance * (1.0 + np.abs(expected))
    by_token = np.max(np.where(np.isnan(excess), np.inf, excess), axis=(1, 2))
    worst = int(np.argmax(by_token))
    if by_token[worst] <= 0:
        return None
    ends = np.arange(1, len(case.kv_lens) + 1) if case.is_decode else np.cumsum(case.q_lens)
    row = int(np.searchsorted(ends, worst, side="right"))
    where = f"row {row} of length {case.kv_lens[row]}" if row < len(ends) else "the padding"
    apart = np.max(np.abs(got[worst] - expected[worst]))
    return (
        f"{case.name} of {where}: outputs differ by {apart:.3g}, allowed is {tolerance:g} of "
        "their size"
    )
