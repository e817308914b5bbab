"""The steps of real models, compiled for an H100 and for eight: what they launch, copy and hold.

Models are cut to ``NUM_LAYERS``: what is asserted is per layer or does not depend on depth, and
limits are those of the whole model.  ``scripts/aot step MODEL --goals`` does them in full.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import aot_tool
import pytest

from jaxserve.aot_steps import PUBLISHED, published_models, read_config, step_program
from jaxserve.errors import ConfigError
from jaxserve.executor.slots import slot_bytes
from pallas_kernels.aot_step import StepRequest

NUM_LAYERS = 3
MAX_KERNELS_PER_LLAMA_LAYER = 12
MODELS = ("llama-3.1-8b", "qwen2.5-0.5b", "qwen2.5-7b", "qwen3-8b")
GOALS = ("decode B=1 ctx=1024", "decode B=64 ctx=1024", "extend B=1 T=8192 ctx=8192")
# (models, numbers of GPUs, flags, how the titles of the steps end)
CALLS = (
    (("llama-3.1-8b", "qwen3-8b"), (1, 8), ("--goals",), GOALS),
    (("qwen2.5-0.5b", "qwen2.5-7b"), (1, 8), (), ("decode B=64 ctx=1024",)),
    (("qwen2.5-0.5b", "qwen2.5-7b"), (1,), ("--rows", "1"), ("decode B=1 ctx=1024",)),
    (
        ("qwen2.5-0.5b",),
        (1,),
        ("--mode", "extend", "--rows", "4", "--tokens", "2048", "--context", "4096"),
        ("extend B=4 T=2048 ctx=4096",),
    ),
)
Case = tuple[str, int, str]
CASES: tuple[Case, ...] = tuple(
    case for models, tps, _, shapes in CALLS for case in itertools.product(models, tps, shapes)
)
each_step = pytest.mark.parametrize(("model", "tp", "shape"), CASES)


@pytest.fixture(scope="module")
def steps() -> dict[Case, dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for models, tps, flags, _ in CALLS:
        found += aot_tool.rows(
            "step", *models, "--tp", *map(str, tps), *flags, "--layers", str(NUM_LAYERS)
        )
    return dict(zip(CASES, found, strict=True))


@each_step
def test_a_step_holds_every_law(
    steps: dict[Case, dict[str, Any]], model: str, tp: int, shape: str
) -> None:
    """One graph, no loop, no copy of pool or weight size, no spill, temporaries within limits."""
    step = steps[model, tp, shape]
    assert step["problems"] == []
    assert step["step"].startswith(f"{model} ") and step["step"].endswith(f"tp={tp} {shape}")
    assert (step["graphs"], step["outside_graphs"], step["whiles"]) == (1, 0, 0)
    assert step["mosaic_calls"] >= NUM_LAYERS  # attention, and the norms where rows fit
    assert step["big_copies"] == []


@each_step
def test_the_state_is_updated_byte_for_byte(
    steps: dict[Case, dict[str, Any]], model: str, tp: int, shape: str
) -> None:
    """The aliased bytes are the pools and what else the state holds, and nothing more."""
    step = steps[model, tp, shape]
    config = read_config(model)
    heads = max(1, config.num_kv_heads // tp)
    assert step["kv_bytes"] == 2 * NUM_LAYERS * 8192 * 16 * heads * config.head_dim * 2
    rows = int(shape.split("B=")[1].split()[0])
    assert step["aliased_bytes"] == step["kv_bytes"] + (rows + 1) * slot_bytes(config.vocab_size)


@pytest.mark.parametrize("shape", GOALS[:2])
@pytest.mark.parametrize("tp", (1, 8))
def test_llama_decodes_with_few_kernels(
    steps: dict[Case, dict[str, Any]], tp: int, shape: str
) -> None:
    step = steps["llama-3.1-8b", tp, shape]
    # after attention and after the MLP: the sum of a split product, and over the devices
    num_reductions = 4 if tp > 1 else 0
    assert 0 < step["kernels_per_layer"] <= MAX_KERNELS_PER_LLAMA_LAYER + num_reductions


@pytest.mark.parametrize("tp", (1, 8))
@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-8b"])
def test_temporaries_of_a_decode_step_are_below_1_percent_of_the_weights(
    steps: dict[Case, dict[str, Any]], model: str, tp: int
) -> None:
    """The rule for what is larger, and for small models, is ``StepFacts.temp_limit``."""
    for shape in GOALS[:2]:
        assert steps[model, tp, shape]["temp_share"] < 0.01


def test_each_of_eight_devices_holds_an_eighth_of_the_logits(
    steps: dict[Case, dict[str, Any]],
) -> None:
    logits_bytes = 4 * 64 * read_config("llama-3.1-8b").vocab_size
    one, eight = (steps["llama-3.1-8b", tp, GOALS[1]]["temp_bytes"] for tp in (1, 8))
    assert one > logits_bytes > 2 * eight


@pytest.fixture(scope="module")
def late() -> list[dict[str, Any]]:
    """The programs that sample 64 rows of a step late."""
    models = ("llama-3.1-8b", "qwen2.5-0.5b")
    return aot_tool.rows("step", *models, "--tp", "1", "8", "--layers", "1", "--mode", "late")


def test_rows_are_sampled_late_by_one_graph_that_copies_no_table(
    late: list[dict[str, Any]],
) -> None:
    assert len(late) == 4
    for program in late:
        assert program["problems"] == []
        counts = (program["graphs"], program["outside_graphs"], program["whiles"])
        assert counts == (1, 0, 0), program["step"]
        assert program["aliased_bytes"] == program["state_bytes"] and program["kv_bytes"] == 0
        assert program["goal_s"] is None


def test_fp8_pools_are_half_as_large_and_written_in_place() -> None:
    flags = ("--layers", str(NUM_LAYERS), "--kv-dtype", "float8_e4m3fn")
    (step,) = aot_tool.rows("step", "llama-3.1-8b", *flags)
    assert step["problems"] == []
    assert (step["graphs"], step["outside_graphs"], step["whiles"]) == (1, 0, 0)
    assert step["kv_bytes"] == 2 * NUM_LAYERS * 8192 * 16 * 8 * 128
    assert step["aliased_bytes"] == step["state_bytes"]
    assert step["step"].endswith("ctx=1024 kv=float8_e4m3fn")


def test_collectives_are_two_per_layer_and_a_few(steps: dict[Case, dict[str, Any]]) -> None:
    for (model, tp, shape), step in steps.items():
        most = 0 if tp == 1 else 2 * NUM_LAYERS + 3
        assert min(most, 2 * NUM_LAYERS) <= step["collectives"] <= most, (model, tp, shape)


def test_every_published_model_is_compiled() -> None:
    assert published_models() == tuple(sorted(MODELS))


@pytest.mark.parametrize(
    ("model", "num_parameters"),
    [("llama-3.1-8b", 8.03e9), ("qwen2.5-0.5b", 0.494e9), ("qwen2.5-7b", 7.62e9),
     ("qwen3-8b", 8.19e9)],
)  # fmt: skip
def test_published_configs_have_the_published_sizes(model: str, num_parameters: float) -> None:
    facts = step_program(request(model)).facts
    assert facts.weight_bytes == facts.full_weight_bytes
    assert facts.weight_bytes / 2 == pytest.approx(num_parameters, rel=0.005)


def test_the_floor_is_weights_and_context() -> None:
    """Decode of one row of the 8B: 15.0 GB, everything but the input table, and its context."""
    facts = step_program(request("llama-3.1-8b", context=1000)).facts
    kv_token_bytes = 2 * 32 * 8 * 128 * 2
    assert facts.floor_bytes == pytest.approx(15.0e9 + 1001 * kv_token_bytes, rel=0.002)
    assert facts.attention_bytes == 1000 * kv_token_bytes
    assert facts.kv_bytes == 100 * 16 * kv_token_bytes
    table = 128256 * 4096
    products = 2 * (facts.weight_bytes / 2 - table)
    assert facts.flops - facts.attention_flops == pytest.approx(products, rel=0.001)


def test_a_prefill_of_8192_tokens_takes_131_tflop() -> None:
    facts = step_program(
        request("llama-3.1-8b", mode="extend", num_tokens=8192, context=8192)
    ).facts
    assert facts.flops == pytest.approx(114.3e12 + facts.attention_flops, rel=0.01)
    assert facts.attention_flops == 4 * 32 * 4096 * (8192 * 8193 // 2)


def test_eight_devices_share_the_weights() -> None:
    one, eight = (step_program(request("llama-3.1-8b", tp_size=tp)).facts for tp in (1, 8))
    assert eight.kv_bytes * 8 == one.kv_bytes
    # every device has the whole input table
    table = 2 * 128256 * 4096
    assert eight.weight_bytes - table == pytest.approx((one.weight_bytes - table) / 8, rel=0.001)
    assert math.prod(eight.pool_shape) * 8 == math.prod(one.pool_shape)


def test_what_cannot_be_served_is_refused_with_what_can() -> None:
    with pytest.raises(ConfigError, match=r"no model config 'gpt-2': give one of llama-3.1-8b"):
        read_config("gpt-2")
    with pytest.raises(ValueError, match=r"no model config 'gpt-2'"):
        step_program(request("gpt-2"))
    with pytest.raises(ValueError, match=r"--tp-size 3 does not divide this model"):
        step_program(request("llama-3.1-8b", tp_size=3))


def test_a_config_of_ones_own_is_read_by_path(tmp_path: Path) -> None:
    config = json.loads((PUBLISHED / "qwen2.5-0.5b.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    for path in (tmp_path, tmp_path / "config.json"):
        assert step_program(request(str(path))).facts.num_layers == 7


def request(model: str, *, mode: str = "decode", num_tokens: int = 1, context: int = 1000,
            tp_size: int = 1) -> StepRequest:  # fmt: skip
    return StepRequest(
        model=model, mode=mode, num_rows=1, num_tokens=num_tokens, pages_per_row=512,
        num_pages=100, context=context, tp_size=tp_size,
    )  # fmt: skip
