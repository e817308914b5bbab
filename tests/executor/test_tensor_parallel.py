"""The step on several devices: the same numbers, the collectives it needs and no others."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from make_tiny_checkpoint import make_tiny
from step_harness import (
    DECODE,
    EXTEND,
    make_runner,
    moved_shapes,
    neutral_sampling,
    program_of,
)

from jaxserve.batch import Bucket, SlotInit, StepInputs, StepResult, TokenMasks
from jaxserve.executor import ModelRunner
from jaxserve.executor.late_sampler import num_mask_words

NUM_PAGES = 4096
PAGE_SIZE = 16
PROMPT_LENS = (20, 10)
TABLE = np.zeros((DECODE.num_rows, DECODE.pages_per_row), np.int32)
TABLE[0, :2], TABLE[1, :1] = (3, 5), 7


@dataclass(frozen=True)
class Case:
    """A checkpoint, how many devices divide it, and what a step of it then sends around."""

    model_type: str
    options: dict[str, object]
    tp_size: int
    num_all_reduces: int
    splits_vocab: bool = True

    def collectives(self, bucket: Bucket) -> Counter[str]:
        """Rows are divided where there are enough: then they are exchanged, and what was found."""
        divides_rows = bucket.num_rows >= self.tp_size
        return Counter(
            {
                "all-reduce": self.num_all_reduces,
                "all-to-all": int(self.splits_vocab and divides_rows),
                "all-gather": int(self.splits_vocab or divides_rows),
            }
        )


CASES = {
    # two layers, attention and MLP each
    "llama": Case("llama", {"vocab_size": 264}, 2, 4),
    # kv heads twice, 3 query heads on 2 devices, and a tied table that is divided
    "qwen2_padded": Case(
        "qwen2",
        {
            "num_attention_heads": 6, "hidden_size": 96, "vocab_size": 264,
            "tie_word_embeddings": True,
        },
        4, 5,
    ),
    # a vocabulary of 259 is on every device
    "qwen3": Case("qwen3", {}, 4, 4, splits_vocab=False),
}  # fmt: skip


@dataclass(frozen=True)
class Runners:
    case: Case
    alone: ModelRunner
    divided: ModelRunner


@pytest.fixture(scope="module", params=CASES)
def runners(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runners]:
    case = CASES[request.param]
    folder = make_tiny(tmp_path_factory.mktemp(request.param), case.model_type, **case.options)
    alone, divided = (
        make_runner(folder, num_pages=NUM_PAGES, tp_size=tp_size) for tp_size in (1, case.tp_size)
    )
    yield Runners(case, alone, divided)
    alone.close()
    divided.close()


def step_inputs(bucket: Bucket, kv_lens: list[int], q_lens: list[int]) -> StepInputs:
    """The next ``q_lens`` tokens of two rows, which end at ``kv_lens``."""
    ends = np.cumsum(q_lens)
    num_padding_rows = bucket.num_rows - len(kv_lens)
    positions, write_slots = np.zeros((2, bucket.num_tokens), np.int32)
    for row, (kv_len, q_len, end) in enumerate(zip(kv_lens, q_lens, ends, strict=True)):
        mine = np.arange(kv_len - q_len, kv_len)
        positions[end - q_len : end] = mine
        write_slots[end - q_len : end] = TABLE[row, mine // PAGE_SIZE] * PAGE_SIZE + mine % 16
    sampling = neutral_sampling(bucket)
    is_real = np.arange(bucket.num_rows) < len(kv_lens)
    return StepInputs(
        bucket=bucket,
        token_ids=np.random.default_rng(0).integers(0, 256, bucket.num_tokens).astype(np.int32),
        positions=positions,
        write_slots=write_slots,
        page_table=TABLE[: bucket.num_rows],
        kv_lens=np.asarray(kv_lens + [0] * num_padding_rows, np.int32),
        q_starts=np.asarray([0, *ends, *[ends[-1]] * num_padding_rows], np.int32),
        row_slots=np.where(is_real, np.arange(bucket.num_rows) + 1, 0).astype(np.int32),
        sampling=replace(sampling, samples=is_real, wants_logprobs=is_real),
    )


def generate(runner: ModelRunner, **values: float) -> list[StepResult]:
    """A prompt of each of two rows and four tokens after it; all launched, then all fetched.

    ``values`` are of the rows' sampling.
    """
    lens = list(PROMPT_LENS)
    fresh = tuple(SlotInit(slot, (3,), (), (), ()) for slot in (1, 2))
    inputs = [replace(step_inputs(EXTEND, lens, lens), slot_inits=fresh)]
    for n in range(1, 5):
        inputs.append(step_inputs(DECODE, [length + n for length in lens], [1, 1]))
    return [runner.launch(with_sampling(step, **values)).fetch() for step in inputs]


def with_sampling(inputs: StepInputs, **values: float) -> StepInputs:
    arrays = {
        name: np.full_like(getattr(inputs.sampling, name), value) for name, value in values.items()
    }
    return replace(inputs, sampling=replace(inputs.sampling, **arrays))


def test_the_same_tokens_and_logprobs_as_on_one_device(runners: Runners) -> None:
    for ours, wanted in zip(generate(runners.divided), generate(runners.alone), strict=True):
        assert ours.token_ids[:2].tolist() == wanted.token_ids[:2].tolist()
        assert ours.top_logprobs is not None and wanted.top_logprobs is not None
        assert np.ptp(wanted.top_logprobs[:2]) > 1.0
        np.testing.assert_allclose(ours.top_logprobs[:2], wanted.top_logprobs[:2], atol=2e-5)
    assert runners.divided.compile_counter.since_freeze == 0


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"top_k": 30, "top_p": 0.9, "min_p": 0.01},
        {"frequency_penalty": 0.5, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_the_same_tokens_are_drawn_as_on_one_device(
    runners: Runners, values: dict[str, float]
) -> None:
    ours, wanted = (
        [step.token_ids[:2].tolist() for step in generate(runner, temperature=1.5, **values)]
        for runner in (runners.divided, runners.alone)
    )
    assert ours == wanted
    greedy = [step.token_ids[:2].tolist() for step in generate(runners.alone)]
    assert ours != greedy


@pytest.mark.parametrize("bucket", [DECODE, EXTEND], ids=["decode", "extend"])
def test_collectives_are_those_of_the_matrix_products(runners: Runners, bucket: Bucket) -> None:
    assert collectives(runners.divided, bucket) == +runners.case.collectives(bucket)
    assert not collectives(runners.alone, bucket)


def collectives(runner: ModelRunner, bucket: Bucket) -> Counter[str]:
    text = program_of(runner, bucket).as_text()
    kinds = r"all-reduce|all-gather|all-to-all|collective-\w+|reduce-scatter"
    return Counter(re.findall(rf" ({kinds})(?:-start)?\(", text))


@pytest.mark.parametrize("bucket", [DECODE, EXTEND], ids=["decode", "extend"])
def test_each_shard_of_the_state_is_updated_in_place(runners: Runners, bucket: Bucket) -> None:
    program = program_of(runners.divided, bucket)
    state = jax.tree.leaves(runners.divided._state)
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == sum(shard_of(leaf).nbytes for leaf in state)
    pool = shard_of(runners.divided._state.kv.k[0])
    assert max(map(np.prod, moved_shapes(program.as_text()))) < pool.size / 10


def shard_of(array: jax.Array) -> jax.Array:
    return array.addressable_shards[0].data


def test_on_one_device_nothing_is_said_of_sharding(runners: Runners) -> None:
    text = runners.alone.lower_step(DECODE).as_text()
    assert not re.search(r"sdy\.|mhlo\.sharding|num_partitions = [^1]", text)
    assert re.search(r"sdy\.", runners.divided.lower_step(DECODE).as_text())


def test_no_device_holds_more_than_its_shards(runners: Runners) -> None:
    runner, tp_size = runners.divided, runners.case.tp_size
    for path, spec, leaf in zip(
        runner._model.paths, runner._model.specs, runner._leaves, strict=True
    ):
        assert [shard.data.shape for shard in leaf.addressable_shards] == [spec.shape] * tp_size
        is_divided = ".kernel" in path and "lm_head" not in path
        assert not is_divided or leaf.size == spec.size * tp_size, path
    pool = runner._state.kv.k[0]
    assert shard_of(pool).shape[1] == runner._model.plan.num_kv_heads
    used = {shard.device for leaf in runner._leaves for shard in leaf.addressable_shards}
    assert used == set(jax.devices()[:tp_size])


def test_masks_and_named_logprobs_are_the_same_on_every_device(runners: Runners) -> None:
    vocab_size = runners.alone._state.slots.token_info.shape[1]
    bits = np.zeros((1, num_mask_words(vocab_size)), np.uint32)
    bits[0, 3] = 1 << 5
    masks = TokenMasks(np.array([1], np.int32), bits)
    init = SlotInit(1, (3,), (), (), (), logprob_ids=(101, 7))
    inputs = step_inputs(EXTEND, list(PROMPT_LENS), list(PROMPT_LENS))
    inputs = replace(inputs, slot_inits=(init,))
    ours, wanted = (
        runner.sample(runner.launch(inputs, [1]), inputs, masks).fetch()
        for runner in (runners.divided, runners.alone)
    )
    assert ours.token_ids[1] == wanted.token_ids[1] == 101
    assert ours.id_logprobs is not None and wanted.id_logprobs is not None
    np.testing.assert_allclose(ours.id_logprobs[0, :2], wanted.id_logprobs[0, :2], atol=2e-5)
    assert np.all(wanted.id_logprobs[0, :2] < 0)
    tables = runners.divided._state.slots
    for table in jax.tree.leaves(tables):
        copies = [np.asarray(shard.data) for shard in table.addressable_shards]
        assert all(np.array_equal(copy, copies[0]) for copy in copies)
