"""``scripts/gpu --dry-run``: every part that a CPU can run, through the real command."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpu.settings import PARTS

ROOT = Path(__file__).parents[2]
COMMAND = ["bash", str(ROOT / "scripts" / "gpu"), "--dry-run", "--seed", "5", "--name", "run"]
MAX_FILES, MAX_BYTES = 8, 16 << 20
slow = pytest.mark.slow


def run(*arguments: str, cache: str = "") -> subprocess.CompletedProcess[str]:
    env = os.environ | {"JAXSERVE_PYTHON": sys.executable}
    env |= {"JAX_COMPILATION_CACHE_DIR": cache} if cache else {}
    return subprocess.run(
        [*COMMAND, *arguments], env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def output(
    tmp_path_factory: pytest.TempPathFactory, compilation_cache_dir: str
) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("gpu")
    done = run("--output", str(folder), cache=compilation_cache_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@slow
def test_every_part_runs_and_only_what_needs_cuda_is_skipped(output: tuple[Path, str]) -> None:
    records: list[dict[str, Any]] = json.loads((output[0] / "run.json").read_text())["records"]
    ends = [record for record in records if record["kind"] == "end"]
    assert {record["part"] for record in ends if record["status"] == "ok"} == set(PARTS)
    for record in ends:
        skipped_for_cuda = record["status"] == "skipped" and "CUDA" in record["error"]
        assert record["status"] == "ok" or skipped_for_cuda, record


@slow
def test_the_results_are_few_files_that_tell_how_they_came(output: tuple[Path, str]) -> None:
    folder, printed = output
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["run.json", "run.log", "run.md", "run.png"]
    assert len(files) <= MAX_FILES and all(file.stat().st_size < MAX_BYTES for file in files)
    whole = json.loads((folder / "run.json").read_text())
    assert whole["about"]["seed"] == 5 and whole["about"]["is_dry_run"]
    assert "--dry-run --seed 5" in whole["about"]["command"]
    text = (folder / "run.md").read_text()
    assert text in printed and "A dry run" in text and text.count("| – |") >= 8


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path), "--parts", "facts,kernel")
    assert done.returncode == 1
    assert "--parts facts,kernel: choose from facts, correctness, sanitizer" in done.stderr
