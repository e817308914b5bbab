"""Tensor parallelism on paper: which device holds which heads, and what every device holds.

Each of ``num_shards`` devices runs the same program on 1/num_shards of the heads, of the ffn and
of the vocabulary.  Nothing here touches a device: models, weights and executor all read it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxserve.errors import ConfigError
from jaxserve.model_config import ModelConfig

TP_AXIS = "tp"
MAX_SHARDS = 1024  # for listing what is allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """What each shard holds.  Hashable: it shapes traces.

    Where there are more shards than kv heads, each kv head is on several of them, which divide
    its query heads; a shard that gets one fewer than the others has a padding head instead (zero
    weights, so that it adds nothing).
    """

    query_heads: tuple[tuple[int, ...], ...]  # the checkpoint's heads of each shard, in order
    kv_heads: tuple[tuple[int, ...], ...]
    ffn: int  # rows of gate and of up, per shard
    splits_lm_head: bool  # the output layer, whether a table of its own or the tied one
    splits_embedding: bool

    @property
    def num_shards(self) -> int:
        """Number of devices."""
        return len(self.query_heads)

    @property
    def axis(self) -> str | None:
        """The mesh axis to reduce over; None where there is nothing to reduce."""
        return TP_AXIS if self.num_shards > 1 else None

    @property
    def num_heads(self) -> int:
        """Query heads per shard, padding included."""
        return max(map(len, self.query_heads))

    @property
    def num_kv_heads(self) -> int:
        """kv heads per shard."""
        return len(self.kv_heads[0])

    def embedding_rows(self, config: ModelConfig) -> int:
        """Rows of the input table per shard."""
        return config.vocab_size // (self.num_shards if self.splits_embedding else 1)

    def lm_head_rows(self, config: ModelConfig) -> int:
        """Rows of the output layer per shard, where it is a table of its own."""
        return config.vocab_size // (self.num_shards if self.splits_lm_head else 1)


def plan_shards(config: ModelConfig, num_shards: int) -> ShardPlan:
    """Divide a model among ``num_shards`` devices.

    The output layer is divided where the vocabulary allows it, since a step reads all of it; the
    input table of an untied model is on every device, since a step reads a few of its rows and
    dividing it would cost a reduction.

    Raises:
        ConfigError: heads or ffn that cannot be divided so; the message has what can.
    """
    problem = _problem(config, num_shards)
    if problem is not None:
        allowed = ", ".join(str(n) for n in range(1, MAX_SHARDS) if _problem(config, n) is None)
        raise ConfigError(
            f"--tp-size {num_shards} does not divide this model: {problem}; allowed: {allowed}"
        )
    splits_lm_head = num_shards > 1 and config.vocab_size % num_shards == 0
    return ShardPlan(
        query_heads=tuple(_query_heads(config, num_shards)),
        kv_heads=tuple(_kv_heads(config, num_shards)),
        ffn=config.intermediate_size // num_shards,
        splits_lm_head=splits_lm_head,
        splits_embedding=splits_lm_head and config.tie_word_embeddings,
    )


def _problem(config: ModelConfig, num_shards: int) -> str | None:
    if num_shards < 1:
        return "it must be at least 1"
    if config.intermediate_size % num_shards:
        return f"intermediate_size {config.intermediate_size} is not a multiple of it"
    if config.num_kv_heads % num_shards == 0:
        return None
    if num_shards % config.num_kv_heads:
        return (
            f"num_key_value_heads {config.num_kv_heads} is neither a multiple nor a divisor of it"
        )
    if num_shards > config.num_heads:
        return f"num_attention_heads {config.num_heads} leaves a device without a head"
    return None


def _kv_heads(config: ModelConfig, num_shards: int) -> Iterator[tuple[int, ...]]:
    for shard in range(num_shards):
        first = shard * config.num_kv_heads // num_shards
        count = max(1, config.num_kv_heads // num_shards)
        yield tuple(range(first, first + count))


def _query_heads(config: ModelConfig, num_shards: int) -> Iterator[tuple[int, ...]]:
    copies = max(1, num_shards // config.num_kv_heads)  # of each kv head
    units = num_shards // copies  # that hold a copy of everything
    per_unit = config.num_heads // units
    for unit in range(units):
        start = unit * per_unit
        for copy in range(copies):
            size = per_unit // copies + (copy < per_unit % copies)
            yield tuple(range(start, start + size))
            start += size
