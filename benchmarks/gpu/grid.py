"""The kernel grid: every supported pair of options somewhere, real models' shapes first."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gpu.kernel_cases import FP8, KernelCase

WINDOW, CAP = 100, 20.0
PLAIN, SLIDING, CAPPED, BOTH, FP8_KV = "plain", "window", "cap", "window+cap", "fp8"
FP8_BOTH = f"{FP8_KV}+{BOTH}"
# Beside the cover and not in it: if fp8 were refused, pairs of others would be left unmet.
FP8_CONFIGS = (
    {"head_dim": 64, "group": 3, "page_size": 64, "dtype": "float16", "option": FP8_KV},
    {"head_dim": 96, "group": 16, "page_size": 16, "dtype": "bfloat16", "option": FP8_BOTH},
    {"head_dim": 128, "group": 4, "page_size": 16, "dtype": "bfloat16", "option": FP8_KV},
    {"head_dim": 128, "group": 8, "page_size": 64, "dtype": "float16", "option": FP8_BOTH},
    {"head_dim": 256, "group": 1, "page_size": 32, "dtype": "bfloat16", "option": FP8_KV},
)
FACTORS: Mapping[str, Sequence[Any]] = {
    "head_dim": (64, 96, 128, 256),
    "group": (1, 2, 3, 4, 7, 8, 16),
    "page_size": (16, 32, 64),
    "dtype": ("bfloat16", "float16"),
    "option": (PLAIN, SLIDING, CAPPED, BOTH),
}
# (label, K, G, H): what a single GPU serves
MODELS = (
    ("Llama-3.1-8B", 8, 4, 128),
    ("Qwen2.5-7B", 4, 7, 128),
    ("Qwen2.5-0.5B", 2, 7, 64),
    ("SmolLM2-135M", 3, 3, 64),
    ("8B at TP 8", 1, 4, 128),
)


def correctness_grid(is_tiny: bool) -> list[KernelCase]:
    """Models' shapes, a pairwise cover, then fp8; decode and extend in turns."""
    grid: list[KernelCase] = []
    for label, num_kv_heads, group, head_dim in MODELS:
        for op in ("decode", "extend"):
            grid.append(
                KernelCase(
                    op=op, label=label, num_kv_heads=num_kv_heads, group=group, head_dim=head_dim,
                    rows=ragged_rows(op, 16, is_tiny), padding_tokens=37 * (op == "extend"),
                )
            )  # fmt: skip
    for config in (*pairwise(FACTORS), *FP8_CONFIGS):
        grid += [_case(op, config, is_tiny) for op in ("decode", "extend")]
    return grid


def _case(op: str, config: Mapping[str, Any], is_tiny: bool) -> KernelCase:
    option = config["option"]
    return KernelCase(
        op=op,
        num_kv_heads=2,
        group=config["group"],
        head_dim=config["head_dim"],
        page_size=config["page_size"],
        dtype=config["dtype"],
        kv_dtype=FP8 if option in (FP8_KV, FP8_BOTH) else "",
        sliding_window=WINDOW if option in (SLIDING, BOTH, FP8_BOTH) else None,
        logit_soft_cap=CAP if option in (CAPPED, BOTH, FP8_BOTH) else None,
        rows=ragged_rows(op, config["page_size"], is_tiny),
        padding_tokens=37 if op == "extend" else 0,
    )


def ragged_rows(op: str, page: int, is_tiny: bool) -> tuple[tuple[int, int], ...]:
    """Lengths 0, 1, around a page, around a tile, long, and a whole page table."""
    edges = {0, 1, page - 1, page, page + 1, 2 * page}
    if op == "decode":
        lengths = edges | {63, 64, 65} | (set() if is_tiny else {127, 128, 129, 1000, 2049, 4096})
        rows = [(max(0, length - 1), min(1, length)) for length in sorted(lengths)]
        return (*rows, (0, 0), (page, 1))
    rows = [(0, length) for length in sorted(edges)]
    rows += [(3 * page, 1), (2 * page + 3, 17), (page, page), (0, 63), (0, 65)]
    if not is_tiny:
        rows += [(0, 64), (64, 64), (100, 130), (700, 200), (0, 300), (1999, 1), (2047, 1)]
    return (*rows, (0, 0))


def pairwise(factors: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Few combinations in which every two values of two factors meet at least once."""
    names = list(factors)
    todo = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in factors[a]
        for y in factors[b]
    }
    rng = np.random.default_rng(0)  # the cover must not change from run to run
    every = [dict(zip(names, values, strict=True))
             for values in itertools.product(*factors.values())]  # fmt: skip
    rng.shuffle(every)
    while todo:
        best = max(every, key=lambda config: len(todo & _pairs(config)))
        todo -= _pairs(best)
        yield best


def _pairs(config: Mapping[str, Any]) -> set[Any]:
    return set(itertools.combinations(config.items(), 2))
