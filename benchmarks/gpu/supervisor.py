"""Runs workers one at a time, and outlives whatever happens to them.

A worker is killed when a case says nothing for too long or when the worker's time is over, and
started again behind the case that hung, crashed or broke the GPU's context.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gpu.settings import Settings, Worker
from gpu.worker import OUT_OF_TIME, UNHEALTHY

Record = dict[str, Any]
MAX_RESTARTS = 5
POLL_S = 0.1
GRACE_S = 3.0  # for the case in flight when a worker's time ends
TAIL_CHARS = 500
LOG_BYTES = 1 << 20  # of one process that are kept
KILL_WAIT_S = 20.0
BROKEN_DEVICE = "the GPU was unusable after a case"


@dataclass
class Progress:
    """How far one process's share of a worker's cases has come."""

    shard: int
    deadline: float
    planned: list[str] = field(default_factory=list)
    open_case: str | None = None
    num_done: int = 0
    is_compiling_ahead: bool = True


class Supervisor:
    """Runs workers and passes on what they find, each record with its part and module."""

    def __init__(
        self,
        settings: Settings,
        env: Callable[[Worker], Mapping[str, str]],
        log: Path,
        on_record: Callable[[Record], None],
    ) -> None:
        self._settings = settings
        self._env = env
        self._log = log
        self._on_record = on_record
        self._lock = threading.Lock()  # the processes of one worker are watched by a thread each

    def run(self, worker: Worker, time_s: float) -> None:
        """Run all of a worker's cases, or as many as ``time_s`` allows."""
        count = 1 if self._settings.is_dry_run else worker.num_processes
        shares = [Progress(shard, time.time() + time_s) for shard in range(count)]
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(partial(self._run_share, worker, count), shares))

    def _run_share(self, worker: Worker, count: int, progress: Progress) -> None:
        for _ in range(MAX_RESTARTS + 1):
            trouble = self._run_once(worker, count, progress)
            if trouble is None:
                return
            if time.time() > progress.deadline:
                break
            if progress.open_case is not None:
                self._end(worker, progress, "failed", trouble)
            elif trouble == BROKEN_DEVICE:
                continue
            elif progress.is_compiling_ahead and progress.planned:
                progress.is_compiling_ahead = False  # once more, one by one: which one is it?
            else:
                self._emit(worker, _end_record("start", "failed", trouble))
                return
        is_late = time.time() > progress.deadline
        reason = OUT_OF_TIME if is_late else "not run: too much failed before it"
        if progress.open_case is not None:
            self._end(worker, progress, "skipped", "not finished: out of time")
        for case in progress.planned[progress.num_done :]:
            self._emit(worker, _end_record(case, "skipped", reason))

    def _run_once(self, worker: Worker, count: int, progress: Progress) -> str | None:
        """Start the worker behind what is done; None when it came to its end."""
        own = Path(self._settings.scratch) / f"{worker.name}-{progress.shard}"
        records, own_log = own.with_suffix(".jsonl"), own.with_suffix(".log")
        records.unlink(missing_ok=True)
        settings = self._settings.of_process(progress.deadline, progress.shard, count)
        command = [
            sys.executable, "-m", "gpu.child", worker.module,
            "--settings", settings.dumps(), "--records", str(records),
            "--skip", str(progress.num_done),
            "--window", str(worker.window if progress.is_compiling_ahead else 1),
        ]  # fmt: skip
        with own_log.open("wb") as log:
            process = subprocess.Popen(
                command, env=dict(self._env(worker)), stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                trouble = self._watch(process, worker, records, progress)
            finally:
                _kill(process)
        said = own_log.read_bytes()
        with self._lock, self._log.open("ab") as log:
            log.write(
                f"=== {own.name}, behind {progress.num_done} cases\n".encode() + said[-LOG_BYTES:]
            )
        if trouble is None and process.returncode == UNHEALTHY:
            return BROKEN_DEVICE
        if trouble is None and process.returncode != 0:
            trouble = f"the process ended with code {process.returncode}"
        if trouble is not None:
            trouble += f"; its last words: {said.decode(errors='replace').strip()[-TAIL_CHARS:]}"
        return trouble

    def _watch(
        self,
        process: subprocess.Popen[bytes],
        worker: Worker,
        records: Path,
        progress: Progress,
    ) -> str | None:
        offset, heard = 0, time.time()
        while True:
            is_over = process.poll() is not None
            offset, lines = _new_lines(records, offset)
            for line in lines:
                heard = time.time()
                self._take(worker, json.loads(line), progress)
            if is_over:
                return None
            now = time.time()
            is_running = progress.open_case is not None and progress.is_compiling_ahead
            patience = worker.case_s if is_running else worker.silence_s
            if now - heard > patience:
                return f"killed: it hung, nothing heard for {patience:.0f} s"
            if now > progress.deadline + GRACE_S:
                return "killed: the part's time was over"
            time.sleep(POLL_S)

    def _take(self, worker: Worker, record: Record, progress: Progress) -> None:
        match record["kind"]:
            case "plan":
                progress.planned = record["cases"]
                return
            case "begin":
                progress.open_case = record["case"]
                return
            case "end":
                progress.open_case = None
                progress.num_done += 1
        self._emit(worker, record)

    def _end(self, worker: Worker, progress: Progress, status: str, error: str) -> None:
        assert progress.open_case is not None
        self._emit(worker, _end_record(progress.open_case, status, error))
        progress.open_case = None
        progress.num_done += 1

    def _emit(self, worker: Worker, record: Record) -> None:
        with self._lock:
            self._on_record({"part": worker.part, "module": worker.name, **record})


def _end_record(case: str, status: str, error: str) -> Record:
    return {"kind": "end", "case": case, "status": status, "seconds": 0.0, "values": {},
            "error": error}  # fmt: skip


def _new_lines(path: Path, offset: int) -> tuple[int, list[str]]:
    """What was appended since ``offset``, in whole lines."""
    if not path.exists():
        return offset, []
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return offset + len(whole), whole.decode().splitlines()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the worker and whatever it started, which may outlive it; it leads their group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process whose kernel hangs ends only when the driver has taken the GPU from it.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_WAIT_S)
