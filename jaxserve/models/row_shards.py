"""Rows of logits, divided among the shards: each has whole rows of some, not a piece of every row.

A shard computes its part of the vocabulary for all rows, since it has that part of the output
layer.  What looks at logits wants whole rows: it then works as on one device, bit for bit, and
needs no collective of its own.  So the shards exchange pieces, which moves 1/num_shards of what
gathering every row on every device would move, and holds as much less.

Axis letters: B rows, R rows of a shard, S shards, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxserve.shard_plan import ShardPlan

Tree = TypeVar("Tree")


@dataclass(frozen=True, slots=True)
class RowShards:
    """Who has which of ``num_rows`` rows: shard s those from s * R on, and padding after row B.

    Fewer rows than shards stay together: each shard has them all, as on one device.
    """

    plan: ShardPlan
    num_rows: int

    @property
    def is_divided(self) -> bool:
        """Whether shards have different rows."""
        return 1 < self.plan.num_shards <= self.num_rows

    @property
    def rows_per_shard(self) -> int:
        """R."""
        return -(-self.num_rows // self.plan.num_shards) if self.is_divided else self.num_rows

    @property
    def spec(self) -> PartitionSpec:
        """How the ``[R, ...]`` of the shards lie in one array."""
        return PartitionSpec(self.plan.axis) if self.is_divided else PartitionSpec()

    def padded(self, x: Array, axis: int = 0) -> Array:
        """``[..., B, ...]`` as ``[..., S * R, ...]``, filled with zeros, if rows are divided."""
        if not self.is_divided:
            return x
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, self.rows_per_shard * self.plan.num_shards - self.num_rows)
        return jnp.pad(x, widths)

    def mine(self, x: Array, axis: int = 0) -> Array:
        """``[..., R, ...]``: this shard's of ``[..., B, ...]``, which is the same on each."""
        if not self.is_divided:
            return x
        start = lax.axis_index(self.plan.axis) * self.rows_per_shard
        return lax.dynamic_slice_in_dim(self.padded(x, axis), start, self.rows_per_shard, axis)

    def whole(self, x: Array) -> Array:
        """``[R, V]`` of ``[S * R, V / S]`` (``[B, V / S]`` where rows are not divided)."""
        if self.is_divided:
            return lax.all_to_all(x, self.plan.axis, split_axis=0, concat_axis=1, tiled=True)
        return lax.all_gather(x, self.plan.axis, axis=1, tiled=True)

    def everyones(self, tree: Tree) -> Tree:
        """Leaves ``[B, ...]``, on every shard, of each shard's ``[R, ...]``; 32 bits an element."""
        if not self.is_divided:
            return tree
        gathered = lax.all_gather(_joined(tree), self.plan.axis, axis=0, tiled=True)
        return _parted(gathered[: self.num_rows], tree)

    def take(self, x: Array, rows: Array) -> Array:
        """``[n, ...]``: those rows i32[n] of x ``[R, ...]`` that are here, else anything."""
        start = lax.axis_index(self.plan.axis) * self.rows_per_shard if self.is_divided else 0
        return x.at[rows - start].get(mode="clip")

    def from_owners(self, tree: Tree, rows: Array) -> Tree:
        """Leaves ``[n, ...]``, on every shard as on the one that has row i; 32 bits an element.

        ``take``'s counterpart: what was found of rows i32[n] where they are.
        """
        if not self.is_divided:
            return tree
        is_here = rows // self.rows_per_shard == lax.axis_index(self.plan.axis)
        found = jnp.where(is_here[:, None], _joined(tree), 0)
        return _parted(lax.psum(found, self.plan.axis), tree)


def _joined(tree: Any) -> Array:
    """i32[n, F]: all leaves [n, ...] for one collective, as bits, which arithmetic could change."""
    leaves = jax.tree.leaves(tree)
    columns = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
    return jnp.concatenate([lax.bitcast_convert_type(x, jnp.int32) for x in columns], axis=1)


def _parted(joined: Array, tree: Tree) -> Tree:
    """Undo ``_joined``; ``tree`` has the shapes, but for the number of rows, and the dtypes."""
    leaves, treedef = jax.tree.flatten(tree)
    sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]
    parts = [
        lax.bitcast_convert_type(piece, leaf.dtype).reshape(-1, *leaf.shape[1:])
        for piece, leaf in zip(lax.split(joined, sizes, axis=1), leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, parts)
