"""Other projects' programs, run in the environment of ``scripts/clients``."""

import functools
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
TIMEOUT_S = 300


@functools.cache
def client_python() -> Path:
    """The environment's interpreter; without one the tests are skipped."""
    python = ROOT / ".venv-clients" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no client environment at {python}: run scripts/clients")
    return python


def environment() -> dict[str, str]:
    """This process's variables, without what would lead a client away from the server."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "ANTHROPIC_"))}
    return kept | {"OPENAI_API_KEY": "None", "HF_HUB_OFFLINE": "1", "NO_PROXY": "*"}


def run_client(*arguments: str) -> str:
    """Run the environment's python with ``arguments`` to its end; its output.

    Raises:
        AssertionError: it failed; the message has the end of what it said.
    """
    done = subprocess.run(
        [str(client_python()), *arguments],
        env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    said = f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    assert done.returncode == 0, f"{' '.join(arguments)} → {done.returncode}\n{said}"
    return done.stdout


def run_program(name: str, *arguments: str) -> str:
    """``run_client`` of a file of ``programs/``."""
    return run_client(str(PROGRAMS / f"{name}.py"), *arguments)
