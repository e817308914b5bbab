"""Find the fastest kernel configuration per shape on this machine's GPU.

    python scripts/tune_kernels.py                      # writes pallas_kernels/tuned/<device>.json
    python scripts/tune_kernels.py --budget-s 600 --page-size 32
    python scripts/tune_kernels.py --dry-run --out /tmp/x.json   # no GPU: xla, tiny shapes

Each configuration is compared with the ``xla`` implementation on random inputs, then timed.  The
search starts at the heuristic's configuration and changes one field after the other.  The file is
written after every shape, and a shape that is in it is not tried again: a run that was cut off
goes on where it stopped.  A configuration that fails, differs or hangs is reported and passed
over; kernels run in a process of their own, which is replaced when one hangs.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pallas_kernels.support import KV_DTYPES
from pallas_kernels.tuning import (
    MAX_SPLITS,
    TUNED,
    AttentionShape,
    Config,
    DecodeConfig,
    TuningKey,
    fits,
    parse_tuned,
    reasoned_decode_config,
    reasoned_extend_config,
)

ROOT = Path(__file__).resolve().parent.parent
WORKER = ROOT / "scripts" / "kernel_worker.py"
START_S = 120.0  # for a worker to import jax and find its device
JOB_S = 60.0  # to compile, check and time one configuration

# (query heads, kv heads, head dim) on one device: what the served models have.
HEADS = {
    "llama-3.1-8b, qwen3-8b": (32, 8, 128),
    "qwen2.5-0.5b": (14, 2, 64),
    "qwen2.5-7b": (28, 4, 128),
    "llama-3.1-8b on 8 devices": (4, 1, 128),
}
DECODE_ROWS = (32, 1, 128, 8)  # those that matter most first: the budget may end the list
EXTEND_TOKENS = (2048, 512, 8192)
CONTEXTS = (4096, 1024, 16384)


class WorkerLost(Exception):
    """The worker gave no answer in time, or ended."""


class Worker:
    """A ``kernel_worker.py`` process; started when first asked and again after a loss."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start(self) -> dict:
        """Start a fresh process and return what it says of its device."""
        self.close()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._lines = queue.SimpleQueue()
        threading.Thread(
            target=_forward, args=(self._process.stdout, self._lines), daemon=True
        ).start()
        return self._read(START_S)

    def ask(self, job: dict) -> dict:
        """The answer to ``job``; what a lost worker's job gets is an error too."""
        try:
            if self._process is None:
                self.start()
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            return self._read(JOB_S)
        except (WorkerLost, OSError) as error:
            self.close()
            return {"error": f"worker lost: {error}"}

    def close(self) -> None:
        """End the process, hanging or not."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _read(self, timeout_s: float) -> dict:
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise WorkerLost(f"no answer in {timeout_s:.0f} s") from None
        if not line:
            raise WorkerLost(f"it ended with status {self._process.wait()}")
        return json.loads(line)


def _forward(stream: Iterator[str], lines: "queue.SimpleQueue[str]") -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


@dataclass(frozen=True)
class Found:
    """The outcome of one shape's search."""

    config: Config
    us: float
    first_us: float | None  # of the heuristic's configuration; None if it failed
    num_tried: int
    errors: tuple[str, ...]


def search(first: Config, shape: AttentionShape, measure: Callable[[Config], dict]) -> Found | None:
    """Change one field after the other, keep what is faster; None if nothing ran."""
    seen: dict[Config, float | None] = {}
    errors: list[str] = []

    def us_of(config: Config) -> float:
        if config not in seen:
            answer = measure(config)
            seen[config] = answer.get("us")
            if "error" in answer:
                errors.append(f"{config}: {answer['error']}")
        return seen[config] if seen[config] is not None else float("inf")

    best = first
    us_of(first)
    for field, values in choices(first, shape):
        tried = (replace(best, **{field: value}) for value in values)
        best = min((best, *(config for config in tried if fits(config, shape))), key=us_of)
    if us_of(best) == float("inf"):
        return None
    return Found(best, us_of(best), seen[first], len(seen), tuple(errors))


def choices(first: Config, shape: AttentionShape) -> Iterator[tuple[str, list[int]]]:
    """Fields in the order in which they are settled, with the values to try."""
    if isinstance(first, DecodeConfig):
        most = min(MAX_SPLITS, max(1, shape.context // first.block_kv))
        middle = first.num_splits
        wanted = {1, middle // 4, middle // 2, middle * 2, middle * 4}
        yield "num_splits", sorted(value for value in wanted if 1 <= value <= most)
    yield "num_stages", [2, 3, 4]
    pages_fit = [block for block in (64, 128) if block % shape.page_size == 0]
    yield "block_kv", pages_fit


def real_shapes(page_size: int, dtype: str) -> Iterator[tuple[str, AttentionShape]]:
    """The served models' shapes, most telling first."""
    for context in CONTEXTS:
        for op, sizes in (("decode", DECODE_ROWS), ("extend", EXTEND_TOKENS)):
            for size in sizes:
                for heads in HEADS.values():
                    if op == "extend" and context < size // 4:
                        continue
                    yield op, AttentionShape(size, *heads, page_size, context // page_size, dtype)


def tiny_shapes() -> Iterator[tuple[str, AttentionShape]]:
    """What a CPU can do in a moment."""
    yield "decode", AttentionShape(2, 4, 2, 64, 16, 4, "float32")
    yield "extend", AttentionShape(24, 4, 2, 64, 16, 4, "float32")


def key_of(op: str, shape: AttentionShape) -> TuningKey:
    """Where the shape's configuration is filed."""
    return TuningKey.of_decode(shape) if op == "decode" else TuningKey.of_extend(shape)


def figures(op: str, shape: AttentionShape, found: Found) -> dict[str, object]:
    """What is written beside a configuration."""
    sizes = {"num_tokens": shape.num_tokens, "num_kv_heads": shape.num_kv_heads}
    return {
        **sizes,
        "us": round(found.us, 2),
        "heuristic_us": None if found.first_us is None else round(found.first_us, 2),
        "num_tried": found.num_tried,
        "num_failed": len(found.errors),
    }


def load_entries(path: Path, device: str, jax_version: str) -> list[dict]:
    """What an earlier run with the same jax on this device has written to ``path``."""
    if not path.is_file():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    parse_tuned(data, device)
    return data["entries"] if data["jax"] == jax_version else []


def save(path: Path, about: dict[str, str], entries: list[dict]) -> None:
    """Write the whole file, or leave the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps({**about, "entries": entries}, indent=1) + "\n", encoding="utf-8")
    scratch.replace(path)


def about_this_run(hello: dict) -> dict[str, str]:
    """Device, jax version, date, commit."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return {
        "device": hello["device"],
        "jax": hello["jax"],
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit or "unknown",
    }


def tune(
    jobs: Iterator[tuple[str, AttentionShape]],
    ask: Callable[[dict], dict],
    entries: list[dict],
    keep: Callable[[list[dict]], None],
    is_over: Callable[[], bool],
) -> int:
    """Search each shape that has no entry yet; returns the number of shapes without a result."""
    done = {TuningKey(**entry["key"]) for entry in entries}
    num_failed = 0
    for op, shape in jobs:
        key = key_of(op, shape)
        if key in done:
            continue
        if is_over():
            print("the time is up; run again to go on")
            break
        print(f"{op} {shape.num_heads}/{shape.num_kv_heads} heads of {shape.head_dim}, "
              f"{shape.num_tokens} tokens, context {shape.context}", flush=True)  # fmt: skip
        first = (reasoned_decode_config if op == "decode" else reasoned_extend_config)(shape)
        job = {"op": op, "shape": asdict(shape)}
        found = search(first, shape, lambda config, job=job: ask(job | {"config": asdict(config)}))
        done.add(key)
        if found is None:
            num_failed += 1
            print("  every configuration failed; the heuristic stays")
            continue
        for error in found.errors:
            print(f"  failed: {error}")
        print(f"  {found.us:.1f} us ({found.first_us or float('nan'):.1f}): {found.config}")
        measured = figures(op, shape, found)
        entries.append({"key": asdict(key), "config": asdict(found.config), "measured": measured})
        keep(entries)
    return num_failed


def main(argv: list[str] | None = None) -> int:
    """0: every shape tried has a result; 1: some have none; 2: no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="default: pallas_kernels/tuned/<device>.json")
    parser.add_argument("--budget-s", type=float, default=240, help="start no shape after this")
    parser.add_argument("--page-size", type=int, default=16, choices=(16, 32, 64))
    parser.add_argument("--dtype", default="bfloat16", choices=KV_DTYPES, help="of the pools")
    parser.add_argument("--dry-run", action="store_true", help="xla at tiny sizes; needs --out")
    args = parser.parse_args(argv)
    if args.dry_run and args.out is None:
        parser.error("--dry-run needs --out FILE: its figures are no measurements of a kernel")
    worker = Worker([sys.executable, str(WORKER), *(["--dry-run"] if args.dry_run else [])])
    deadline = time.monotonic() + args.budget_s
    try:
        hello = worker.start()
        if hello["backend"] != "gpu" and not args.dry_run:
            print(f"jax runs on {hello['backend']} here; tuning needs a GPU, or --dry-run")
            return 2
        path = args.out or TUNED / f"{hello['device']}.json"
        about = about_this_run(hello)
        jobs = tiny_shapes() if args.dry_run else real_shapes(args.page_size, args.dtype)
        num_failed = tune(
            jobs,
            worker.ask,
            load_entries(path, about["device"], about["jax"]),
            lambda entries: save(path, about, entries),
            lambda: time.monotonic() > deadline,
        )
        print(f"{path}: {len(load_entries(path, about['device'], about['jax']))} shapes")
        return int(num_failed > 0)
    finally:
        worker.close()


if __name__ == "__main__":
    sys.exit(main())
