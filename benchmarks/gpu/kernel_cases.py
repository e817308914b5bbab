"""Calls of the attention kernels as data: shapes, options, work, and random arguments.

The correctness grid, the timings and ``bench_kernels.py`` all describe their calls so.
Axis letters as in ``pallas_kernels.layout``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np

from pallas_kernels import paged_decode_attention, paged_extend_attention

DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
}
FP8 = "float8_e4m3fn"
SHORT = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", FP8: "fp8"}
Array = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """One call of decode or extend attention.

    Attributes:
        op: "decode" or "extend".
        rows: (tokens before this step, tokens of this step) of each row; (0, 0) is padding.
        padding_tokens: queries of no row, behind the others; extend only.
    """

    op: str
    rows: tuple[tuple[int, int], ...]
    num_kv_heads: int = 8
    group: int = 4
    head_dim: int = 128
    page_size: int = 16
    dtype: str = "bfloat16"
    kv_dtype: str = ""  # "" = dtype
    logit_soft_cap: float | None = None
    sliding_window: int | None = None
    padding_tokens: int = 0
    label: str = ""

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group

    @property
    def stored_dtype(self) -> str:
        return self.kv_dtype or self.dtype

    @property
    def is_fp8(self) -> bool:
        return self.stored_dtype == FP8

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def kv_lens(self) -> tuple[int, ...]:
        return tuple(before + new for before, new in self.rows)

    @property
    def num_tokens(self) -> int:
        """Queries: rows in decode, tokens of all rows and padding in extend."""
        new = sum(new for _, new in self.rows)
        return len(self.rows) if self.op == "decode" else new + self.padding_tokens

    @property
    def pages_per_row(self) -> int:
        return max(1, -(-max(self.kv_lens) // self.page_size))

    @property
    def num_owned_pages(self) -> int:
        return sum(-(-length // self.page_size) for length in self.kv_lens)

    @property
    def kv_bytes(self) -> int:
        """Keys and values that must be read at least once."""
        window = self.sliding_window
        tokens = 0
        for before, new in self.rows:
            seen = before + new
            tokens += seen if window is None else min(seen, window + max(0, new - 1))
        return 2 * tokens * self.num_kv_heads * self.head_dim * DTYPES[self.stored_dtype].itemsize

    @property
    def flops(self) -> int:
        """Of both products, over the visible pairs alone."""
        pairs = 0
        for before, new in self.rows:
            position = np.arange(before, before + new, dtype=np.int64) + 1
            if self.sliding_window is not None:
                position = np.minimum(position, self.sliding_window)
            pairs += int(position.sum())
        return 4 * pairs * self.num_heads * self.head_dim

    @property
    def name(self) -> str:
        parts = [self.op, self.label, f"H{self.head_dim}", f"K{self.num_kv_heads}",
                 f"G{self.group}", f"page{self.page_size}", SHORT[self.dtype]]  # fmt: skip
        if self.is_fp8:
            parts.append("kv-fp8")
        if self.sliding_window is not None:
            parts.append(f"window{self.sliding_window}")
        if self.logit_soft_cap is not None:
            parts.append(f"cap{self.logit_soft_cap:g}")
        return " ".join(filter(None, parts))

    def options(self) -> dict[str, Any]:
        """The static keywords of the call; those at their default stay away."""
        options: dict[str, Any] = {"scale": self.scale}
        if self.logit_soft_cap is not None:
            options["logit_soft_cap"] = self.logit_soft_cap
        if self.sliding_window is not None:
            options["sliding_window"] = self.sliding_window
        return options

    def pool_shape(self, num_pages: int) -> tuple[int, int, int, int]:
        return (num_pages, self.num_kv_heads, self.page_size, self.head_dim)


def attention_of(case: KernelCase, implementation: str) -> Callable[..., Array]:
    """``f(arguments) -> out`` with the arguments of ``Inputs.arguments``."""
    options = case.options() | {"implementation": implementation}

    def decode(a: Mapping[str, Array]) -> Array:
        return paged_decode_attention(
            a["q"], a["k_pages"], a["v_pages"], a["page_table"], a["kv_lens"],
            **options, **_scales(a),
        )  # fmt: skip

    def extend(a: Mapping[str, Array]) -> Array:
        return paged_extend_attention(
            a["q"], a["k_pages"], a["v_pages"], a["page_table"], a["kv_lens"], a["q_starts"],
            **options, **_scales(a),
        )  # fmt: skip

    return decode if case.op == "decode" else extend


def _scales(arguments: Mapping[str, Array]) -> dict[str, Array]:
    return {name: arguments[name] for name in ("k_scale", "v_scale") if name in arguments}


def argument_specs(case: KernelCase, num_pages: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a call's arguments over a pool of ``num_pages``."""
    num_rows = len(case.rows)
    pool = jax.ShapeDtypeStruct(case.pool_shape(num_pages), DTYPES[case.stored_dtype])
    query = (case.num_tokens, case.num_heads, case.head_dim)
    specs = {
        "q": jax.ShapeDtypeStruct(query, DTYPES[case.dtype]),
        "k_pages": pool,
        "v_pages": pool,
        "page_table": jax.ShapeDtypeStruct((num_rows, case.pages_per_row), np.int32),
        "kv_lens": jax.ShapeDtypeStruct((num_rows,), np.int32),
    }
    if case.op == "extend":
        specs["q_starts"] = jax.ShapeDtypeStruct((num_rows + 1,), np.int32)
    if case.is_fp8:
        scale = jax.ShapeDtypeStruct((), np.float32)
        specs |= {"k_scale": scale, "v_scale": scale}
    return specs


@dataclass(frozen=True, slots=True)
class Inputs:
    """A call's arguments in host memory, and the same keys and values row by row.

    Attributes:
        arguments: as ``argument_specs`` has them.
        keys, values: of row b, ``[kv_lens[b], K, H]`` f32: what the pages say they are.
        rows: the case's rows in the order in which they lie in the arguments.
    """

    arguments: dict[str, np.ndarray]
    keys: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]
    rows: tuple[tuple[int, int], ...]


def num_pages_with_foreign(case: KernelCase) -> int:
    """The null page, the rows' pages, and as many again that nobody owns."""
    return 1 + case.num_owned_pages + max(4, case.num_owned_pages // 4)


def random_inputs(case: KernelCase, rng: np.random.Generator) -> Inputs:
    """Fresh arguments: rows and pages in a new order, NaN and infinities where nobody may look.

    The null page, the pages of no row and the tail of each row's last page hold NaN, every
    other one of them infinities.
    """
    num_pages, dtype = num_pages_with_foreign(case), DTYPES[case.stored_dtype]
    rows = tuple(case.rows[index] for index in rng.permutation(len(case.rows)))
    kv_scale = np.float32(0.05) if case.is_fp8 else np.float32(1)
    pools = [np.full(case.pool_shape(num_pages), np.nan, dtype) for _ in range(2)]
    if not case.is_fp8:  # e4m3 has no infinity
        for pool in pools:
            pool[::2] = np.inf
    free = rng.permutation(np.arange(1, num_pages))
    table = np.zeros((len(rows), case.pages_per_row), np.int32)
    dense: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for index, (before, new) in enumerate(rows):
        length = before + new
        count = -(-length // case.page_size)
        mine, free = free[:count], free[count:]
        table[index, :count] = mine
        position = np.arange(length)
        for pool, rows_of in zip(pools, dense, strict=True):
            drawn = rng.standard_normal((length, case.num_kv_heads, case.head_dim), np.float32)
            stored = (drawn / kv_scale).astype(dtype)
            pool[mine[position // case.page_size], :, position % case.page_size] = stored
            rows_of.append(stored.astype(np.float32) * kv_scale)
    arguments = _call_arguments(case, rows, rng)
    arguments |= {"k_pages": pools[0], "v_pages": pools[1], "page_table": table}
    if case.is_fp8:
        arguments |= {"k_scale": kv_scale, "v_scale": kv_scale}
    return Inputs(arguments, tuple(dense[0]), tuple(dense[1]), rows)


def _call_arguments(
    case: KernelCase, rows: tuple[tuple[int, int], ...], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    shape = (case.num_tokens, case.num_heads, case.head_dim)
    # Twice the usual spread: a softmax with clear favourites shows a wrong mask sooner.
    q = (2 * rng.standard_normal(shape, np.float32)).astype(DTYPES[case.dtype])
    kv_lens = np.asarray([before + new for before, new in rows], np.int32)
    arguments = {"q": q, "kv_lens": kv_lens}
    if case.op == "extend":
        starts = np.concatenate([[0], np.cumsum([new for _, new in rows])])
        arguments["q_starts"] = starts.astype(np.int32)
    return arguments
