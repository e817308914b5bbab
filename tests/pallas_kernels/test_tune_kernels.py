"""The search for configurations: finds the fastest, survives failures, goes on where it stopped."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tune_kernels
from kernel_worker import make_inputs
from tune_kernels import Worker, load_entries, real_shapes, save, search, tiny_shapes, tune

from pallas_kernels.tuning import (
    AttentionShape,
    DecodeConfig,
    parse_tuned,
    reasoned_decode_config,
)

SHAPE = AttentionShape(8, 32, 8, 128, 16, 512, "bfloat16")
FIRST = reasoned_decode_config(SHAPE)
ABOUT = {"device": "some_gpu", "jax": "0.10.2", "date": "2026-01-01", "commit": "abc"}


def time_of(config: DecodeConfig) -> float:
    """Best at 8 splits, 4 stages of 64."""
    return 10 + abs(config.num_splits - 8) + (4 - config.num_stages) + config.block_kv / 64


def ask_fake(job: dict) -> dict:
    config = job["config"]
    if job["op"] == "extend":
        return {"us": 50.0 + config["block_kv"]}
    return {"us": time_of(DecodeConfig(**config))}


def test_the_search_finds_the_fastest() -> None:
    found = search(FIRST, SHAPE, lambda config: {"us": time_of(config)})
    assert found.config.num_splits == 8
    assert found.us <= found.first_us == time_of(FIRST)
    assert not found.errors


def test_a_failing_configuration_is_passed_over() -> None:
    """Even the first one; and the fastest of all."""

    def measure(config: DecodeConfig) -> dict:
        if config in (FIRST, replace(FIRST, num_splits=8)):
            return {"error": "ptxas"}
        return {"us": time_of(config)}

    found = search(FIRST, SHAPE, measure)
    assert found.config.num_splits != 8 or found.config.num_stages != FIRST.num_stages
    assert found.config != FIRST
    assert found.first_us is None
    assert any("ptxas" in error for error in found.errors)
    assert search(FIRST, SHAPE, lambda config: {"error": "no"}) is None


def run(
    ask: Callable[[dict], dict], entries: list[dict], limit: int = 99
) -> tuple[int, list[dict], list[int]]:
    saved: list[int] = []
    failed = tune(
        tiny_shapes(), ask, entries, lambda e: saved.append(len(e)), lambda: len(saved) >= limit
    )
    return failed, entries, saved


def test_a_run_that_was_cut_off_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def ask(job: dict) -> dict:
        asked.append(job["op"])
        return ask_fake(job)

    failed, entries, saved = run(ask, [], limit=1)
    assert (failed, saved) == (0, [1])
    assert set(asked) == {"decode"}
    assert "the time is up; run again to go on" in capsys.readouterr().out
    asked.clear()
    _, entries, saved = run(ask, entries)
    assert saved == [2]
    assert set(asked) == {"extend"}
    assert run(ask, entries)[2] == []
    parse_tuned(ABOUT | {"entries": entries}, "some_gpu")


def test_a_shape_without_a_result_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def ask(job: dict) -> dict:
        return {"error": "worker lost"} if job["op"] == "decode" else ask_fake(job)

    failed, entries, _ = run(ask, [])
    assert failed == 1
    assert [entry["key"]["op"] for entry in entries] == ["extend"]
    assert "every configuration failed; the heuristic stays" in capsys.readouterr().out


def test_files_of_another_jax_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "some_gpu.json"
    assert load_entries(path, "some_gpu", "0.10.2") == []
    entries = run(ask_fake, [])[1]
    save(path, ABOUT, entries)
    assert load_entries(path, "some_gpu", "0.10.2") == entries
    assert load_entries(path, "some_gpu", "0.11.2") == []


def test_real_shapes_are_what_the_kernels_take() -> None:
    shapes = list(real_shapes(16, "bfloat16"))
    assert {op for op, _ in shapes} == {"decode", "extend"}
    assert len(set(shapes)) == len(shapes)
    assert all(shape.num_tokens <= 4 * shape.context for op, shape in shapes if op == "extend")


ECHO = """
import json, sys
print(json.dumps({"device": "some_gpu", "backend": "gpu", "jax": "0"}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if job == "die":
        sys.exit(3)
    if job == "hang":
        __import__("time").sleep(60)
    print(json.dumps({"us": job}), flush=True)
"""


def test_e4m3_is_of_the_pools_only() -> None:
    shape = AttentionShape(4, 8, 2, 64, 16, 8, "float8_e4m3fn")
    inputs = make_inputs("decode", shape)
    assert (inputs.q.dtype, inputs.k_pages.dtype) == ("bfloat16", "float8_e4m3fn")


def test_a_worker_that_hangs_or_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker([sys.executable, "-c", ECHO])
    try:
        assert worker.start()["device"] == "some_gpu"
        assert worker.ask(1) == {"us": 1}
        assert worker.ask("die") == {"error": "worker lost: it ended with status 3"}
        assert worker.ask(2) == {"us": 2}
        monkeypatch.setattr(tune_kernels, "JOB_S", 0.2)
        assert worker.ask("hang") == {"error": "worker lost: no answer in 0 s"}
        monkeypatch.setattr(tune_kernels, "JOB_S", 20)
        assert worker.ask(3) == {"us": 3}
    finally:
        worker.close()


def test_dry_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    compilation_cache_dir: str,
) -> None:
    """The whole path on a CPU, with xla in the kernels' place."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # xla's programs are the same for every configuration
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    out = tmp_path / "dry_run.json"
    assert tune_kernels.main(["--dry-run", "--out", str(out)]) == 0
    entries = load_entries(out, "dry_run", json.loads(out.read_text())["jax"])
    assert [entry["key"]["op"] for entry in entries] == ["decode", "extend"]
    assert all(entry["measured"]["us"] > 0 for entry in entries)
    assert "2 shapes" in capsys.readouterr().out


def test_refusals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(SystemExit):
        tune_kernels.main(["--dry-run"])
    assert "--dry-run needs --out FILE" in capsys.readouterr().err
    assert tune_kernels.main([]) == 2
    assert "jax runs on cpu here; tuning needs a GPU, or --dry-run" in capsys.readouterr().out


def test_a_configuration_is_what_a_job_carries() -> None:
    assert DecodeConfig(**json.loads(json.dumps(asdict(FIRST)))) == FIRST
