"""What attention must give: dense softmax in f64 on the host, and how far off an answer is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gpu.kernel_cases import Inputs, KernelCase

# ‖out − ref‖ / ‖ref‖.  What rounding alone gives: the output and the softmax's weights are rounded
# to the dtype, 2^-9 of a value at most for bf16, 2^-12 for f16.
LIMITS = {"bfloat16": 5e-3, "float16": 8e-4, "float32": 5e-5}
ROW_FACTOR = 4.0  # a single query may be so much worse than the whole


def expected(case: KernelCase, inputs: Inputs) -> np.ndarray:
    """``f64[tokens, N, H]``; 0 for padding."""
    q = inputs.arguments["q"].astype(np.float64)
    out = np.zeros(q.shape)
    start = 0
    for (before, new), keys, values in zip(inputs.rows, inputs.keys, inputs.values, strict=True):
        if before + new:
            count = 1 if case.op == "decode" else new
            mine = slice(start, start + count)
            first = before + new - count
            out[mine] = _one_row(case, q[mine], keys, values, first)
        start += 1 if case.op == "decode" else new
    return out


def _one_row(
    case: KernelCase, q: np.ndarray, keys: np.ndarray, values: np.ndarray, first: int
) -> np.ndarray:
    """Queries at positions ``first``, ``first + 1``, … over all keys of a row."""
    num_queries, num_kv_heads, group = len(q), case.num_kv_heads, case.group
    grouped = q.reshape(num_queries, num_kv_heads, group, -1).transpose(1, 2, 0, 3)
    grouped = grouped.reshape(num_kv_heads, group * num_queries, -1)  # [K, G * Q, H]
    keys, values = keys.astype(np.float64), values.astype(np.float64)
    scores = grouped @ keys.transpose(1, 2, 0) * case.scale  # [K, G * Q, S]
    if case.logit_soft_cap is not None:
        scores = case.logit_soft_cap * np.tanh(scores / case.logit_soft_cap)
    position = first + np.arange(num_queries)[:, None]
    key = np.arange(len(keys))[None, :]
    hidden = key > position
    if case.sliding_window is not None:
        hidden |= key <= position - case.sliding_window
    scores[:, np.tile(hidden, (group, 1))] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    out = weights @ values.transpose(1, 0, 2)  # [K, G * Q, H]
    out = out.reshape(num_kv_heads, group, num_queries, -1).transpose(2, 0, 1, 3)
    return out.reshape(q.shape)


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far an answer is off.  Anything that is not finite is infinitely far off."""

    total: float
    worst_query: float
    limit: float
    num_bad: int  # entries that are not finite, or not 0 where 0 must be

    @property
    def is_fine(self) -> bool:
        within = self.total <= self.limit and self.worst_query <= ROW_FACTOR * self.limit
        return within and not self.num_bad

    def values(self) -> Mapping[str, float]:
        return {"error": self.total, "worst_query": self.worst_query, "limit": self.limit,
                "num_bad": self.num_bad}  # fmt: skip


def deviation(case: KernelCase, out: np.ndarray, reference: np.ndarray) -> Deviation:
    """Compare ``out`` [tokens, N, H] of any dtype with the oracle's answer."""
    answer = np.asarray(out).astype(np.float64)
    is_padding = ~reference.any(axis=(1, 2))
    bad = ~np.isfinite(answer)
    bad[is_padding] |= answer[is_padding] != 0
    if bad.any():
        return Deviation(np.inf, np.inf, LIMITS[case.dtype], int(bad.sum()))
    wrong = np.linalg.norm((answer - reference).reshape(len(answer), -1), axis=1)
    size = np.linalg.norm(reference.reshape(len(answer), -1), axis=1)
    worst = float((wrong[~is_padding] / size[~is_padding]).max(initial=0.0))
    total = float(np.linalg.norm(wrong) / max(np.linalg.norm(size), 1e-30))
    return Deviation(total, worst, LIMITS[case.dtype], 0)
