"""The ahead-of-time tool, run where it can run: in the environment of ``scripts/aot --env``.

``AOT_PYTHON`` names the python of another such environment (``scripts/test_aot``).
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TOYS = ROOT / "tests" / "pallas_kernels"
TIMEOUT_S = 900
NUM_JOBS = str(min(4, os.cpu_count() or 1))


@functools.cache
def aot_python() -> Path:
    """The environment's interpreter; without one the tests are skipped."""
    suffix = os.environ.get("JAXSERVE_PYTHON")
    name = f".venv-aot-{Path(suffix).name}" if suffix else ".venv-aot"
    python = Path(os.environ.get("AOT_PYTHON") or ROOT / name / "bin" / "python")
    if not python.is_file():
        pytest.skip(f"no ahead-of-time environment at {python}: run scripts/aot --env")
    return python


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the environment's python from the project's root; toys and packages are importable."""
    paths = os.pathsep.join((str(ROOT), str(TOYS)))
    return subprocess.run(
        [str(aot_python()), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@functools.cache
def rows(*arguments: str) -> tuple[dict[str, Any], ...]:
    """The tool's rows of figures for these arguments, asked for once per test run."""
    done = run("-m", "pallas_kernels.aot", *arguments, "--json", "--jobs", NUM_JOBS)
    # 1: some law is broken, which is for the tests to say
    assert done.returncode in (0, 1) and done.stdout.strip(), done.stderr[-4000:]
    sys.stderr.write(done.stderr[-2000:])
    return tuple(json.loads(done.stdout.splitlines()[-1]))
