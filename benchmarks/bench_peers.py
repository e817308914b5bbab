"""The same workload against jaxserve and every installed peer, in one run, as ratios.

    python benchmarks/bench_peers.py --model MODEL_DIR --host-model TINY_DIR \\
        --transformers-python VENV/bin/python --vllm-python OTHER_VENV/bin/python \\
        --output result.json --markdown result.md --plot result.png

``benchmarks/peers/export_hf.py`` writes both folders.  In every round each engine is started,
measured at each concurrency, and stopped, one alive at a time and in another order each round, so
that a machine that slows down slows all of them.  Numbers are medians over the rounds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peer_engines import (
    REPO,
    SERVED_NAME,
    Engine,
    EngineFailedError,
    Workload,
    run_static,
    serving,
)
from peer_report import git_commit, hardware, is_ours, markdown, shown_command, today
from serving_client import BACKENDS, Target, run, shortened
from serving_metrics import summarise
from workloads import Lengths, random_workload

VOCAB_SIZE = 32_000
WARMUP_SEED = 500_000
KEPT_METRICS = ("median_ttft_ms", "p99_ttft_ms", "median_itl_ms", "p99_itl_ms", "median_tpot_ms")
VLLM_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", help="Hugging Face folder that every engine serves")
    what.add_argument("--host-model", help="tiny model of the host-overhead section; servers only")
    what.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    what.add_argument("--host-concurrency", type=int, nargs="+", default=[64])
    what.add_argument("--input-len", type=int, default=128)
    what.add_argument("--output-len", type=int, default=128)
    what.add_argument("--waves", type=int, default=2, help="requests per concurrent client")
    what.add_argument("--host-waves", type=int, default=4)
    what.add_argument("--temperature", type=float, default=0.0, help="0 = greedy")
    what.add_argument("--host-temperature", type=float, default=0.0)
    what.add_argument("--rounds", type=int, default=3)
    what.add_argument("--quick", action="store_true", help="one round, one wave")
    who = parser.add_argument_group("engines; a peer takes part when its python is given")
    who.add_argument("--jaxserve-python", default=sys.executable, help='"" = leave it out')
    who.add_argument("--jaxserve-dtypes", nargs="+", default=["auto"])
    who.add_argument("--jaxserve-args", default="", help="more flags of its server, in one string")
    who.add_argument("--transformers-python")
    who.add_argument("--vllm-python")
    who.add_argument("--vllm-args", default="", help="more flags of its server, in one string")
    who.add_argument("--vllm-env", nargs="+", default=[], metavar="KEY=VALUE")
    who.add_argument("--peer-dtypes", nargs="+", default=["float32", "bfloat16"])
    who.add_argument(
        "--server",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "BACKEND", "COMMAND"),
        help="another server: its bench_serving backend, its command with {model} and {port}",
    )
    who.add_argument("--start-timeout", type=float, default=600.0, help="seconds to be ready")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, help="JSON with every sample")
    output.add_argument("--markdown", type=Path, help="the table, also printed")
    output.add_argument("--plot", type=Path, help="bars (.png, .svg); needs --output, matplotlib")
    output.add_argument("--log-dir", type=Path, help="of the servers; default: a temporary folder")
    return parser


def engines_of(args: argparse.Namespace) -> list[Engine]:
    """Return jaxserve first, then the peers whose environment was given."""
    ours = args.jaxserve_args.split()
    vllm_env = VLLM_ENV | dict(pair.split("=", 1) for pair in args.vllm_env)
    engines = [
        Engine(
            name="jaxserve" if dtype == "auto" else f"jaxserve {dtype}",
            kind="jaxserve",
            python=args.jaxserve_python,
            dtype=dtype,
            extra_args=tuple(ours),
        )
        for dtype in args.jaxserve_dtypes
        if args.jaxserve_python
    ]
    for dtype in args.peer_dtypes:
        if args.transformers_python:
            name = f"transformers {dtype}"
            peer = Engine(
                name=name, kind="transformers", python=args.transformers_python, dtype=dtype
            )
            engines.append(peer)
        if args.vllm_python:
            vllm = Engine(
                name=f"vllm {dtype}",
                kind="vllm",
                python=args.vllm_python,
                dtype=dtype,
                backend="vllm",
                extra_args=tuple(args.vllm_args.split()),
                env=vllm_env,
            )
            engines.append(vllm)
    for name, backend, command in args.server:
        if backend not in BACKENDS:
            raise SystemExit(f"--server {name}: {backend} is none of {', '.join(BACKENDS)}")
        engines.append(Engine(name=name, kind="custom", backend=backend, command=command))
    return engines


def sections_of(args: argparse.Namespace) -> list[Workload]:
    lengths = {"input_len": args.input_len, "output_len": args.output_len}
    dense = Workload(
        name="model",
        model=args.model or "",
        concurrencies=tuple(args.concurrency),
        waves=1 if args.quick else args.waves,
        temperature=args.temperature,
        **lengths,
    )
    host = Workload(
        name="host overhead",
        model=args.host_model or "",
        concurrencies=tuple(args.host_concurrency),
        waves=1 if args.quick else args.host_waves,
        temperature=args.host_temperature,
        **lengths,
    )
    return [section for section in (dense, host) if section.model]


def measure_server(
    engine: Engine, workload: Workload, seed: int, log_file: Path, timeout_s: float
) -> list[dict[str, Any]]:
    """Start the server, return one sample per concurrency, stop the server."""
    samples: list[dict[str, Any]] = []
    lengths = Lengths(workload.input_len, workload.output_len)
    with serving(engine, workload, log_file, timeout_s) as (base_url, startup_s):
        target = Target(
            base_url=base_url,
            backend=engine.backend,
            model=SERVED_NAME,
            temperature=workload.temperature,
        )
        for size in workload.concurrencies:
            # seeds differ, so that no prompt is in the prefix cache
            warm = random_workload(size, lengths, VOCAB_SIZE, seed + WARMUP_SEED + size)
            run(target, shortened(warm, 16), max_concurrency=size)
            asked = random_workload(size * workload.waves, lengths, VOCAB_SIZE, seed + size)
            results, duration = run(target, asked, max_concurrency=size)
            summary = summarise(results, duration)
            if summary["failed"]:
                first = next(result.error for result in results if result.error)
                raise EngineFailedError(f"{engine.name}: {summary['failed']} failed: {first}")
            sample = {"concurrency": size, "output_throughput": summary["output_throughput"]}
            sample |= {key: summary[key] for key in KEPT_METRICS} | {"startup_s": startup_s}
            samples.append(sample)
    return samples


def measure(
    engine: Engine, workload: Workload, seed: int, log_dir: Path, timeout_s: float
) -> list[dict[str, Any]]:
    """Return the samples of one engine in one round, or raise ``EngineFailedError``."""
    load = os.getloadavg()[0]
    if engine.is_server:
        log_file = log_dir / f"{workload.name}-{engine.name}-{seed}.log".replace(" ", "-")
        samples = measure_server(engine, workload, seed, log_file, timeout_s)
    else:
        samples = run_static(engine, workload, seed)
    common = {"section": workload.name, "engine": engine.name, "load_before": load}
    return [common | sample for sample in samples]


def compare(
    engines: Sequence[Engine], sections: Sequence[Workload], args: argparse.Namespace, log_dir: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run all rounds; return the samples and what failed.  A failure costs that sample only."""
    samples: list[dict[str, Any]] = []
    failures: list[str] = []
    rounds = 1 if args.quick else args.rounds
    for index in range(rounds):
        order = [*engines[index % len(engines) :], *engines[: index % len(engines)]]
        for section in sections:
            for engine in order:
                if section.name == "host overhead" and not engine.is_server:
                    continue
                try:
                    found = measure(engine, section, 1000 * index, log_dir, args.start_timeout)
                except EngineFailedError as error:
                    failures.append(f"{section.name}, {engine.name}, round {index}: {error}")
                    print(failures[-1], file=sys.stderr, flush=True)
                    continue
                samples += [sample | {"round": index} for sample in found]
                shown = [f"{s['concurrency']}: {s['output_throughput']:.1f}" for s in found]
                print(f"round {index} {section.name} {engine.name}: {', '.join(shown)}", flush=True)
    rank = [engine.name for engine in engines]
    return sorted(samples, key=lambda sample: rank.index(sample["engine"])), failures


def main() -> None:
    args = build_parser().parse_args()
    engines, sections = engines_of(args), sections_of(args)
    if not engines or not sections:
        raise SystemExit("nothing to measure: give --model or --host-model, and an engine's python")
    if args.plot and not args.output:
        raise SystemExit("--plot draws the file of --output; give both")
    log_dir = args.log_dir or Path(tempfile.mkdtemp(prefix="bench-peers-"))
    log_dir.mkdir(parents=True, exist_ok=True)
    samples, failures = compare(engines, sections, args, log_dir)
    report = {
        "command": shown_command(sys.argv),
        "commit": git_commit(REPO),
        "date": today(),
        "hardware": hardware(),
        "rounds": 1 if args.quick else args.rounds,
        "versions": {engine.name: engine.versions() for engine in engines},
        "sections": [asdict(section) | {"model": Path(section.model).name} for section in sections],
        "samples": samples,
        "failures": [failure.splitlines()[0] for failure in failures],
    }
    text = markdown(report)
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        script = str(REPO / "benchmarks" / "plot_peers.py")
        subprocess.run([sys.executable, script, str(args.output), str(args.plot)], check=True)
    if any(is_ours(failure.split(", ")[1]) for failure in failures):
        raise SystemExit(f"jaxserve failed; the logs are in {log_dir}")


if __name__ == "__main__":
    main()
