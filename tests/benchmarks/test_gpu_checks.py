"""The checks that a GPU run makes: they pass what is right and catch planted bugs."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import pytest
from gpu.check_kernels import AttentionCheck
from gpu.device import poison_free_memory
from gpu.grid import FACTORS, correctness_grid, pairwise, ragged_rows
from gpu.kernel_cases import FP8, Inputs, KernelCase, attention_of, random_inputs
from gpu.oracle import deviation, expected
from gpu.settings import Settings
from gpu.worker import CheckError

SMALL = {"num_kv_heads": 2, "group": 2, "head_dim": 64}
DECODE = KernelCase(op="decode", rows=((0, 1), (16, 1), (0, 0), (40, 1)), **SMALL)
EXTEND = KernelCase(op="extend", rows=((0, 5), (20, 7), (0, 0), (15, 1)), padding_tokens=3, **SMALL)
VARIANTS = {
    "decode": DECODE,
    "extend": EXTEND,
    "window": replace(EXTEND, sliding_window=6),
    "cap": replace(DECODE, logit_soft_cap=5.0),
    "fp8": replace(EXTEND, kv_dtype=FP8),
    "f16": replace(DECODE, dtype="float16"),
    "page 32": replace(EXTEND, page_size=32),
}


def drawn(case: KernelCase) -> tuple[Inputs, np.ndarray]:
    inputs = random_inputs(case, np.random.default_rng(7))
    return inputs, expected(case, inputs)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_oracle_agrees_with_the_specification(name: str) -> None:
    case = VARIANTS[name]
    inputs, reference = drawn(case)
    out = attention_of(case, "reference")(jax.tree.map(jax.numpy.asarray, inputs.arguments))
    assert deviation(case, np.asarray(out), reference).is_fine


def test_foreign_pages_and_tails_hold_no_number() -> None:
    inputs, _ = drawn(DECODE)
    pages = inputs.arguments["k_pages"].astype(np.float32)
    num_owned = sum(length * 2 * 64 for length in DECODE.kv_lens)
    assert np.isfinite(pages).sum() == num_owned
    assert np.isnan(pages).any() and np.isinf(pages).any()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: out.__setitem__((3, 0, 0), np.nan),
        lambda out: out.__setitem__((-1, 0, 0), 1e-3),  # a padding token
        lambda out: out.__setitem__(2, 1.1 * out[2]),  # one query, 10 % off
        lambda out: np.multiply(out, 1.01, out=out),
    ],
    ids=["NaN", "padding", "one query", "all"],
)
def test_a_deviation_is_seen(spoil: Callable[[np.ndarray], object]) -> None:
    inputs, reference = drawn(EXTEND)
    out = reference.copy()
    assert deviation(EXTEND, out, reference).is_fine
    spoil(out)
    assert not deviation(EXTEND, out, reference).is_fine


def test_planted_bugs_are_caught() -> None:
    check = AttentionCheck(EXTEND, Settings(is_dry_run=True, seed=3))
    right = jax.jit(attention_of(EXTEND, "reference"))
    assert check.run(right)["error"] < 5e-3
    too_wide = jax.jit(attention_of(replace(EXTEND, sliding_window=19), "reference"))
    with pytest.raises(CheckError, match=r"pairs are off; queries \[\d+.*, heads \[0, 1, 2, 3\]"):
        check.run(too_wide)
    turns = itertools.count()

    def moving(arguments: dict[str, jax.Array]) -> jax.Array:
        out = right(arguments)
        return out.at[0, 0, 0].add(1e-2 if next(turns) == 3 else 0.0)

    with pytest.raises(CheckError, match="two runs on the same arguments differ: a race"):
        check.run(moving)


def test_poison_covers_what_takes_its_place() -> None:
    spec = jax.ShapeDtypeStruct((1 << 20,), np.float32)
    poison = poison_free_memory(spec)
    (first, end) = poison.blocks[-1]
    assert end - first >= 4 << 20


def test_the_grid_covers_every_pair_and_every_edge() -> None:
    configs = list(pairwise(FACTORS))
    for (a, xs), (b, ys) in itertools.combinations(FACTORS.items(), 2):
        met = {(config[a], config[b]) for config in configs}
        assert met == set(itertools.product(xs, ys))
    for op in ("decode", "extend"):
        lengths = {before + new for before, new in ragged_rows(op, 16, is_tiny=False)}
        assert lengths >= {0, 1, 15, 16, 17}
    grid = correctness_grid(is_tiny=False)
    assert len({case.name for case in grid}) == len(grid)


def test_work_is_counted_over_what_is_visible() -> None:
    case = KernelCase(op="extend", rows=((2, 2), (0, 1)), num_kv_heads=1, group=1, head_dim=64)
    assert case.flops == 4 * 64 * (3 + 4 + 1)
    assert case.kv_bytes == 2 * 64 * 2 * (4 + 1)
    assert replace(case, sliding_window=2).flops == 4 * 64 * (2 + 2 + 1)
    assert replace(case, sliding_window=2).kv_bytes == 2 * 64 * 2 * (3 + 1)
