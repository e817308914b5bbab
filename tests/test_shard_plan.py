"""Which device holds which heads: laws over many sizes, the real models, and what is refused."""

from dataclasses import replace
from itertools import product

import pytest
from make_tiny_checkpoint import TINY_CONFIG
from published_configs import LLAMA_3_1_8B, QWEN_2_5_0_5B, QWEN_2_5_7B, QWEN_3_8B

from jaxserve.errors import ConfigError
from jaxserve.model_config import ModelConfig
from jaxserve.shard_plan import ShardPlan, plan_shards

TINY = ModelConfig.from_hf(TINY_CONFIG)
SIZES = [
    (kv_heads, group, shards)
    for kv_heads, group, shards in product((1, 2, 3, 4, 8), (1, 2, 3, 7), (1, 2, 3, 4, 6, 8, 16))
    if kv_heads % shards == 0 or (shards % kv_heads == 0 and shards <= kv_heads * group)
]


def tiny_plan(kv_heads: int, group: int, num_shards: int) -> ShardPlan:
    sizes = {"num_heads": kv_heads * group, "num_kv_heads": kv_heads}
    return plan_shards(replace(TINY, intermediate_size=96, **sizes), num_shards)


@pytest.mark.parametrize(("kv_heads", "group", "shards"), SIZES)
def test_every_head_has_its_place(kv_heads: int, group: int, shards: int) -> None:
    plan = tiny_plan(kv_heads, group, shards)
    assert plan.num_shards == shards
    queries = [head for heads in plan.query_heads for head in heads]
    assert queries == list(range(kv_heads * group))  # each once, in order
    assert {head for heads in plan.kv_heads for head in heads} == set(range(kv_heads))
    assert len({len(heads) for heads in plan.kv_heads}) == 1
    lengths = {len(heads) for heads in plan.query_heads}
    assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1  # at most one padding head
    assert plan.num_heads % plan.num_kv_heads == 0
    for mine, keys in zip(plan.query_heads, plan.kv_heads, strict=True):
        # head n of a shard reads its kv head n // (N / K), as on one device
        local = plan.num_heads // plan.num_kv_heads
        assert [keys[n // local] for n in range(len(mine))] == [head // group for head in mine]


def test_one_shard_is_the_model_itself() -> None:
    plan = plan_shards(TINY, 1)
    assert (plan.num_heads, plan.num_kv_heads, plan.ffn) == (4, 2, 128)
    assert plan.axis is None and not plan.splits_lm_head and not plan.splits_embedding


@pytest.mark.parametrize(
    ("hf_config", "sizes"),
    [
        (LLAMA_3_1_8B, (4, 1, 1792, 128256, 16032)),
        (QWEN_2_5_0_5B, (2, 1, 608, 18992, 18992)),  # tied: one table, divided
        (QWEN_2_5_7B, (4, 1, 2368, 152064, 19008)),
        (QWEN_3_8B, (4, 1, 1536, 151936, 18992)),
    ],
)
def test_published_models_on_eight_devices(hf_config: dict, sizes: tuple[int, ...]) -> None:
    config = ModelConfig.from_hf(hf_config)
    plan = plan_shards(config, 8)
    rows = (plan.embedding_rows(config), plan.lm_head_rows(config))
    assert (plan.num_heads, plan.num_kv_heads, plan.ffn, *rows) == sizes


def test_a_vocabulary_that_cannot_be_divided_is_on_every_device() -> None:
    plan = plan_shards(TINY, 2)  # 259 tokens
    assert not plan.splits_lm_head
    assert plan.lm_head_rows(TINY) == plan.embedding_rows(TINY) == 259


@pytest.mark.parametrize(
    ("fields", "num_shards", "message"),
    [
        ({}, 0, "--tp-size 0 does not divide this model: it must be at least 1; allowed: 1, 2, 4"),
        ({}, 3, "intermediate_size 128 is not a multiple of it; allowed: 1, 2, 4$"),
        (
            {"intermediate_size": 96},
            3,
            "num_key_value_heads 2 is neither a multiple nor a divisor of it; allowed: 1, 2, 4$",
        ),
        ({}, 8, "num_attention_heads 4 leaves a device without a head; allowed: 1, 2, 4$"),
    ],
)
def test_what_cannot_be_divided(fields: dict, num_shards: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_shards(replace(TINY, **fields), num_shards)
