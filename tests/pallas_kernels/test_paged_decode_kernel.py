"""The decode kernel under the GPU interpreter, with race detection, and its parts in plain jnp."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.decode_tiles import DecodePlan
from pallas_kernels.hopper import Warpgroup
from pallas_kernels.layout import KVLayout
from pallas_kernels.paged_decode import combine
from pallas_kernels.tuning import DecodeConfig

CASES = Path(__file__).with_name("decode_cases.py")
TIMEOUT_S = 300  # a hang is a failure, not a wait
FP8 = "float8_e4m3fn"

# Few blocks: on jax 0.10 the interpreter takes about 2 s for each.
GOOD = {
    "split, an odd group": {"kv_lens": [130], "group": 3, "num_splits": 2},
    "the ring of tiles reused": {"kv_lens": [200], "group": 8},
    "page edges, pages shared": {"kv_lens": [33, 32], "group": 1, "shared_pages": 1},
    "window, cap, f16, larger pages": {
        "kv_lens": [90], "page_size": 32, "sliding_window": 20, "logit_soft_cap": 3.0,
        "dtype": "float16",
    },
    "three lines a row, a padding row": {"kv_lens": [17, 0], "head_dim": 96},
    "e4m3, the ring of tiles reused": {"kv_lens": [200], "kv_dtype": FP8, "kv_scales": [0.5, 1.75]},
}  # fmt: skip
EDGES = [0, 1, 15, 16, 17, 63, 64, 65, 130]
WIDE = {
    **{f"group {g}": {"kv_lens": EDGES, "group": g, "num_splits": 2} for g in (1, 3, 4, 8, 16)},
    **{f"head dim {h}": {"kv_lens": EDGES, "head_dim": h} for h in (96, 128, 256)},
    **{f"page size {p}": {"kv_lens": [p - 1, p, p + 1], "page_size": p} for p in (32, 64)},
    "groups that start anywhere": {"kv_lens": [70, 3, 9], "group": 7, "num_kv_heads": 2},
    "window over tiles": {"kv_lens": [300, 64, 65, 200, 5], "sliding_window": 100},
    "window of one key": {"kv_lens": [300, 129], "sliding_window": 1, "num_splits": 3},
    "window of a tile": {"kv_lens": [300, 128], "sliding_window": 64, "logit_soft_cap": 30.0},
    "tiles of 128": {"kv_lens": [300, 128, 1], "block_kv": 128, "num_splits": 2},
    "three stages": {"kv_lens": [500, 3], "num_stages": 3},
    "more splits than tiles": {"kv_lens": [140], "num_splits": 5, "dtype": "float16"},
    "padding rows only": {"kv_lens": [0, 0], "num_splits": 2},
    "rows of one prefix": {"kv_lens": [100, 90, 40], "shared_pages": 3},
    **{
        f"e4m3, head dim {h}, page size {p}": {
            "kv_lens": EDGES, "head_dim": h, "page_size": p, "kv_dtype": FP8, "group": g,
            "kv_scales": [0.25, 3.0], "num_splits": 2,
        }
        for h, p, g in ((64, 64, 16), (96, 16, 3), (128, 32, 8), (256, 16, 1))
    },
    "e4m3, window, cap, f16, tiles of 128": {
        "kv_lens": [300, 129, 5], "kv_dtype": FP8, "dtype": "float16", "sliding_window": 100,
        "logit_soft_cap": 3.0, "block_kv": 128,
    },
}  # fmt: skip
BUGS = {
    "a copy of e4m3 does not wait for its slot": {
        "kv_lens": [200], "kv_dtype": FP8, "waits_for_slot": False,
    },
    "e4m3 is widened before it is there": {
        "kv_lens": [60], "kv_dtype": FP8, "waits_for_data": False,
    },
    "a copy does not wait for its slot": {"kv_lens": [200], "waits_for_slot": False},
    "the products do not wait for their data": {"kv_lens": [60], "waits_for_data": False},
}  # fmt: skip


RACE = "RACE DETECTED"  # what the interpreter says of one


def interpret(cases: Iterable[dict[str, object]]) -> subprocess.CompletedProcess[str]:
    """``decode_cases.py`` beside this process: the interpreter can hang."""
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, str(CASES), json.dumps(list(cases))],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
    )


@pytest.mark.slow
def test_kernel_is_right_and_free_of_races() -> None:
    check_all(GOOD)


@pytest.mark.slow
@pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="the interpreter of jax 0.10 is ten times slower"
)
def test_kernel_on_a_wider_grid() -> None:
    check_all(WIDE)


def check_all(cases: dict[str, dict[str, object]]) -> None:
    done = interpret(cases.values())
    assert done.returncode == 0, done.stderr
    assert RACE not in done.stdout
    for name, line in zip(cases, done.stdout.splitlines(), strict=True):
        result = json.loads(line)
        # bf16 weights and values: 2 ** -8 of values near 1; f16 has 3 bits more. NaN fails too.
        assert result["error"] < (0.002 if result["dtype"] == "float16" else 0.015), name


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_missing_wait_is_seen(name: str) -> None:
    """So the absence of races above means something."""
    done = interpret([BUGS[name]])
    assert RACE in done.stdout + done.stderr


def test_combine_is_attention_over_all_keys() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((4, 2, 3, 5)) * 8  # [S, B, N, keys]
    values = rng.standard_normal((4, 2, 3, 5, 16))
    weights = np.exp2(scores)
    partial = np.einsum("sbnk,sbnkh->sbnh", weights, values) / weights.sum(-1, keepdims=True)
    lse = np.log2(weights.sum(-1))
    expected = np.einsum("sbnk,sbnkh->bnh", weights, values)
    expected /= weights.sum((0, 3))[..., None]
    out = combine(jnp.asarray(partial, jnp.float32), jnp.asarray(lse, jnp.float32), jnp.float32)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_combine_of_splits_without_keys() -> None:
    """Empty splits count for nothing; a row of empty splits is 0, not NaN."""
    partial = jnp.zeros((3, 2, 1, 8)).at[1, 0].set(5.0)
    lse = jnp.full((3, 2, 1), -jnp.inf).at[1, 0].set(-300.0)
    out = combine(partial, lse, jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), [[[5.0] * 8], [[0.0] * 8]])


@pytest.mark.parametrize("group", range(1, 17))
def test_a_group_is_among_the_rows_brought_in(group: int) -> None:
    """Copies start at multiples of eight, groups where they like."""
    for num_kv_heads in range(1, 9):
        layout = KVLayout(num_pages=2, num_kv_heads=num_kv_heads, page_size=16, head_dim=64)
        plan = DecodePlan(
            num_rows=4,
            num_heads=group * num_kv_heads,
            layout=layout,
            scale=1.0,
            logit_soft_cap=None,
            sliding_window=None,
            config=DecodeConfig(num_splits=1),
            warpgroup=Warpgroup(interpreted=False),
        )
        shifts = [plan.first_query(b, k) % 8 for b in range(4) for k in range(num_kv_heads)]
        assert max(shifts) + group <= plan.query_rows <= 24
