"""Check and time jaxserve on a GPU: one command, at most 8 minutes, no network.

scripts/gpu                     everything; results under benchmarks/results/
scripts/gpu --prepare           before, where there is a network: what to carry along
scripts/gpu --dry-run           the same path on the CPU, tiny
"""

import argparse
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from peer_report import git_commit, hardware, shown_command, today

from gpu import report, wheels
from gpu.environment import REPO, worker_environment
from gpu.settings import DEFAULT_BUDGET_S, PARTS, WORKERS, Settings, Worker
from gpu.supervisor import Supervisor

RESERVE_S = 12.0  # for the plot and the last table
PLOT_S = 20.0
CHECKS = ("correctness", "sanitizer", "steps")
LEAST_S = 5.0  # a worker with less is not started


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--prepare", action="store_true",
                        help=f"fetch what a GPU machine lacks into {wheels.FOLDER}/")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at tiny sizes")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="comma-separated; all: %(default)s"
    )
    parser.add_argument("--budget-s", type=float, default=DEFAULT_BUDGET_S, help="for all together")
    parser.add_argument("--output", type=Path, default=REPO / "benchmarks" / "results")
    parser.add_argument("--name", help="of the result files; default: date, device")
    parser.add_argument("--commit", help="what to call this tree where it is no git checkout")
    parser.add_argument("--seed", type=int, help="of all random arguments; default: new each time")
    return parser


def chosen(parts: str) -> list[Worker]:
    """The workers of ``--parts``, in their own order."""
    wanted = [part for part in parts.split(",") if part]
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown or not wanted:
        raise SystemExit(f"--parts {parts}: choose from {', '.join(PARTS)}")
    return [worker for worker in WORKERS if worker.part in wanted]


def prepare() -> None:
    """Fetch the wheels and say what to carry."""
    folder = REPO / wheels.FOLDER
    found = wheels.fetch(folder)
    size = sum(wheel.stat().st_size for wheel in found)
    print(
        f"{len(found)} wheels for Python {wheels.PYTHON}, {size / 2**20:.1f} MB, in {folder.name}/:"
    )
    print("\n".join(f"  {wheel.name}" for wheel in found))
    print(f"Carry this tree and {folder.name}/ to the GPU machine, then run scripts/gpu there.")


class Run:
    """Takes the records as they come, prints them, and keeps the files up to date."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self._about = about
        self._started = time.monotonic()
        self.records: list[dict[str, Any]] = []

    def take(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        at = f"[{time.monotonic() - self._started:5.0f} s]"
        if record["kind"] == "note":
            print(
                f"{at} {record['part']}: {record['text']} in {record['seconds']:.1f} s", flush=True
            )
        elif record["kind"] == "end":
            what = f"{record['part']}: {record['case']}: {record['status']}"
            error = " ".join(record["error"].split())[:200]
            print(f"{at} {what} {_shown(record['values'])}{error}", flush=True)
            self.save()

    def save(self) -> None:
        self._about["seconds"] = round(time.monotonic() - self._started, 1)
        report.write(self._path, self._about, self.records)


def _shown(values: dict[str, Any]) -> str:
    wanted = ("error", "median_s", "bytes_per_s", "flops_per_s", "output_throughput", "summary",
              "logprob_difference", "equal", "device_kind")  # fmt: skip
    found = [f"{name}={values[name]:.4g}" if isinstance(values[name], float) else
             f"{name}={values[name]}" for name in wanted if name in values]  # fmt: skip
    return " ".join([*found, ""])


def run_all(args: argparse.Namespace, scratch: Path, site: Path | None, started: float) -> int:
    """Run the workers one after another; the exit code is 1 where one is bad."""
    seed = time.time_ns() % 2**31 if args.seed is None else args.seed
    settings = Settings(args.dry_run, seed, str(scratch), str(args.output))
    device = "cpu-dry-run" if args.dry_run else _gpu_name()
    path = args.output / (args.name or f"{today()}-gpu-{device}")
    about = {
        "title": f"jaxserve on {device}, {today()}",
        "is_dry_run": args.dry_run,
        "command": shown_command(["scripts/gpu", *sys.argv[1:]]).removeprefix("python "),
        "commit": args.commit or git_commit(REPO),
        "date": today(),
        "seed": seed,
        "hardware": hardware(),
    }
    run = Run(path, about)
    log = report.beside(path, ".log")
    log.unlink(missing_ok=True)
    environment = partial(worker_environment, settings, site=site)
    supervisor = Supervisor(settings, environment, log, run.take)
    deadline = started + args.budget_s - RESERVE_S
    todo = chosen(args.parts)
    for index, worker in enumerate(todo):
        left = deadline - time.monotonic()
        # Time that one part leaves over goes to those behind it.
        time_s = left * worker.share / sum(other.share for other in todo[index:])
        print(f"--- {worker.part} ({worker.name}): {time_s:.0f} s", flush=True)
        begun = time.monotonic()
        if time_s >= LEAST_S:
            supervisor.run(worker, time_s)
        run.take({"kind": "worker", "part": worker.part, "module": worker.name,
                  "seconds": round(time.monotonic() - begun, 1)})  # fmt: skip
        run.save()
    _plot(path, scratch, environment(WORKERS[0]))
    print(report.beside(path, ".md").read_text("utf-8"))
    return 1 if any(map(is_bad, run.records)) else 0


def is_bad(record: dict[str, Any]) -> bool:
    """A wrong result anywhere, or a check that could not be made; not a baseline that failed."""
    status = record.get("status")
    return status == "wrong" or (status == "failed" and record["part"] in CHECKS)


def _plot(path: Path, scratch: Path, env: dict[str, str]) -> None:
    files = [str(report.beside(path, suffix)) for suffix in (".json", ".png")]
    command = [sys.executable, "-m", "gpu.plot", *files]
    try:
        subprocess.run(command, env=env | {"MPLCONFIGDIR": str(scratch)}, timeout=PLOT_S,
                       check=True, capture_output=True)  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"no plot: {error}")


def _gpu_name() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemExit(
            f"scripts/gpu needs an NVIDIA GPU ({error}); --dry-run needs none"
        ) from None
    return "-".join(done.stdout.splitlines()[0].lower().split()[1:3]) or "gpu"


def main() -> int:
    started = time.monotonic()
    args = build_parser().parse_args()
    if args.prepare:
        prepare()
        return 0
    chosen(args.parts)
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="jaxserve-gpu-") as name:
        scratch, site, carried = Path(name), None, []
        if (REPO / wheels.FOLDER).is_dir():
            site = scratch / "site"
            carried = wheels.install(REPO / wheels.FOLDER, site)
            print(f"carried packages in use: {', '.join(carried) or 'none is needed'}")
        missing = wheels.missing(carried)
        if missing:
            print(f"this Python lacks {', '.join(missing)}: most parts will fail. Where there is a "
                  f"network, scripts/gpu --prepare fetches what is needed")  # fmt: skip
        return run_all(args, scratch, site, started)


if __name__ == "__main__":
    sys.exit(main())
