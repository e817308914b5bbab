"""The compiled step itself: in place, no copy of pool or weights, no growth with the pool."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_harness import (
    DECODE,
    DEVICE,
    EXTEND,
    make_runner,
    moved_shapes,
    neutral_sampling,
    program_of,
)

from jaxserve.batch import Bucket, Mode, StepInputs
from jaxserve.config import EngineConfig, resolve
from jaxserve.errors import ConfigError
from jaxserve.executor import ModelRunner, plan_memory
from jaxserve.executor.packing import pack, packed_len, unpack
from jaxserve.executor.sampling import pack_sampling
from jaxserve.model_config import ModelConfig

NUM_PAGES = 4096


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def runner(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> Iterator[ModelRunner]:
    yield make_runner(tiny_checkpoint, num_pages=NUM_PAGES, dtype=request.param)


def random_inputs(bucket: Bucket) -> StepInputs:
    rng = np.random.default_rng(0)

    def ints(*shape: int) -> np.ndarray:
        return rng.integers(0, 100, shape).astype(np.int32)

    return StepInputs(
        bucket=bucket,
        token_ids=ints(bucket.num_tokens),
        positions=ints(bucket.num_tokens),
        write_slots=ints(bucket.num_tokens),
        page_table=ints(bucket.num_rows, bucket.pages_per_row),
        kv_lens=ints(bucket.num_rows),
        q_starts=ints(bucket.num_rows + 1),
        row_slots=ints(bucket.num_rows),
        sampling=replace(
            neutral_sampling(bucket),
            temperature=rng.random(bucket.num_rows, np.float32),
            wants_logprobs=np.asarray([True] + [False] * (bucket.num_rows - 1)),
        ),
    )


@pytest.mark.parametrize("bucket", [DECODE, EXTEND], ids=["decode", "extend"])
def test_packing_is_undone(bucket: Bucket) -> None:
    inputs = random_inputs(bucket)
    packed = pack(inputs)
    assert packed.shape == (packed_len(bucket),)
    got = jax.jit(lambda x: vars_of(unpack(x, bucket)))(packed)
    for name in ("positions", "write_slots", "page_table", "kv_lens", "q_starts", "row_slots"):
        np.testing.assert_array_equal(got[name], getattr(inputs, name))
    if bucket.mode is Mode.EXTEND:
        np.testing.assert_array_equal(got["token_ids"], inputs.token_ids)
    expected = pack_sampling(inputs.sampling)
    for name, value in vars_of(expected).items():
        np.testing.assert_array_equal(vars_of(got["sampling"])[name], value, err_msg=name)


def vars_of(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in type(record).__dataclass_fields__}


@pytest.mark.parametrize("bucket", [DECODE, EXTEND], ids=["decode", "extend"])
def test_state_is_updated_in_place(runner: ModelRunner, bucket: Bucket) -> None:
    memory = program_of(runner, bucket).memory_analysis()
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(runner._state))
    assert memory.alias_size_in_bytes == state_bytes
    kv_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(runner._state.kv))
    assert memory.temp_size_in_bytes < kv_bytes / 10


@pytest.mark.parametrize("bucket", [DECODE, EXTEND], ids=["decode", "extend"])
def test_no_copy_of_pool_or_weight_size(runner: ModelRunner, bucket: Bucket) -> None:
    """Nothing in the optimised HLO moves an array shaped as a weight, or as large as a pool."""
    shapes = moved_shapes(program_of(runner, bucket).as_text())
    weights = {leaf.shape for leaf in runner._leaves if leaf.ndim == 2}
    assert not shapes & (weights | {shape[::-1] for shape in weights})
    pool = runner._state.kv.k[0].size
    assert max(map(np.prod, shapes)) < pool / 10


def test_a_planted_copy_is_seen() -> None:
    """The law above would be worthless if it held for a program that does copy its pool."""
    pool = jax.ShapeDtypeStruct((64, 2, 16, 16), jnp.float32)
    copied = jax.jit(lambda k: (k.at[0].set(1.0), k.sum()), donate_argnums=0).lower(pool)
    assert pool.shape in moved_shapes(copied.compile().as_text())


def test_temp_memory_does_not_grow_with_the_pool(tiny_checkpoint: Path) -> None:
    small = make_runner(tiny_checkpoint, num_pages=64)
    large = make_runner(tiny_checkpoint, num_pages=8192)
    for bucket in (DECODE, EXTEND):
        temps = [
            program_of(runner, bucket).memory_analysis().temp_size_in_bytes
            for runner in (small, large)
        ]
        assert temps[0] == temps[1]


def test_nothing_compiles_after_warm_up(runner: ModelRunner) -> None:
    before = runner.compile_counter.since_freeze
    for bucket in (DECODE, EXTEND, DECODE):
        inputs = replace(random_inputs(bucket), kv_lens=np.zeros(bucket.num_rows, np.int32),
                         q_starts=np.zeros(bucket.num_rows + 1, np.int32),
                         write_slots=np.zeros(bucket.num_tokens, np.int32),
                         row_slots=np.zeros(bucket.num_rows, np.int32))  # fmt: skip
        runner.launch(inputs).fetch()
    assert runner.compile_counter.since_freeze == before


MODEL = ModelConfig(
    model_type="llama", architectures=("LlamaForCausalLM",), vocab_size=1000, hidden_size=64,
    intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, context_len=512,
    tie_word_embeddings=True, qkv_bias=False, out_bias=False, mlp_bias=False, hidden_act="silu",
    eos_token_ids=(2,), bos_token_id=1, dtype="bfloat16",
)  # fmt: skip


def memory_of(free_bytes: int, **fields: object):
    config = resolve(EngineConfig(**{"max_running_requests": 4, **fields}), MODEL, DEVICE)
    return plan_memory(config, MODEL, weight_bytes=1_000_000, free_bytes=free_bytes, platform="cpu")


def test_memory_plan_adds_up() -> None:
    plan = memory_of(20_000_000, mem_fraction_static=0.5)
    assert plan.bytes_per_token == 2 * 2 * 2 * 16 * 2  # bf16
    assert plan.slot_bytes == 5 * (1000 * 8 + 64 * 4 + 4)
    used = plan.weight_bytes + plan.slot_bytes + plan.kv_bytes
    assert used <= 10_000_000
    # either every row fits at full length, or twice as many pages would not
    assert plan.num_pages == 4 * 32 + 1 or used + plan.kv_bytes > 10_000_000


def test_each_device_holds_its_kv_heads_of_every_page() -> None:
    """Half the kv heads on each of two devices; both of them, one each, on each of four."""
    whole, half, copied = (
        memory_of(6_000_000, mem_fraction_static=0.5, max_running_requests=64, tp_size=tp_size)
        for tp_size in (1, 2, 4)
    )
    assert (half.bytes_per_token, copied.bytes_per_token) == (whole.bytes_per_token // 2,) * 2
    assert half.num_pages == copied.num_pages == 2 * whole.num_pages


def test_the_pool_does_not_follow_small_changes_of_free_memory() -> None:
    """Programs are cached by shape: a start with a little less memory must find them."""
    sizes = {memory_of(free, mem_fraction_static=0.5, max_running_requests=64).num_pages
             for free in range(8_000_000, 8_800_000, 10_000)}  # fmt: skip
    assert len(sizes) == 1


def test_max_total_tokens_sets_the_pool() -> None:
    plan = memory_of(20_000_000, max_total_tokens=100)
    assert (plan.num_tokens, plan.num_pages) == (96, 7)


def test_pool_that_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"no room for the KV pool.*--mem-fraction-static"):
        memory_of(1_040_000)
    with pytest.raises(ConfigError, match=r"no room for the KV pool.*--max-total-tokens"):
        memory_of(20_000_000, max_total_tokens=10**7)


def test_weights_enter_as_arguments(runner: ModelRunner) -> None:
    """A weight closed over would be a constant of the program, copied into every bucket."""
    assert all(isinstance(leaf, jax.Array) for leaf in runner._leaves)
    text = runner.lower_step(DECODE).as_text()
    constants = re.findall(r"stablehlo\.constant dense<[^>]*> : tensor<([\dx]+)x[a-z]", text)
    largest = max((int(np.prod([int(n) for n in c.split("x")])) for c in constants), default=0)
    assert largest < 1000
    assert jnp.dtype(runner._leaves[0].dtype) in (jnp.float32, jnp.bfloat16)
