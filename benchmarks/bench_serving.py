"""Measure a running server over HTTP: throughput, TTFT, TPOT, ITL and end-to-end latency.

    python benchmarks/bench_serving.py --backend sglang --port 30000 --dataset-name random-ids \\
        --num-prompts 64 --random-input-len 128 --random-output-len 128 --random-range-ratio 1 \\
        --max-concurrency 8

Flags and keys of the result are those of SGLang's bench_serving, so that its users can compare.
"""

import argparse
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_client import BACKENDS, CHAT, NATIVE, RequestResult, Target, run, shortened
from serving_metrics import details, summarise, table
from tokenizers import Tokenizer
from workloads import (
    Conversation,
    Lengths,
    arrival_times,
    as_text,
    multi_turn_workload,
    random_workload,
    shared_prefix_workload,
)

DATASETS = ("random", "random-ids", "generated-shared-prefix", "multi-turn")
WARMUP_OUTPUT_LEN = 32
WARMUP_SEED = 1_000_003  # added to --seed: warm-up prompts must not be in the prefix cache later
DEFAULT_PORTS = {"vllm": 8000, "vllm-chat": 8000}


@dataclass(frozen=True, slots=True)
class TextCodec:
    """A tokenizer.json, for workloads that are sent as text."""

    vocab_size: int
    encode: Callable[[str], list[int]]
    decode: Callable[[Any], str]

    @classmethod
    def load(cls, name: str) -> "TextCodec":
        """Read a folder with tokenizer.json, that file itself, or the tokenizer of a hub id."""
        path = Path(name)
        file = path / "tokenizer.json" if path.is_dir() else path
        tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else None
        tokenizer = tokenizer or Tokenizer.from_pretrained(name)
        return cls(
            vocab_size=tokenizer.get_vocab_size(with_added_tokens=False),
            encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False),
        )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    server = parser.add_argument_group("server")
    server.add_argument("--backend", choices=BACKENDS, default="sglang", help="API to speak")
    server.add_argument("--base-url", help="in place of --host and --port")
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, help="default: 30000, for vllm 8000")
    server.add_argument("--model", help="default: the first of /v1/models")
    server.add_argument("--header", nargs="+", default=[], metavar="KEY=VALUE", help="to send")
    server.add_argument("--extra-request-body", default="{}", help="JSON object merged into bodies")
    server.add_argument("--ready-check-timeout-sec", type=float, default=60.0)
    server.add_argument("--flush-cache", action="store_true", help="empty the prefix cache first")
    sending = parser.add_argument_group("sending")
    sending.add_argument("--request-rate", type=float, default=math.inf, help="requests/s; Poisson")
    sending.add_argument("--max-concurrency", type=int, help="open requests at most")
    sending.add_argument("--warmup-requests", type=int, default=1)
    sending.add_argument("--disable-stream", action="store_true")
    sending.add_argument("--disable-ignore-eos", action="store_true")
    sending.add_argument("--temperature", type=float, default=0.0)
    sending.add_argument("--seed", type=int, default=1)
    _add_workload_flags(parser.add_argument_group("workload"))
    output = parser.add_argument_group("output")
    output.add_argument("--output-file", type=Path, help="append one JSON line")
    output.add_argument("--output-details", action="store_true", help="with one entry per request")
    output.add_argument("--tag", help="a word of yours in the JSON line")
    return parser


def _add_workload_flags(group: Any) -> None:
    group.add_argument("--dataset-name", choices=DATASETS, default="random-ids")
    group.add_argument("--num-prompts", type=int, default=1000, help="conversations of multi-turn")
    group.add_argument("--tokenizer", help="folder with tokenizer.json, or hub id; for text")
    group.add_argument("--tokenize-prompt", action="store_true", help="send ids, not text")
    group.add_argument("--vocab-size", type=int, help="of ids; default: the tokenizer's or 32000")
    group.add_argument("--random-input-len", type=int, default=1024)
    group.add_argument("--random-output-len", type=int, default=1024)
    group.add_argument("--random-range-ratio", type=float, default=0.0, help="1 = fixed lengths")
    group.add_argument("--gsp-num-groups", type=int, default=64)
    group.add_argument("--gsp-prompts-per-group", type=int, default=16)
    group.add_argument("--gsp-system-prompt-len", type=int, default=2048)
    group.add_argument("--gsp-question-len", type=int, default=128)
    group.add_argument("--gsp-output-len", type=int, default=256)
    group.add_argument("--num-turns", type=int, default=4, help="of each multi-turn conversation")


def build_workload(
    args: argparse.Namespace, codec: TextCodec | None, seed: int, num_prompts: int | None = None
) -> list[Conversation]:
    """Return the workload of the flags, as ids or text, whichever the API and flags ask for.

    ``num_prompts`` overrides the flags' number.
    """
    vocab_size = args.vocab_size or (codec.vocab_size if codec else 32_000)
    lengths = Lengths(args.random_input_len, args.random_output_len, args.random_range_ratio)
    if args.dataset_name == "generated-shared-prefix":
        workload = shared_prefix_workload(
            args.gsp_num_groups if num_prompts is None else num_prompts,
            args.gsp_prompts_per_group if num_prompts is None else 1,
            Lengths(args.gsp_question_len, args.gsp_output_len),
            system_prompt_len=args.gsp_system_prompt_len,
            vocab_size=vocab_size,
            seed=seed,
        )
    elif args.dataset_name == "multi-turn":
        count = args.num_prompts if num_prompts is None else num_prompts
        workload = multi_turn_workload(count, args.num_turns, lengths, vocab_size, seed)
    else:
        count = args.num_prompts if num_prompts is None else num_prompts
        workload = random_workload(count, lengths, vocab_size, seed)
    if codec is None or not sends_text(args):
        return workload
    return as_text(workload, codec.encode, codec.decode)


def sends_text(args: argparse.Namespace) -> bool:
    if args.backend in CHAT or args.dataset_name == "random":
        return not args.tokenize_prompt
    return args.dataset_name != "random-ids" and bool(args.tokenizer) and not args.tokenize_prompt


def check(args: argparse.Namespace) -> None:
    """Exit with a message where the flags contradict each other."""
    if args.backend in CHAT and args.tokenize_prompt:
        raise SystemExit("--tokenize-prompt: the chat API takes text only; use --backend sglang")
    if sends_text(args) and not args.tokenizer:
        raise SystemExit(
            f"--backend {args.backend} --dataset-name {args.dataset_name} sends text and needs "
            "--tokenizer FOLDER; random-ids on --backend sglang or vllm sends ids and needs none"
        )
    needs_ids_back = args.dataset_name == "multi-turn" and not sends_text(args)
    if needs_ids_back and args.backend not in NATIVE:
        raise SystemExit(
            f"multi-turn as ids needs the answers' ids, which --backend {args.backend} does not "
            "return; give --tokenizer FOLDER to send text, or use --backend sglang"
        )
    if not args.request_rate > 0:
        raise SystemExit(f"--request-rate must be above 0 (inf = all at once): {args.request_rate}")


def fetch(url: str, headers: dict[str, str], *, post: bool = False, timeout: float = 5.0) -> bytes:
    request = urllib.request.Request(url, headers=headers, data=b"" if post else None)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return bytes(response.read())


def wait_until_ready(base_url: str, headers: dict[str, str], timeout_s: float) -> str:
    """Return the first name of /v1/models once the server gives it."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return str(json.loads(fetch(f"{base_url}/v1/models", headers))["data"][0]["id"])
        except (OSError, ValueError, LookupError) as error:
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"{base_url}/v1/models gave no model within {timeout_s:g} s ({error}); start "
                    "the server, or check --base-url, --host and --port"
                ) from error
        time.sleep(0.5)


def flush_cache(base_url: str, backend: str, headers: dict[str, str]) -> None:
    path = "/reset_prefix_cache" if backend in ("vllm", "vllm-chat") else "/flush_cache?timeout=60"
    try:
        fetch(base_url + path, headers, post=True, timeout=90.0)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"POST {path} answered {error.code}; is the server idle?") from error


def make_target(args: argparse.Namespace) -> Target:
    port = args.port or DEFAULT_PORTS.get(args.backend, 30_000)
    base_url = (args.base_url or f"http://{args.host}:{port}").rstrip("/")
    extra = json.loads(args.extra_request_body)
    if not isinstance(extra, dict):
        raise SystemExit(f"--extra-request-body must be a JSON object: {args.extra_request_body}")
    headers = dict(pair.split("=", 1) for pair in args.header)
    first_model = wait_until_ready(base_url, headers, args.ready_check_timeout_sec)
    return Target(
        base_url=base_url,
        backend=args.backend,
        model=args.model or first_model,
        is_stream=not args.disable_stream,
        ignore_eos=not args.disable_ignore_eos,
        temperature=args.temperature,
        headers=headers,
        extra_body=extra,
    )


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[RequestResult]]:
    """Warm up, run the workload, and return the summary and the results."""
    check(args)
    target = make_target(args)
    codec = TextCodec.load(args.tokenizer) if args.tokenizer else None
    workload = build_workload(args, codec, args.seed)
    if args.warmup_requests:
        extra = build_workload(args, codec, args.seed + WARMUP_SEED, args.warmup_requests)
        warmed, _ = run(target, shortened(extra, WARMUP_OUTPUT_LEN))
        failed = [result.error for result in warmed if result.error]
        if failed:
            raise SystemExit(f"the warm-up failed, so nothing was measured: {failed[0]}")
    if args.flush_cache:
        flush_cache(target.base_url, args.backend, target.headers)
    arrivals = arrival_times(len(workload), args.request_rate, args.seed)
    results, duration = run(target, workload, arrivals, args.max_concurrency)
    return summarise(results, duration), results


def main() -> None:
    args = build_parser().parse_args()
    summary, results = measure(args)
    heading = {
        "Backend": args.backend,
        "Traffic request rate": args.request_rate,
        "Max request concurrency": args.max_concurrency or "not set",
    }
    print(table(summary, heading))
    for error in sorted({result.error for result in results if result.error}):
        print("error:", error)
    if args.output_file:
        line = {key: value for key, value in vars(args).items() if key not in ("header",)}
        line |= {"request_rate": str(args.request_rate), "output_file": str(args.output_file)}
        line |= summary | (details(results) if args.output_details else {})
        with args.output_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    if summary["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
