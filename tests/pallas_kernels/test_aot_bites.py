"""Seeded bugs: the ahead-of-time tool must see each of them, or its silence means nothing."""

import json
from typing import Any

import aot_tool
import pytest

STEPS = ("good", "scan", "kept", "transposed", "greedy", "undonated", "mismatched")


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, Any]]:
    found = aot_tool.rows(
        "step", *STEPS, "--provider", "aot_toy_steps:toy_step", "--rows", "16",
        "--kernels-of-layer",
    )  # fmt: skip
    return dict(zip(STEPS, found, strict=True))


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, Any]]:
    done = aot_tool.run("tests/pallas_kernels/aot_toy_kernels.py")
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_good_step_holds_every_law(steps: dict[str, dict[str, Any]]) -> None:
    good = steps["good"]
    assert good["problems"] == []
    assert (good["graphs"], good["outside_graphs"], good["whiles"]) == (1, 0, 0)
    assert good["aliased_bytes"] == good["kv_bytes"]
    assert good["kernels_per_layer"] == len(good["layer"]) <= 4
    assert any("scatter" in launch["op_name"] for launch in good["layer"])


@pytest.mark.parametrize(
    ("step", "problems"),
    [
        ("scan", ("outside them", "while loops", "copies of pool", "of temporaries")),
        ("kept", ("copies of pool",)),
        ("transposed", ("copies of pool or weight",)),
        ("greedy", ("of temporaries",)),
        ("undonated", ("copies of pool", "0 bytes are updated in place")),
        ("mismatched", ("does not compile: TypeError",)),
    ],
)
def test_a_broken_step_is_reported(
    steps: dict[str, dict[str, Any]], step: str, problems: tuple[str, ...]
) -> None:
    found = steps[step]["problems"]
    for problem in problems:
        assert any(problem in text for text in found), (problem, found)


def test_a_process_that_dies_is_noticed() -> None:
    done = aot_tool.run(
        *("-m", "pallas_kernels.aot", "step", "good", "--jobs", "2"),
        *("--provider", "aot_toy_steps:missing"),
    )
    assert done.returncode not in (0, 1) or "a compiling process ended with status" in done.stderr
    assert "has no function 'missing'" in done.stderr


def test_a_good_kernel_is_read_in_full(kernels: dict[str, dict[str, Any]]) -> None:
    good = kernels["good"]
    assert good["problems"] == []
    (kernel,) = good["kernels"]
    assert 128 < kernel["registers"] < 256 and kernel["threads"] == 128
    assert kernel["shared_bytes"] >= 2 * (64 * 64 + 64 * 256 + 64 * 256)
    assert kernels["again"]["kernels"] == good["kernels"]


def test_spills_are_reported(kernels: dict[str, dict[str, Any]]) -> None:
    assert any("bytes of registers" in text for text in kernels["spilling"]["problems"])


def test_a_kernel_that_misses_the_tensor_cores_is_reported(
    kernels: dict[str, dict[str, Any]],
) -> None:
    problems = " ".join(kernels["idle"]["problems"])
    assert "has no HGMMA" in problems and "has no UTMALDG" in problems
