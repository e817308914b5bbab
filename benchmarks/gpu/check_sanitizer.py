"""compute-sanitizer over one small call per kernel, each tool in a process of its own.

They run side by side, and allocate every buffer by itself (no pool), so that an access behind a
buffer's end is an access to memory that nobody owns.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu.environment import TOOLKITS, toolkit_root
from gpu.sanitizer_target import DONE
from gpu.settings import Settings
from gpu.worker import Case, CheckError, SkipError, Values

OPS = ("decode", "extend")
# Worth most first; initcheck sees nothing that the poisoned memory of the grid does not.
TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND_SOMETHING = 86  # exit code
RESERVE_S = 2.0
LOG_CHARS = 50_000
SUMMARY = re.compile(r"=========.*SUMMARY:.*")
REFUSALS = ("Device not supported", "not supported on", "Unable to find injection library")


def is_healthy() -> bool:
    """This process holds no GPU that could break."""
    return True


@dataclass(frozen=True, slots=True)
class Watched:
    """A kernel under a tool, running; ``tool`` is "" for no tool."""

    process: subprocess.Popen[bytes]
    log: Path
    tool: str
    settings: Settings

    def run(self) -> Values:
        """Wait for it and read what the tool said."""
        started = time.monotonic()
        try:
            code = self.process.wait(max(0.0, self.settings.time_left_s - RESERVE_S))
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise SkipError(
                f"not finished after {time.monotonic() - started:.0f} s more of waiting; the tool "
                "says nothing before its end"
            ) from None
        text = self.log.read_text("utf-8", errors="replace")
        print(f"--- {self.log.name}\n{text[-LOG_CHARS:]}", flush=True)  # into the run's log
        summaries = SUMMARY.findall(text)
        values = {"summary": "; ".join(summaries), "tool": self.tool or "none"}
        if code == 0 and DONE in text and (summaries or not self.tool):
            return values
        if code == FOUND_SOMETHING:
            found = "\n".join(line for line in text.splitlines() if line.startswith("====="))
            raise CheckError(found[:600], values)
        refusal = next((line for line in text.splitlines()
                        if any(mark in line for mark in REFUSALS)), None)  # fmt: skip
        if refusal is not None:
            raise SkipError(f"compute-sanitizer refuses this device: {refusal}")
        raise CheckError(f"exit code {code}: {text.strip()[-500:]}", values)


def cases(settings: Settings) -> Iterator[Case]:
    """All tools over all kernels, started together; without CUDA the calls alone."""
    if settings.is_dry_run:
        for op in OPS:
            watched = _start(op, "", settings)
            yield Case(f"{op}, no tool (compute-sanitizer needs CUDA)", watched.run)
        return
    if find_tool() is None:
        yield Case("compute-sanitizer", _missing)
        return
    for tool in TOOLS:
        for op in OPS:
            yield Case(f"{tool} {op}", _start(op, tool, settings).run)


def _missing() -> Values:
    raise SkipError("compute-sanitizer is not on this machine (it is in CUDA's toolkit)")


def find_tool() -> str | None:
    """The path of compute-sanitizer."""
    root = toolkit_root(os.environ)
    folders = [os.environ.get("PATH", "")]
    for base in filter(None, [root, *map(Path, TOOLKITS)]):
        folders += [str(base / "bin"), str(base / "compute-sanitizer")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def _start(op: str, tool: str, settings: Settings) -> Watched:
    log = Path(settings.scratch) / f"sanitizer-{tool or 'none'}-{op}.log"
    command = [sys.executable, "-m", "gpu.sanitizer_target", op, settings.implementation]
    if tool:
        command = [
            find_tool() or "compute-sanitizer", "--tool", tool, "--print-limit", "10",
            "--error-exitcode", str(FOUND_SOMETHING), *command,
        ]  # fmt: skip
    env = os.environ | {
        "XLA_PYTHON_CLIENT_ALLOCATOR": "platform",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env
        )
    return Watched(process, log, tool, settings)
