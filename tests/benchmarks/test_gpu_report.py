"""What the table says of given records."""

import json
from pathlib import Path
from typing import Any

import pytest
from gpu import report
from gpu.goals import Goal, ceilings_of, goals_of

ABOUT: dict[str, Any] = {
    "title": "a run", "is_dry_run": False, "command": "scripts/gpu", "commit": "abc",
    "date": "2026-01-01", "seed": 1, "hardware": "none", "seconds": 1.0,
}  # fmt: skip


def ok(module: str, part: str = "kernels", **values: Any) -> dict[str, Any]:
    return {"kind": "end", "part": part, "module": module, "case": str(values), "status": "ok",
            "seconds": 1.0, "values": values, "error": ""}  # fmt: skip


def kernel(side: str, op: str, median_s: float, **fields: Any) -> dict[str, Any]:
    values = {"shape": f"{op} page16 {fields['context']}", "op": op, "side": side, "group": 4,
              "head_dim": 128, "median_s": median_s, **fields}  # fmt: skip
    return ok("time_torch" if "torch" in side else "time_kernels", **values)


def step(mode: str, rows: int, tokens: int, **values: Any) -> dict[str, Any]:
    return ok("time_model", "model", mode=mode, rows=rows, tokens=tokens, bucket_rows=rows,
              backend="pallas", **values)  # fmt: skip


FACTS = [
    ok("facts_jax", "facts", bytes_per_s=3.0e12, median_s=1.0),
    ok("facts_torch", "facts", bytes_per_s=2.9e12, median_s=1.0),
    ok("facts_jax", "facts", flops_per_s=8e14, median_s=1.0),
]
RECORDS = [
    *FACTS,
    kernel("ours", "decode", 1e-3, rows=64, context=2048, kv_bytes=2.85e9, flops=1),
    kernel("ours", "decode", 1e-3, rows=16, context=8192, kv_bytes=2.4e9, flops=1),
    kernel("ours", "decode", 1e-3, rows=1, context=8192, kv_bytes=1, flops=1),  # not in the goal
    kernel("ours", "extend", 1e-3, rows=1, context=8192, kv_bytes=1, flops=6.1e11),
    kernel("cuDNN", "extend", 1.1e-3, rows=1, context=8192, kv_bytes=1, flops=6.1e11),
    kernel("torch cuDNN", "extend", 0.9e-3, rows=1, context=8192, kv_bytes=1, flops=6.1e11),
    step("decode", 1, 1024, median_s=5.5e-3, bytes=15.1e9, flops=None, host_launch_s=2e-4),
    step("decode", 64, 1024, median_s=9.2e-3, bytes=24e9, flops=None, host_launch_s=3e-4),
    step("decode", 256, 512, median_s=1e-2, bytes=30e9, flops=None, host_launch_s=4e-4),
    step("extend", 1, 8192, median_s=0.2, bytes=None, flops=131e12, host_launch_s=1e-3),
    ok("time_model", "model", rows=256, schedule_s=1e-4, process_s=2e-4),
    ok(
        "time_offline",
        "offline",
        backend="pallas",
        prompts=64,
        output_throughput=1e5,
        total_throughput=2e5,
    ),
    ok(
        "time_offline",
        "offline",
        backend="pallas",
        prompts=900,
        output_throughput=16e3,
        total_throughput=33e3,
    ),
]


def goals(records: list[dict[str, Any]]) -> dict[str, Goal]:
    return {goal.what: goal for goal in goals_of(records, ceilings_of(records))}


@pytest.mark.parametrize(
    ("what", "measured", "reached"),
    [
        ("decode attention", "80% worst, 88% median of 2 shapes", False),
        ("extend attention, 8k causal, G 4, H 128, page 16", "610 TFLOP/s", True),
        ("extend attention, 8k causal, G 4, H 128, page 16, against", "0.90× of 678", False),
        ("one decode step", "5.50 ms (182 tok/s)", True),
        ("same, B = 64", "9.20 ms = 1.15×", True),
        ("prefill 8192", "200 ms = 82%", True),
        ("offline", "16,000 tok/s out, 33,000 in and out, 900 prompts, pallas", False),
        ("host time", "0.70 ms (launch 0.40, scheduler 0.30)", True),
    ],
)
def test_each_goal(what: str, measured: str, reached: bool) -> None:
    found = [goal for goal in goals(RECORDS).values() if goal.what.startswith(what)]
    assert found[-1].measured.startswith(measured) or found[0].measured.startswith(measured)
    assert reached in {goal.reached for goal in found}


def test_a_goal_without_a_measurement_is_neither_reached_nor_missed() -> None:
    assert {goal.reached for goal in goals([]).values()} == {None}
    assert len(goals([])) == len(goals(RECORDS)) == 8


def test_ceilings_are_the_best_of_both_or_an_h100s_usual_and_say_so() -> None:
    assert ceilings_of(FACTS).copy == 3.0e12 and ceilings_of(FACTS).is_measured
    assert not ceilings_of([]).is_measured
    assert "NOT measured here" in report.markdown(ABOUT, [], ceilings_of([]), [])


def test_the_files_hold_every_sample_and_every_trouble(tmp_path: Path) -> None:
    wrong = ok("check_kernels", "correctness", error=float("inf"), limit=5e-3, worst_query=1.0)
    wrong |= {"status": "wrong", "error": "all | is\nlost", "case": "decode H128"}
    report.write(tmp_path / "run", ABOUT, [*RECORDS, wrong])
    whole = json.loads((tmp_path / "run.json").read_text())
    assert len(whole["records"]) == len(RECORDS) + 1 and len(whole["goals"]) == 8
    assert whole["records"][-1]["values"]["error"] == "inf"
    text = (tmp_path / "run.md").read_text()
    assert "| correctness | decode H128 | wrong | all / is lost |" in text
    assert "| decode H128 | wrong | inf |" in text
    assert "1.10×" in text  # cuDNN's time against ours
