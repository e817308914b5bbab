"""The extend kernel under JAX's GPU interpreter, against a dense f64 oracle, race detection on.

Unowned pages, the null page and the tails of last pages hold NaN or infinity.  jax 0.10 compiles
every warpgroup of every block anew, seconds each, so only a few tiny calls run there; newer ones
run them all.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.extend_tiles import QUERY_TILE, tile_table

HERE = Path(__file__).parent
FP8 = "float8_e4m3fn"
TOLERANCE = 2e-2  # of bf16 weights and results of about 1
TIMEOUT_S = 540.0

# Three rounds of a ring of two tiles, a cached prefix, a decode row, padding tokens; a window
# that begins within a tile, whole tiles before it, a soft cap.
SMALL = [
    {"rows": [[70, 60], [33, 1]], "page_size": 32},
    {
        "rows": [[150, 64]], "padding_tokens": 0, "dtype": "float16", "page_size": 64,
        "sliding_window": 40, "logit_soft_cap": 2.0,
    },
    {"rows": [[130, 20]], "kv_dtype": FP8, "kv_scales": [0.5, 1.75], "page_size": 64},
]  # fmt: skip
EDGES = [0, 1, 63, 64, 65, 127, 128, 129]
LARGE = [
    {
        "rows": [[0, new] for new in EDGES],
        "block_kv": 128,
        "padding_tokens": 140,
        "padding_rows": 2,
    },
    {"rows": [[before, 66] for before in EDGES[1:]], "block_kv": 128, "page_size": 64},
    {"rows": [[15, 1], [16, 1], [17, 1], [0, 0], [31, 2]], "poison": float("inf")},
    {"rows": [[128, 128], [256, 7]], "num_heads": 3, "head_dim": 96, "num_stages": 3},
    {"rows": [[40, 30], [100, 5]], "num_heads": 8, "num_kv_heads": 2, "head_dim": 128},
    {"rows": [[130, 20]], "num_heads": 8, "num_kv_heads": 1, "head_dim": 256, "page_size": 32},
    {"rows": [[64, 9], [64, 70], [80, 1]], "shared_pages": 4, "block_kv": 128},
    {"rows": [[290, 130], [0, 70], [140, 1]], "sliding_window": 1},
    {"rows": [[290, 130], [0, 70], [140, 1]], "sliding_window": 130, "block_kv": 128},
    {"rows": [[290, 130], [0, 70]], "sliding_window": 300, "logit_soft_cap": 0.7},
    {"rows": [[0, 5]], "padding_tokens": 0},
    {"rows": [[450, 192]], "page_size": 64, "num_stages": 4, "dtype": "float16"},
    {"rows": [[0, new] for new in EDGES], "block_kv": 128, "kv_dtype": FP8, "padding_tokens": 140},
    {"rows": [[128, 128], [256, 7]], "num_heads": 3, "head_dim": 96, "num_stages": 3}
    | {"kv_dtype": FP8, "kv_scales": [3.0, 0.25]},
    {"rows": [[40, 30], [100, 5]], "num_heads": 8, "num_kv_heads": 2, "head_dim": 128}
    | {"kv_dtype": FP8, "dtype": "float16", "logit_soft_cap": 2.0},
    {"rows": [[130, 20]], "num_heads": 8, "num_kv_heads": 1, "head_dim": 256, "page_size": 32}
    | {"kv_dtype": FP8},
    {"rows": [[290, 130], [0, 70], [140, 1]], "sliding_window": 130, "kv_dtype": FP8},
]
IS_SLOW = jax.__version_info__ < (0, 11)
CALLS = SMALL if IS_SLOW else SMALL + LARGE
RING = {"rows": [[180, 6]], "page_size": 64, "padding_tokens": 0}  # three tiles in two slots
# A product that does not wait for its tile; one that gives it back before it has read it.
BUGS = [RING | {"waits_for_data": False}, RING | {"frees_early": True}]
BUGS += [bug | {"kv_dtype": FP8} for bug in BUGS]
if IS_SLOW:
    BUGS = BUGS[::2]


def interpret(calls: list[dict[str, object]]) -> list[dict[str, object]]:
    """What ``extend_cases`` says of the calls."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join((str(HERE.parents[1]), str(HERE.parent))),
    }
    finished = subprocess.run(
        [sys.executable, str(HERE / "extend_cases.py"), json.dumps(calls)],
        env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    # What the race detector prints stands between the results.
    return [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]


def test_it_is_attention() -> None:
    results = interpret(CALLS)
    assert len(results) == len(CALLS)
    for result in results:
        assert result["error"] < TOLERANCE, result
        assert result["tail"] == 0.0, result
        assert not result["has_race"], result


@pytest.mark.parametrize("call", BUGS, ids=str)
def test_a_bug_is_seen(call: dict[str, object]) -> None:
    """What the race detector says above means something."""
    (result,) = interpret([call])
    assert result["has_race"]


def test_every_query_is_in_one_tile_and_the_longest_come_first() -> None:
    rng = np.random.default_rng(0)
    place = jax.jit(tile_table, static_argnums=2)
    for _ in range(40):
        new = rng.choice([*EDGES, 200, 300], 5)
        kv_lens = np.where(new > 0, new + rng.integers(0, 500, new.size), 0)
        starts = np.concatenate([[0], np.cumsum(new)])
        num_tokens = 2048
        arrays = (jnp.asarray(starts, jnp.int32), jnp.asarray(kv_lens, jnp.int32))
        table = np.asarray(place(*arrays, num_tokens))
        owner = np.full(num_tokens, -1)
        for row, start, count, position in table:
            tokens = np.arange(start, start + count)
            assert count <= QUERY_TILE - start % 8  # one box of rows that begins at an 8th token
            assert np.all(owner[tokens] == -1)
            owner[tokens] = row
            if count and position >= 0:  # behind the last row there are no positions
                assert starts[row] <= start and start + count <= starts[row + 1]
                assert position - (start - starts[row]) == kv_lens[row] - new[row]
            elif count:
                assert start >= starts[-1] and position + count <= 0
        assert np.all(owner >= 0)
        num_keys = np.where(table[:, 2] > 0, np.maximum(table[:, 2] + table[:, 3], 0), -1)
        assert np.all(np.diff(num_keys) <= 0)


@pytest.mark.parametrize("num_tokens", [1, 129])
def test_there_are_tiles_for_the_worst_case(num_tokens: int) -> None:
    """As many rows as tokens: each its own tile."""
    starts = jnp.arange(num_tokens + 1, dtype=jnp.int32)
    place = jax.jit(tile_table, static_argnums=2)
    table = place(starts, jnp.ones((num_tokens,), jnp.int32), num_tokens)
    assert int(jnp.sum(table[:, 2])) == num_tokens
