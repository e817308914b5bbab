"""One process of a run: the cases of one module, one after another, told as lines of JSON.

``child.py`` starts it.  A case that raises costs that case.  A case that leaves the GPU unusable
ends the process with ``UNHEALTHY``; the supervisor starts another one behind it.
"""

import argparse
import importlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gpu.settings import Settings

UNHEALTHY = 3
OUT_OF_TIME = "not run: out of time"
MAX_ERROR_CHARS = 700
Values = Mapping[str, Any]


class CheckError(Exception):
    """A result that is wrong; ``values`` say how wrong."""

    def __init__(self, message: str, values: Values) -> None:
        super().__init__(message)
        self.values = values


class SkipError(Exception):
    """The case makes no sense on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to check or to time.

    ``lower`` gives programs to be compiled ahead, side by side with those of other cases;
    ``run`` gets them compiled, in the same order, and returns what it found.
    """

    name: str
    run: Callable[..., Values]
    lower: Callable[[], Sequence[Any]] = tuple


class CaseModule(Protocol):
    """What a module of cases offers."""

    def cases(self, settings: Settings) -> Iterable[Case]: ...

    def is_healthy(self) -> bool: ...


class Records:
    """Appends one line of JSON per event; a line is whole or not there."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, **fields: Any) -> None:
        self._file.write(json.dumps({"kind": kind, **fields}, default=float) + "\n")
        self._file.flush()

    def end(self, case: str, status: str, seconds: float, values: Values, error: str) -> None:
        self.write("end", case=case, status=status, seconds=round(seconds, 3), values=dict(values),
                   error=error[:MAX_ERROR_CHARS])  # fmt: skip


def outcome(run: Callable[[], Values]) -> tuple[str, Values, str]:
    """Status, values and error of one case."""
    try:
        return "ok", run(), ""
    except CheckError as error:
        return "wrong", error.values, str(error)
    except SkipError as error:
        return "skipped", {}, str(error)
    except NotImplementedError as error:
        return "unsupported", {}, str(error)
    except Exception as error:  # whatever it is, the cases after it still run
        traceback.print_exc()
        return "failed", {}, f"{type(error).__name__}: {error}"


def compile_ahead(batch: Sequence[Case], records: Records) -> dict[str, Callable[[], list[Any]]]:
    """Case name -> a call that gives its compiled programs, or raises what went wrong.

    Returns when all are compiled: what is timed next has the machine to itself.
    """
    started = time.monotonic()
    programs: dict[str, Callable[[], list[Any]]] = {}
    with ThreadPoolExecutor(max(1, min(len(batch), os.cpu_count() or 1))) as pool:
        for case in batch:
            future = _lowered_and_submitted(case, pool)
            programs[case.name] = future.result if isinstance(future, Future) else future
    records.write("note", text=f"compiled {len(batch)} cases", seconds=time.monotonic() - started)
    return programs


def _lowered_and_submitted(case: Case, pool: ThreadPoolExecutor) -> Any:
    try:
        lowered = case.lower()  # tracing holds the GIL, so it stays on this thread
    except Exception as error:
        return Reraise(error)
    return pool.submit(lambda: [program.compile() for program in lowered])


@dataclass(frozen=True, slots=True)
class Reraise:
    """A call that raises what an earlier one did."""

    error: Exception

    def __call__(self) -> list[Any]:
        raise self.error


def run_cases(
    module: CaseModule, settings: Settings, records: Records, *, skip: int, window: int
) -> int:
    """Run the module's cases behind the first ``skip``; the exit code."""
    cases = list(module.cases(settings))[settings.shard :: settings.num_shards]
    records.write("plan", cases=[case.name for case in cases])
    for start in range(skip, len(cases), window):
        batch = cases[start : start + window]
        if window == 1:  # so that a crash of the compiler has a name
            records.write("begin", case=batch[0].name)
        has_time = settings.time_left_s > 0
        programs = compile_ahead(batch, records) if has_time and _has_programs(batch) else {}
        for case in batch:
            records.write("begin", case=case.name)
            started = time.monotonic()
            if settings.time_left_s <= 0:
                records.end(case.name, "skipped", 0.0, {}, OUT_OF_TIME)
                continue
            compiled = programs.pop(case.name, list)
            status, values, error = outcome(
                lambda case=case, compiled=compiled: case.run(*compiled())
            )
            records.end(case.name, status, time.monotonic() - started, values, error)
            if status == "failed" and not module.is_healthy():
                return UNHEALTHY
    return 0


def _has_programs(batch: Sequence[Case]) -> bool:
    return any(case.lower is not tuple for case in batch)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("module")
    parser.add_argument("--settings", required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--window", type=int, default=1)
    args = parser.parse_args()
    records = Records(args.records)
    try:
        module: Any = importlib.import_module(args.module)
    except ModuleNotFoundError as error:
        records.write("begin", case="import")
        records.end("import", "skipped", 0.0, {}, f"{error}; is it installed here?")
        return 0
    settings = Settings.loads(args.settings)
    return run_cases(module, settings, records, skip=args.skip, window=args.window)
