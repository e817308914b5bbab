"""What structured output and logprobs cost: each against plain generation, alternating in one run.

    python benchmarks/bench_structured.py --model-path MODEL --rounds 5 --concurrency 8

Every answer has exactly --output-len tokens in every mode, so that output tokens per second
compare.  A round runs all modes one after the other, beginning with another one each time; the
ratio of a mode is the median over the rounds of its throughput over the plain one of its round.
Beside it, in brackets, the same for tokens per second of processor time (all threads of this
process): on a machine with other work it says more, on a GPU nothing.
Every flag that is not listed by --help goes to the engine, as in ``python -m jaxserve.launch``.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from workloads import Lengths, random_workload

from jaxserve import LLM
from jaxserve.flags import parse_flags

PLAIN = "plain"
MANY = 100_000  # more than any answer holds: the grammar never ends before the tokens do
TEXT = {"type": "string", "maxLength": 40}
RECORD = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email_address": {"type": "string", "format": "email"},
        "is_registered": {"type": "boolean"},
        "favourite_colours": {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2},
    },
    "required": ["name", "age", "email_address", "is_registered", "favourite_colours"],
    "additionalProperties": False,
}


def array_of(items: dict[str, Any]) -> str:
    return json.dumps({"type": "array", "items": items, "minItems": MANY})


# What each mode adds to the sampling parameters, and to the call.
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    PLAIN: ({}, {}),
    "json strings": ({"json_schema": array_of(TEXT)}, {}),
    "json records": ({"json_schema": array_of(RECORD)}, {}),
    "regex": ({"regex": f"([A-Z][a-z]{{2,12}}( [a-z]{{2,12}}){{2,8}}\\. ){{{MANY}}}"}, {}),
    "ebnf": ({"ebnf": f'root ::= ("- " item "\\n"){{{MANY}}}\nitem ::= [a-z ]{{3,30}}'}, {}),
    "logprobs": ({}, {"return_logprob": True}),
    "top logprobs": ({}, {"return_logprob": True, "top_logprobs_num": 5}),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="All other flags go to the engine.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--concurrency", type=int, default=8, help="prompts at the same time")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modes", nargs="+", choices=[m for m in MODES if m != PLAIN],
                        default=[m for m in MODES if m != PLAIN])  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result-filename", type=Path, help="append one JSON line")
    return parser


def measure(llm: LLM, mode: str, args: argparse.Namespace, seed: int) -> tuple[float, float]:
    """Output tokens per second, and per second of processor time, of ``--concurrency`` prompts."""
    lengths = Lengths(args.input_len, args.output_len, 1.0)
    workload = random_workload(args.concurrency, lengths, llm.info.vocab_size, seed)
    prompts = [list(conversation.turns[0].full_prompt) for conversation in workload]
    sampling, call = MODES[mode]
    params = {"temperature": 0.0, "max_new_tokens": args.output_len, "ignore_eos": True, **sampling}
    start, start_cpu = time.perf_counter(), time.process_time()
    answers = llm.generate(prompts, params, **call)
    elapsed_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    counts = {answer["meta_info"]["completion_tokens"] for answer in answers}
    if counts != {args.output_len}:
        raise SystemExit(f"{mode}: answers have {sorted(counts)} tokens, not {args.output_len}")
    num_tokens = len(prompts) * args.output_len
    return num_tokens / elapsed_s, num_tokens / cpu_s


def median_ratio(
    speeds: list[tuple[float, float]], plain: list[tuple[float, float]]
) -> list[float]:
    """Of wall time and of processor time, in percent."""
    ratios = [(100 * a / b, 100 * c / d) for (a, c), (b, d) in zip(speeds, plain, strict=True)]
    return [statistics.median(column) for column in zip(*ratios, strict=True)]


def main() -> None:
    """Print each mode's throughput and its ratio to plain generation."""
    args, engine_flags = build_parser().parse_known_args()
    config, _ = parse_flags(engine_flags)
    modes = [PLAIN, *args.modes]
    speeds: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    with LLM(config=config) as llm:
        for mode in modes:  # compiles grammars and steps
            measure(llm, mode, args, args.seed)
        for i in range(args.rounds):
            for mode in modes[i % len(modes) :] + modes[: i % len(modes)]:
                speeds[mode].append(measure(llm, mode, args, args.seed + 1 + i))
    ratios = {mode: median_ratio(speed, speeds[PLAIN]) for mode, speed in speeds.items()}
    print(f"{args.concurrency} at a time, {args.input_len} + {args.output_len} tokens, "
          f"median of {args.rounds} rounds")  # fmt: skip
    for mode, (of_wall, of_cpu) in ratios.items():
        speed = statistics.median(wall for wall, _ in speeds[mode])
        print(f"{mode:<14}{speed:10.1f} tok/s {of_wall:7.1f} % ({of_cpu:.1f} %)")
    if args.result_filename is not None:
        record = {"speeds": speeds, "ratios": ratios, "config": vars(args) | {"result_filename": 0}}
        with args.result_filename.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
