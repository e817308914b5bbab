"""Paged attention calls to try, each with its answer from a dense f64 oracle in numpy.

Pages that nobody owns, the null page, and the tail of a last page hold NaN or infinity: what an
op reads beyond a row shows at once.  The oracle sees keys and values as the pool stores them.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from pallas_kernels import BF16_BITS, FP8_BITS

FP8 = "float8_e4m3fn"


@dataclass(frozen=True)
class Spec:
    """Rows as (tokens before this step, tokens of this step)."""

    rows: tuple[tuple[int, int], ...]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    page_size: int = 16
    padding_tokens: int = 3
    padding_rows: int = 1
    extra_pages: int = 2
    dtype: str = "float32"  # of q
    kv_dtype: str | None = None  # of the pools; None: that of q
    poison: float = float("nan")
    logit_soft_cap: float | None = None
    sliding_window: int | None = None
    kv_scales: tuple[float, float] | None = None

    @property
    def kv_lens(self) -> list[int]:
        return [before + new for before, new in self.rows]

    @property
    def scale(self) -> float:
        return float(self.head_dim) ** -0.5

    @property
    def pages_needed(self) -> list[int]:
        return [-(-length // self.page_size) for length in self.kv_lens]

    @property
    def stored(self) -> np.dtype:
        """The pools' dtype in numpy; bits of bf16 are uint16."""
        name = self.kv_dtype or self.dtype
        return np.dtype(getattr(ml_dtypes, name, name))


def decode_spec(*kv_lens: int, **fields: object) -> Spec:
    """One new token per row; a length of 0 is left to the padding rows, which come last."""
    rows = tuple((length - 1, 1) for length in kv_lens)
    return Spec(rows=rows, **{"padding_tokens": 2, "padding_rows": 2} | fields)


EXTEND_SPECS = {
    "page_edges": Spec(rows=((0, 1), (0, 15), (0, 16), (0, 17))),
    "tile_edges": Spec(rows=((0, 63), (0, 64), (0, 65), (0, 150))),
    "prefixes": Spec(rows=((48, 10), (16, 70), (300, 5), (0, 3))),
    "block_edges": Spec(rows=((127, 1), (128, 1), (129, 2), (255, 1))),
    "mixed": Spec(rows=((33, 1), (0, 20), (0, 0), (64, 1), (4, 20))),
    "one_token": Spec(rows=((0, 1),), padding_rows=0, padding_tokens=0),
    "group_1": Spec(rows=((5, 30), (0, 9)), num_heads=2),
    "group_3": Spec(rows=((5, 30),), num_heads=9, num_kv_heads=3, head_dim=64),
    "group_16": Spec(rows=((5, 30),), num_heads=16, num_kv_heads=1, head_dim=64),
    "page_1": Spec(rows=((3, 4), (0, 2)), page_size=1),
    "page_64": Spec(rows=((60, 8), (0, 64)), page_size=64),
    "page_256": Spec(rows=((250, 20),), page_size=256),
    "much_padding": Spec(rows=((0, 7),), padding_rows=7, padding_tokens=60),
    "infinities": Spec(rows=((40, 30), (0, 12)), poison=float("inf")),
}
DECODE_SPECS = {
    "page_edges": decode_spec(1, 15, 16, 17),
    "block_edges": decode_spec(127, 128, 129, 256, 257),
    "full": decode_spec(64, 64, padding_rows=0, padding_tokens=0),
    "group_1": decode_spec(1, 300, 16, 77, num_heads=2),
    "group_3": decode_spec(1, 300, 16, 77, num_heads=9, num_kv_heads=3, head_dim=64),
    "group_8": decode_spec(1, 300, 16, 77, num_heads=8, num_kv_heads=1),
    "group_16": decode_spec(1, 300, 16, 77, num_heads=16, num_kv_heads=1),
    "infinities": decode_spec(1, 130, poison=float("inf")),
}
# Every option of the ops, for decode and for extend.  Window edges: within a page, across a
# block of the portable path (128), longer than every row.
OPTIONS: dict[str, dict[str, object]] = {
    "cap": {"logit_soft_cap": 0.7},
    "window_1": {"sliding_window": 1},
    "window_5": {"sliding_window": 5},
    "window_130": {"sliding_window": 130},
    "window_500": {"sliding_window": 500},
    "cap_and_window": {"logit_soft_cap": 2.0, "sliding_window": 40},
    "f16": {"dtype": "float16"},
    "bf16": {"dtype": "bfloat16"},
    "bf16_bits": {"kv_dtype": "uint16", "sliding_window": 40},
    "fp8": {"kv_dtype": FP8},
    "fp8_bits": {"kv_dtype": "uint8", "kv_scales": (0.25, 1.75)},
    "fp8_scales": {"kv_dtype": FP8, "kv_scales": (0.25, 1.75)},
    "fp8_all": {
        "dtype": "bfloat16", "kv_dtype": FP8, "kv_scales": (3.0, 0.5), "sliding_window": 40,
        "logit_soft_cap": 5.0,
    },
}  # fmt: skip
EXTEND_SPECS |= {
    name: replace(Spec(rows=((290, 30), (0, 70), (140, 1))), **fields)
    for name, fields in OPTIONS.items()
}
DECODE_SPECS |= {name: decode_spec(1, 300, 17, 129, **fields) for name, fields in OPTIONS.items()}

TOLERANCE = {"float32": 3e-5, "float16": 4e-3, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Case:
    spec: Spec
    q: jax.Array
    k_pages: jax.Array
    v_pages: jax.Array
    page_table: jax.Array
    kv_lens: jax.Array
    q_starts: jax.Array
    expected: np.ndarray  # f64[T, N, H], 0 for padding tokens

    @property
    def options(self) -> dict[str, object]:
        """The keyword arguments of the call."""
        spec = self.spec
        scales = (None, None)
        if spec.kv_scales is not None:
            scales = tuple(jnp.float32(value) for value in spec.kv_scales)
        return {
            "scale": spec.scale,
            "logit_soft_cap": spec.logit_soft_cap,
            "sliding_window": spec.sliding_window,
            "k_scale": scales[0],
            "v_scale": scales[1],
        }

    @property
    def decode_arguments(self) -> tuple[jax.Array, ...]:
        return (self.q, self.k_pages, self.v_pages, self.page_table, self.kv_lens)

    @property
    def extend_arguments(self) -> tuple[jax.Array, ...]:
        return (*self.decode_arguments, self.q_starts)

    def check(self, out: jax.Array) -> None:
        """``out`` is the oracle's answer: in q's dtype, zero where there is no row."""
        assert out.dtype == self.q.dtype
        out = np.asarray(out, np.float64)
        tolerance = TOLERANCE[self.spec.dtype]
        np.testing.assert_allclose(out, self.expected, atol=tolerance, rtol=tolerance)
        np.testing.assert_array_equal(out[int(self.q_starts[-1]) :], 0.0)


def make_case(spec: Spec, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    needed = spec.pages_needed
    num_pages = 1 + sum(needed) + spec.extra_pages
    shape = (num_pages, spec.num_kv_heads, spec.page_size, spec.head_dim)
    k_pages, v_pages = (_stored(np.full(shape, spec.poison), spec) for _ in range(2))
    free = iter(rng.permutation(np.arange(1, num_pages)).tolist())
    num_rows = len(spec.rows) + spec.padding_rows
    is_full = not spec.padding_rows and spec.kv_lens == [max(needed) * spec.page_size] * num_rows
    page_table = np.zeros((num_rows, max(needed) + (not is_full)), np.int32)
    new = [count for _, count in spec.rows]
    num_tokens = sum(new) + spec.padding_tokens
    q = rng.standard_normal((num_tokens, spec.num_heads, spec.head_dim))
    q = np.asarray(jnp.asarray(q, spec.dtype), np.float64)
    expected = np.zeros(q.shape)
    starts = np.concatenate([[0], np.cumsum(new), np.full(spec.padding_rows, sum(new))])
    for row, ((before, count), length) in enumerate(zip(spec.rows, spec.kv_lens, strict=True)):
        k, v = (
            _stored(rng.standard_normal((length, spec.num_kv_heads, spec.head_dim)), spec)
            for _ in range(2)
        )
        page_table[row, : needed[row]] = [next(free) for _ in range(needed[row])]
        for position in range(length):
            page = page_table[row, position // spec.page_size]
            k_pages[page, :, position % spec.page_size] = k[position]
            v_pages[page, :, position % spec.page_size] = v[position]
        mine = slice(starts[row], starts[row] + count)
        expected[mine] = dense(spec, q[mine], _numbers(k, spec, 0), _numbers(v, spec, 1), before)
    kv_lens = np.asarray(spec.kv_lens + [0] * spec.padding_rows, np.int32)
    tables = (jnp.asarray(x, jnp.int32) for x in (page_table, kv_lens, starts))
    pools = (jnp.asarray(x) for x in (k_pages, v_pages))
    return Case(spec, jnp.asarray(q, spec.dtype), *pools, *tables, expected)


def dense(
    spec: Spec, q: np.ndarray, keys: np.ndarray, values: np.ndarray, before: int
) -> np.ndarray:
    """Causal softmax attention of one row in f64."""
    keys, values = (
        np.repeat(x, spec.num_heads // spec.num_kv_heads, axis=1) for x in (keys, values)
    )
    scores = np.einsum("tnh,snh->nts", q, keys) * spec.scale
    if spec.logit_soft_cap is not None:
        scores = spec.logit_soft_cap * np.tanh(scores / spec.logit_soft_cap)
    behind = before + np.arange(len(q))[:, None] - np.arange(len(keys))[None, :]
    window = spec.sliding_window or len(keys)
    scores[:, (behind < 0) | (behind >= window)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-1e300))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("nts,snh->tnh", weights, values)


def _stored(values: np.ndarray, spec: Spec) -> np.ndarray:
    """Numbers as the pool holds them; the scales are those of reading."""
    if spec.stored == BF16_BITS:
        return values.astype(ml_dtypes.bfloat16).view(np.uint16)
    if spec.stored == FP8_BITS:
        return values.astype(FP8).view(np.uint8)
    return values.astype(spec.stored)


def _numbers(stored: np.ndarray, spec: Spec, which: int) -> np.ndarray:
    """What the pool's contents stand for, f64."""
    if spec.stored == BF16_BITS:
        stored = stored.view(ml_dtypes.bfloat16)
    if spec.stored == FP8_BITS:
        stored = stored.view(FP8)
    return stored.astype(np.float64) * (spec.kv_scales[which] if spec.kv_scales else 1.0)
