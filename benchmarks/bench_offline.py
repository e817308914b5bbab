"""Throughput of ``LLM.generate`` in this process: all prompts at once, no HTTP.

    python benchmarks/bench_offline.py --num-prompts 32 --random-input-len 128 \\
        --random-output-len 128 --random-range-ratio 1 --model-path MODEL --dtype float32

Every flag that is not listed by --help goes to the engine, as in ``python -m jaxserve.launch``.
The difference to bench_serving on the same workload is what HTTP and streaming cost.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workloads import Conversation, Lengths, random_workload, shared_prefix_workload

from jaxserve import LLM
from jaxserve.flags import parse_flags

WARMUP_SEED = 1_000_003
LINES = (
    ("Successful requests", "successful_requests"),
    ("Benchmark duration (s)", "total_latency"),
    ("Total input tokens", "total_input_tokens"),
    ("Total cached input tokens", "total_cached_tokens"),
    ("Total generated tokens", "total_output_tokens"),
    ("Request throughput (req/s)", "request_throughput"),
    ("Input token throughput (tok/s)", "input_throughput"),
    ("Output token throughput (tok/s)", "output_throughput"),
    ("Total token throughput (tok/s)", "total_throughput"),
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="All other flags go to the engine.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    names = ("random-ids", "generated-shared-prefix")
    parser.add_argument("--dataset-name", choices=names, default="random-ids")
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--random-input-len", type=int, default=128)
    parser.add_argument("--random-output-len", type=int, default=128)
    parser.add_argument("--random-range-ratio", type=float, default=1.0, help="1 = fixed lengths")
    parser.add_argument("--gsp-num-groups", type=int, default=8, help="prompts are split over them")
    parser.add_argument("--gsp-system-prompt-len", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1, help="runs with new prompts each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result-filename", type=Path, help="append one JSON line per run")
    return parser


def build_workload(args: argparse.Namespace, vocab_size: int, seed: int) -> list[Conversation]:
    lengths = Lengths(args.random_input_len, args.random_output_len, args.random_range_ratio)
    if args.dataset_name == "random-ids":
        return random_workload(args.num_prompts, lengths, vocab_size, seed)
    return shared_prefix_workload(
        args.gsp_num_groups,
        max(1, args.num_prompts // args.gsp_num_groups),
        lengths,
        system_prompt_len=args.gsp_system_prompt_len,
        vocab_size=vocab_size,
        seed=seed,
    )


def generate(llm: LLM, workload: Sequence[Conversation]) -> dict[str, Any]:
    """Return the throughputs of one call, under SGLang's keys; seconds and tokens."""
    turns = [conversation.turns[0] for conversation in workload]
    params = [
        {"temperature": 0.0, "max_new_tokens": turn.output_len, "ignore_eos": True}
        for turn in turns
    ]
    prompts = [list(turn.full_prompt) for turn in turns]
    start = time.perf_counter()
    answers = llm.generate(prompts, params)
    seconds = time.perf_counter() - start
    metas = [answer["meta_info"] for answer in answers]
    num_in = sum(meta["prompt_tokens"] for meta in metas)
    num_out = sum(meta["completion_tokens"] for meta in metas)
    return {
        "backend": "engine",
        "successful_requests": len(answers),
        "total_latency": seconds,
        "total_input_tokens": num_in,
        "total_cached_tokens": sum(meta["cached_tokens"] for meta in metas),
        "total_output_tokens": num_out,
        "request_throughput": len(answers) / seconds,
        "input_throughput": num_in / seconds,
        "output_throughput": num_out / seconds,
        "total_throughput": (num_in + num_out) / seconds,
    }


def show(result: dict[str, Any]) -> None:
    print(f"{' Offline Throughput Benchmark Result ':=^50}")
    for label, key in LINES:
        value = result[key]
        shown = f"{value:.2f}" if isinstance(value, float) else value
        print(f"{label + ':':<40} {shown}")
    print("=" * 50)


def main() -> None:
    args, engine_flags = build_parser().parse_known_args()
    config, _ = parse_flags(engine_flags)
    with LLM(config=config) as llm:
        vocab_size = llm.info.vocab_size
        generate(llm, build_workload(args, vocab_size, args.seed + WARMUP_SEED)[:2])
        for repeat in range(args.repeats):
            result = generate(llm, build_workload(args, vocab_size, args.seed + repeat))
            show(result)
            if args.result_filename:
                with args.result_filename.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
