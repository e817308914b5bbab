"""Compile kernels and whole serving steps for an H100 on a machine without a GPU.

    scripts/aot kernels                                       # one row per kernel configuration
    scripts/aot kernels --op extend --head-dim 128 --grid all
    scripts/aot step llama-3.1-8b --goals                     # the three steps of the goals
    scripts/aot step qwen3-8b --tp 8 --mode extend --rows 4 --tokens 4096 --kernels-of-layer

``scripts/aot`` runs ``python -m pallas_kernels.aot`` in an environment that can: jax with its
CUDA plugin and nvcc's ptxas.  Exit status 1 means that a law is broken: a spill, a second CUDA
graph, a while loop, a copy of pool or weight size, state that is not updated in place, or
temporaries beyond their limit.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from pallas_kernels import aot_kernels, aot_step
from pallas_kernels.aot_compile import TARGET, Compiler
from pallas_kernels.aot_mosaic import MosaicKernel
from pallas_kernels.aot_report import (
    COPY_TB_S,
    GAP_US,
    MATMUL_TFLOP_S,
    Roofline,
    duration,
    human,
    table,
)
from pallas_kernels.support import KV_DTYPES

PROVIDER = "jaxserve.aot_steps:step_program"
# What tracing, Mosaic and XLA raise for a program that they cannot compile
COMPILE_ERRORS = (ValueError, TypeError, NotImplementedError, RuntimeError)
_COMPILED = "compile_s"  # a row of figures has it, that of a failure does not


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    # Asked when the first backend starts: the GPU is described, not there.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    jax.config.update("jax_platforms", "cpu")
    run = _kernels if args.command == "kernels" else _steps
    rows = _in_children(arguments, args.jobs) if args.jobs > 1 else run(args)
    if args.json:
        print(json.dumps(rows))
    else:
        print(_kernel_table(rows) if args.command == "kernels" else _step_table(rows))
    return 1 if any(row["problems"] for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    kernels = commands.add_parser("kernels", help="every kernel configuration, or a selection")
    kernels.add_argument("--grid", choices=aot_kernels.GRIDS, default="shapes")
    kernels.add_argument("--op", choices=aot_kernels.OPS)
    for name, kind in (("head-dim", int), ("page-size", int), ("group", int), ("dtype", str)):
        kernels.add_argument(f"--{name}", type=kind, help="only these cases of the grid")
    kernels.add_argument("--shard", default="0/1", help=argparse.SUPPRESS)
    steps = commands.add_parser("step", help="a serving step of a model")
    _add_step_flags(steps)
    for command in (kernels, steps):
        command.add_argument("--jobs", type=int, default=1, help="processes that compile")
        command.add_argument("--json", action="store_true", help="print rows of figures as JSON")
        command.add_argument("--dump", type=Path, help="folder that keeps HLO, thunks, PTX, SASS")
        command.add_argument("--target", type=Path, default=TARGET, help="description of the GPU")
        command.add_argument("--copy-tb-s", type=float, default=COPY_TB_S)
        command.add_argument("--matmul-tflop-s", type=float, default=MATMUL_TFLOP_S)
        command.add_argument("--gap-us", type=float, default=GAP_US, help="between two launches")
    return parser


def _add_step_flags(steps: argparse.ArgumentParser) -> None:
    steps.add_argument("models", nargs="+", help="published names or paths of a config.json")
    steps.add_argument("--provider", default=PROVIDER, help="module:function that lowers steps")
    steps.add_argument("--mode", choices=aot_step.MODES, default="decode")
    steps.add_argument("--goals", action="store_true", help="decode 1 and 64 rows, prefill 8192")
    steps.add_argument("--tp", type=int, nargs="+", default=[1], help="number of GPUs")
    steps.add_argument("--rows", type=int, default=64)
    steps.add_argument("--tokens", type=int, default=8192, help="of an extend step, all rows")
    steps.add_argument("--context", type=int, help="tokens per row in the pool; default 1024")
    steps.add_argument("--pages-per-row", type=int, help="of the page table; default: 8192 tokens")
    steps.add_argument("--page-size", type=int, default=16)
    steps.add_argument("--pages", type=int, default=8192, help="of the pool")
    steps.add_argument("--layers", type=int, help="cut the model to so many")
    steps.add_argument("--implementation", default="pallas", help="of the attention ops")
    steps.add_argument("--kv-dtype", choices=KV_DTYPES, default="bfloat16", help="of the pool")
    steps.add_argument("--kernels-of-layer", action="store_true", help="list a middle layer")
    steps.add_argument("--shard", default="0/1", help=argparse.SUPPRESS)


def _kernels(args: argparse.Namespace) -> list[dict[str, Any]]:
    compiler, roofline = Compiler(target=args.target), _roofline(args)
    wanted = {"op": args.op, "head_dim": args.head_dim, "page_size": args.page_size,
              "group": args.group, "dtype": args.dtype}  # fmt: skip
    wanted = {name: value for name, value in wanted.items() if value is not None}
    cases = [
        case
        for case in aot_kernels.grid(args.grid)
        if all(getattr(case, name, None) == value for name, value in wanted.items())
    ]
    rows = []
    for index, case in _own(cases, args.shard):
        folder = args.dump / f"kernel{index:04d}" if args.dump else None
        try:
            rows.append(aot_kernels.compile_kernel(compiler, case, folder=folder).row(roofline))
        except COMPILE_ERRORS as error:
            rows.append(_failed("kernel", case.title, error))
        print(f"{index + 1}/{len(cases)} {case.title}", file=sys.stderr)
    return rows


def _steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    provider, roofline = aot_step.load_provider(args.provider), _roofline(args)
    requests = [
        request for model in args.models for tp in args.tp for request in _requests(args, model, tp)
    ]
    rows: list[dict[str, Any]] = []
    seen: dict[str, MosaicKernel] = {}
    for index, request in _own(requests, args.shard):
        folder = args.dump / f"step{index:04d}" if args.dump else None
        try:
            step = aot_step.compile_step(
                request, provider, target=args.target, seen=seen, folder=folder
            )
            rows.append(aot_step.row(step, roofline, with_layer=args.kernels_of_layer))
        except COMPILE_ERRORS as error:
            rows.append(_failed("step", request.title, error))
        print(f"{index + 1}/{len(requests)} {request.title}", file=sys.stderr)
    return rows


def _failed(what: str, title: str, error: Exception) -> dict[str, Any]:
    """The row of what does not compile: the others are still worth having."""
    return {what: title, "problems": [f"does not compile: {type(error).__name__}: {error}"]}


def _requests(args: argparse.Namespace, model: str, tp: int) -> list[aot_step.StepRequest]:
    if args.goals:
        shapes = [("decode", 1, 1, 1024), ("decode", 64, 64, 1024), ("extend", 1, 8192, 8192)]
    elif args.mode == "extend":
        shapes = [("extend", args.rows, args.tokens, args.context or args.tokens // args.rows)]
    else:
        shapes = [(args.mode, args.rows, args.rows, args.context or 1024)]
    return [
        aot_step.StepRequest(
            model=model,
            mode=mode,
            num_rows=rows,
            num_tokens=tokens,
            pages_per_row=args.pages_per_row or -(-max(context, 8192) // args.page_size),
            num_pages=args.pages,
            context=context,
            page_size=args.page_size,
            num_layers=args.layers,
            tp_size=tp,
            implementation=args.implementation,
            kv_dtype=args.kv_dtype,
        )
        for mode, rows, tokens, context in shapes
    ]


def _own(items: Sequence[Any], shard: str) -> list[tuple[int, Any]]:
    """This process's share, ``i/n``, with the place of each item in the whole."""
    index, num_shards = map(int, shard.split("/"))
    return list(enumerate(items))[index::num_shards]


def _in_children(arguments: list[str], num_jobs: int) -> list[dict[str, Any]]:
    """Compile in several processes: Mosaic's dumps and tracing allow one program at a time."""
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "pallas_kernels.aot", *arguments]
            + ["--jobs", "1", "--json", "--shard", f"{index}/{num_jobs}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(num_jobs)
    ]
    outputs = [child.communicate()[0] for child in children]
    for child, output in zip(children, outputs, strict=True):
        if not output.strip():
            raise SystemExit(f"a compiling process ended with status {child.returncode}, see above")
    parts = [json.loads(output.splitlines()[-1]) for output in outputs]
    longest = max(map(len, parts))
    return [part[place] for place in range(longest) for part in parts if place < len(part)]


def _roofline(args: argparse.Namespace) -> Roofline:
    return Roofline(args.copy_tb_s * 1e12, args.matmul_tflop_s * 1e12, args.gap_us * 1e-6)


def _kernel_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ("kernel", "regs", "spills B", "smem B", "threads", "HGMMA", "UTMALDG", "launches",
              "bytes", "GFLOP", "roofline")  # fmt: skip
    cells = [
        (row["kernel"], row["registers"], row["spill_bytes"], row["shared_bytes"], row["threads"],
         _yes(row["hgmma"]), _yes(row["utmaldg"]), row["launches"], human(row["bytes"]),
         f"{row['flops'] / 1e9:.1f}", duration(row["roofline_s"]))
        for row in rows
        if _COMPILED in row
    ]  # fmt: skip
    return f"{table(header, cells)}\n\n{_verdict(rows, 'kernel')}"


def _goal(goal_s: float | None, program_s: float) -> str:
    if goal_s is None:
        return "none set"
    return f"{duration(goal_s)} {'met' if program_s <= goal_s else 'MISSED'}"


def _step_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ("step", "kernels", "/layer", "Mosaic", "graphs", "whiles", "big copies", "copies",
              "temp", "of weights", "aliased", "KV", "arguments", "bytes", "TFLOP", "floor",
              "program", "goal")  # fmt: skip
    cells = [
        (row["step"], f"{row['kernels']}+{row['branch_kernels']}", row["kernels_per_layer"],
         row["mosaic_calls"], row["graphs"], row["whiles"], len(row["big_copies"]), row["copies"],
         human(row["temp_bytes"]), f"{row['temp_share']:.2%}", human(row["aliased_bytes"]),
         human(row["kv_bytes"]), human(row["argument_bytes"]), human(row["bytes"]),
         f"{row['flops'] / 1e12:.3f}", duration(row["floor_s"]), duration(row["program_s"]),
         _goal(row["goal_s"], row["program_s"]))
        for row in rows
        if _COMPILED in row
    ]  # fmt: skip
    text = [table(header, cells), ""]
    for row in rows:
        if row.get("layer"):
            text.append(f"one middle layer of {row['step']}:")
            layer = [(item["instruction"], item["text"], item["op_name"], human(item["bytes"]),
                      duration(item["roofline_s"])) for item in row["layer"]]  # fmt: skip
            text += [table(("instruction", "writes", "from", "bytes", "roofline"), layer), ""]
    text.append(
        "Kernels: always run + in branches. Program: every launch at its roofline plus the gap\n"
        "between launches (assumed, --gap-us). XLA tunes matrix products only on a real GPU, so\n"
        "theirs are not the kernels that will run."
    )
    return "\n".join([*text, _verdict(rows, "step")])


def _verdict(rows: Sequence[dict[str, Any]], what: str) -> str:
    lines = [f"{row[what]}: {problem}" for row in rows for problem in row["problems"]]
    versions = " ".join(sorted({row["ptxas"] for row in rows if _COMPILED in row}))
    about = f"jax {jax.__version__}, ptxas {versions or 'not run'}"
    return "\n".join([*(lines or [f"{len(rows)} of {len(rows)} hold every law"]), about])


def _yes(fact: bool | None) -> str:
    return "-" if fact is None else "yes" if fact else "NO"


if __name__ == "__main__":
    sys.exit(main())
