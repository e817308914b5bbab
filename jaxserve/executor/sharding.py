"""Which device holds what: a mesh of one axis, and the rules for what is divided along it.

On one device there is no mesh, and every function here is the identity.  On several, the whole
step runs inside one ``shard_map``: models see one shard's sizes and reduce over the axis
themselves, so that the collectives of a step are those that stand in ``models/``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxserve.models import Model, RowShards
from jaxserve.shard_plan import TP_AXIS, ShardPlan

Axes = tuple[str | None, ...]

# The logical axes of each parameter, by the end of its path: the longest that fits.
PARAM_AXES: dict[str, Axes] = {
    "embed.embedding": ("input_vocab", None),
    "lm_head.kernel": ("vocab", None),
    "norm.scale": (None,),
    "qk_norm.q.scale": (None,),
    "qk_norm.k.scale": (None,),
    "attn.qkv.kernel": ("heads", None),
    "attn.qkv.bias": ("heads",),
    "attn.out.kernel": (None, "heads"),
    "attn.out.bias": (None,),
    "mlp.gate_up.kernel": ("ffn", None),
    "mlp.gate_up.bias": ("ffn",),
    "mlp.down.kernel": (None, "ffn"),
    "mlp.down.bias": (None,),
}
POOL_AXES: Axes = (None, "heads", None, None)  # [P, K, page_size, H]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where arrays lie.  ``device`` is set only for a single one that is not the default."""

    plan: ShardPlan
    mesh: Mesh | None = None
    device: jax.Device | None = None

    @classmethod
    def over(cls, devices: Sequence[jax.Device], plan: ShardPlan) -> "Placement":
        """One shard on each of ``devices``, in order; they may be those of a description."""
        assert len(devices) == plan.num_shards, (len(devices), plan.num_shards)
        if len(devices) == 1:
            return cls(plan, device=devices[0])
        return cls(plan, mesh=Mesh(np.asarray(devices), (TP_AXIS,)))

    @classmethod
    def of_this_host(cls, plan: ShardPlan) -> "Placement":
        """The first devices that jax lists; a single shard goes to the default device."""
        if plan.num_shards == 1:
            return cls(plan)
        return cls.over(jax.devices()[: plan.num_shards], plan)

    def mesh_axes(self, axes: Axes) -> Axes:
        """The mesh axis along which each logical axis is divided, if it is."""
        is_divided = {
            "heads": True,
            "ffn": True,
            "vocab": self.plan.splits_lm_head,
            "input_vocab": self.plan.splits_embedding,
        }
        return tuple(TP_AXIS if axis and is_divided[axis] else None for axis in axes)

    def struct(self, shape: tuple[int, ...], dtype: Any, axes: Axes = ()) -> jax.ShapeDtypeStruct:
        """Over all shards, the array of which each shard has ``shape``."""
        if self.mesh is None:
            sharding = None if self.device is None else SingleDeviceSharding(self.device)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        mesh_axes = self.mesh_axes(axes or (None,) * len(shape))
        whole = tuple(
            size if axis is None else size * self.plan.num_shards
            for size, axis in zip(shape, mesh_axes, strict=True)
        )
        spec = PartitionSpec(*mesh_axes)
        return jax.ShapeDtypeStruct(whole, dtype, sharding=NamedSharding(self.mesh, spec))

    def row_struct(self, rows: RowShards, size: int, dtype: Any) -> jax.ShapeDtypeStruct:
        """``[R, size]`` of each shard: the rows that it has."""
        if self.mesh is None:
            return self.struct((rows.rows_per_shard, size), dtype)
        count = rows.rows_per_shard * (self.plan.num_shards if rows.is_divided else 1)
        sharding = NamedSharding(self.mesh, rows.spec)
        return jax.ShapeDtypeStruct((count, size), dtype, sharding=sharding)

    def expected(self, model: Model) -> dict[str, jax.ShapeDtypeStruct]:
        """Path → shape over all shards, dtype and sharding of each leaf."""
        return {
            path: self.struct(spec.shape, spec.dtype, axes_of(path))
            for path, spec in zip(model.paths, model.specs, strict=True)
        }

    def leaf_specs(self, model: Model) -> list[jax.ShapeDtypeStruct]:
        """``expected`` in the order of the leaves: what a step can be traced with."""
        return list(self.expected(model).values())

    def shard_map(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        out_specs: Callable[[Any], Any],
    ) -> Callable[..., Any]:
        """``function`` of each device's shards of ``arguments`` (arrays or structs).

        ``out_specs`` makes the specs of the results from those of the arguments.
        """
        if self.mesh is None:
            return function
        specs = jax.tree.map(_spec_of, arguments)
        mapped: Callable[..., Any] = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=specs,
            out_specs=out_specs(specs),
            # what is replicated is so because every shard computes it from equal arguments
            check_vma=False,
        )
        return mapped


def axes_of(path: str) -> Axes:
    """Logical axes of the parameter at ``path``."""
    fitting = [end for end in PARAM_AXES if path.endswith(end)]
    assert fitting, f"{path} has no rule in PARAM_AXES"
    return PARAM_AXES[max(fitting, key=len)]


def _spec_of(array: jax.Array | jax.ShapeDtypeStruct) -> PartitionSpec:
    assert isinstance(array.sharding, NamedSharding)
    return array.sharding.spec
