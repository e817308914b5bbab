"""model_type → module.  ``build_model`` gives the pure-function form of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxserve.errors import ConfigError
from jaxserve.model_config import ModelConfig
from jaxserve.models.attention import AttnContext, KVPool
from jaxserve.models.layers import GivenEmbeds
from jaxserve.models.llama import Llama
from jaxserve.models.qwen2 import Qwen2
from jaxserve.models.qwen3 import Qwen3
from jaxserve.shard_plan import ShardPlan, plan_shards

MODELS: dict[str, Callable[..., nnx.Module]] = {"llama": Llama, "qwen2": Qwen2, "qwen3": Qwen3}


class Decoder(Protocol):
    """The whole model API: hidden states of a step's tokens, logits of the rows that want them."""

    def __call__(
        self,
        token_ids: jax.Array,
        kv: KVPool,
        context: AttnContext,
        embeds: GivenEmbeds | None = None,
    ) -> tuple[jax.Array, KVPool]: ...

    def logits(self, hidden: jax.Array) -> jax.Array: ...


@dataclass(frozen=True, slots=True)
class Model:
    """A model without its weights: what its leaves are, and how to call it with them.

    ``paths[i]`` and ``specs[i]`` name and describe leaf i as one shard has it.  ``bind(leaves)``
    is called inside a trace and gives the nnx module over those leaves.
    """

    plan: ShardPlan
    graph: nnx.GraphDef
    treedef: jax.tree_util.PyTreeDef
    paths: tuple[str, ...]
    specs: tuple[jax.ShapeDtypeStruct, ...]

    def bind(self, leaves: list[jax.Array]) -> Decoder:
        """The module over ``leaves``; cheap, but only worth calling while tracing."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.treedef, leaves))

    @property
    def expected(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Path → shape and dtype of each leaf of a shard."""
        return dict(zip(self.paths, self.specs, strict=True))

    @property
    def num_bytes(self) -> int:
        """Size of all leaves of a shard."""
        return sum(spec.size * spec.dtype.itemsize for spec in self.specs)


def build_model(
    config: ModelConfig,
    *,
    context_len: int,
    dtype: jnp.dtype,
    act_dtype: jnp.dtype,
    num_shards: int = 1,
) -> Model:
    """Construct ``config``'s model abstractly: no memory is taken.

    Args:
        context_len: the served context; some rope scalings depend on it.
        dtype: of the weights.
        act_dtype: of the residual stream.
        num_shards: devices that the model is divided among.

    Raises:
        ConfigError: a model_type that is not implemented, or one that cannot be divided so.
    """
    if config.model_type not in MODELS:
        raise ConfigError(
            f"model_type {config.model_type!r} is not supported; supported: "
            f"{', '.join(sorted(MODELS))}"
        )
    make = MODELS[config.model_type]
    plan = plan_shards(config, num_shards)
    module = nnx.eval_shape(
        lambda: make(config, plan, context_len=context_len, dtype=dtype, act_dtype=act_dtype)
    )
    graph, state = nnx.split(module)
    keyed, treedef = jax.tree_util.tree_flatten_with_path(state)
    paths = tuple(".".join(_names(path)) for path, _ in keyed)
    specs = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for _, leaf in keyed)
    return Model(plan, graph, treedef, paths, specs)


def _names(path: tuple[object, ...]) -> list[str]:
    """Key path of a leaf without the wrapper of the variable itself."""
    names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    return names
