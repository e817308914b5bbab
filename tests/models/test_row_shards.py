"""Rows of logits divided among shards: every row once, whole, and what is found of it on all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxserve.models import RowShards
from jaxserve.shard_plan import TP_AXIS, ShardPlan

VOCAB_SIZE = 24
WHOLE, DIVIDED = PartitionSpec(), PartitionSpec(TP_AXIS)
# (rows, shards, rows per shard): as many each, some padding, fewer rows than shards, one device
CASES = [(8, 4, 2), (4, 4, 1), (5, 2, 3), (9, 8, 2), (3, 4, 3), (1, 8, 1), (5, 1, 5)]
each_case = pytest.mark.parametrize(("num_rows", "num_shards", "rows_per_shard"), CASES)


def plan_of(num_shards: int) -> ShardPlan:
    heads = tuple((shard,) for shard in range(num_shards))
    return ShardPlan(
        query_heads=heads, kv_heads=heads, ffn=1, splits_lm_head=True, splits_embedding=False
    )


def on_every_shard(function, num_shards: int, in_specs, out_specs):
    mesh = Mesh(np.asarray(jax.devices()[:num_shards]), (TP_AXIS,))
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    )


@each_case
def test_each_shard_has_its_rows_and_padding_is_zero(
    num_rows: int, num_shards: int, rows_per_shard: int
) -> None:
    shards = RowShards(plan_of(num_shards), num_rows)
    assert shards.rows_per_shard == rows_per_shard
    assert shards.is_divided == (1 < num_shards <= num_rows)
    values = np.arange(1, 2 * num_rows + 1).reshape(2, num_rows)
    mine = on_every_shard(
        lambda x: shards.mine(x, axis=1), num_shards, WHOLE, PartitionSpec(None, TP_AXIS)
    )(values)
    expected = np.tile(values, num_shards)
    if shards.is_divided:
        expected = np.zeros((2, rows_per_shard * num_shards), np.int32)
        expected[:, :num_rows] = values
    np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize(
    ("num_rows", "num_shards"), [case[:2] for case in CASES if case[1] > 1], ids=str
)
def test_pieces_of_rows_become_whole_rows(num_rows: int, num_shards: int) -> None:
    shards = RowShards(plan_of(num_shards), num_rows)
    logits = np.random.default_rng(0).standard_normal((num_rows, VOCAB_SIZE)).astype(np.float32)
    whole = on_every_shard(
        lambda x: shards.whole(shards.padded(x)), num_shards, PartitionSpec(None, TP_AXIS), DIVIDED
    )(logits)
    for shard in range(num_shards):
        here = np.asarray(whole)[shard * shards.rows_per_shard :][: shards.rows_per_shard]
        first = shard * shards.rows_per_shard if shards.is_divided else 0
        wanted = logits[first : first + shards.rows_per_shard]
        np.testing.assert_array_equal(here[: len(wanted)], wanted)


@each_case
def test_what_each_found_of_its_rows_reaches_all_bit_for_bit(
    num_rows: int, num_shards: int, rows_per_shard: int
) -> None:
    """Also integers whose bits are those of a signalling NaN, and three dimensions."""
    shards = RowShards(plan_of(num_shards), num_rows)
    rng = np.random.default_rng(1)
    found = {
        "ids": (0x7F800001 + np.arange(num_rows)).astype(np.int32),
        "values": rng.standard_normal((num_rows, 3)).astype(np.float32),
        "deep": rng.integers(0, 99, (num_rows, 2, 2)).astype(np.int32),
    }

    def function(tree):
        return shards.everyones(jax.tree.map(shards.mine, tree))

    joined = on_every_shard(function, num_shards, WHOLE, DIVIDED)(jax.tree.map(jnp.asarray, found))
    for name, array in joined.items():
        copies = np.asarray(array).reshape(num_shards, *found[name].shape)
        for copy in copies:
            np.testing.assert_array_equal(copy, found[name], err_msg=name)


@each_case
def test_what_is_found_of_some_rows_where_they_are_reaches_all(
    num_rows: int, num_shards: int, rows_per_shard: int
) -> None:
    """In any order, and with a row that is none among them."""
    shards = RowShards(plan_of(num_shards), num_rows)
    values = np.random.default_rng(2).standard_normal((num_rows, 3)).astype(np.float32)
    rows = np.random.default_rng(3).permutation(num_rows + 1)[:5].astype(np.int32)

    def function(x, rows):
        here = shards.take(shards.mine(x), rows)
        return shards.from_owners({"values": here, "sum": jnp.sum(here, axis=1)}, rows)

    found = on_every_shard(function, num_shards, WHOLE, DIVIDED)(values, rows)
    is_row = rows < num_rows
    for copy in np.asarray(found["values"]).reshape(num_shards, len(rows), 3):
        np.testing.assert_array_equal(copy[is_row], values[rows[is_row]])
    assert np.asarray(found["sum"]).shape == (num_shards * len(rows),)
