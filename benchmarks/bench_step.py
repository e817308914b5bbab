"""Milliseconds of one step on the device: by rows, by context, by pool size.

    python benchmarks/bench_step.py --rows 2 8 32 --context 200 --num-pages 1024 8192

A DECODE step's time must follow rows and context and not the pool.  EXTEND steps are timed with
one prompt that fills the bucket.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from jaxserve.batch import Bucket, Mode, SamplingArrays, StepInputs
from jaxserve.config import ATTENTION_BACKENDS, EngineConfig, resolve
from jaxserve.executor import (
    ModelRunner,
    build_runner,
    device_info,
    enable_compilation_cache,
    settle_backend,
)
from jaxserve.model_config import ModelConfig
from jaxserve.shard_plan import plan_shards
from jaxserve.weights import resolve_source

PAGE_SIZE = 16


def neutral_sampling(num_rows: int, num_sampled: int) -> SamplingArrays:
    """Greedy rows."""
    ones, zeros = np.ones(num_rows, np.float32), np.zeros(num_rows, np.float32)
    integers, no = np.zeros(num_rows, np.int32), np.zeros(num_rows, np.bool_)
    return SamplingArrays(
        samples=np.arange(num_rows) < num_sampled,
        temperature=zeros,
        top_k=integers,
        top_p=ones,
        min_p=zeros,
        frequency_penalty=zeros,
        presence_penalty=zeros,
        repetition_penalty=ones,
        seeds=np.zeros((num_rows, 2), np.uint32),
        min_lens=integers,
        has_logit_bias=no,
        wants_logprobs=no,
    )


def inputs_of(bucket: Bucket, kv_lens: list[int], q_lens: list[int]) -> StepInputs:
    """Rows of these lengths, each in pages of its own."""
    table = np.zeros((bucket.num_rows, bucket.pages_per_row), np.int32)
    positions = np.zeros(bucket.num_tokens, np.int32)
    write_slots = np.zeros(bucket.num_tokens, np.int32)
    next_page, start = 1, 0
    for row, (kv_len, q_len) in enumerate(zip(kv_lens, q_lens, strict=True)):
        count = -(-kv_len // PAGE_SIZE)
        table[row, :count] = np.arange(next_page, next_page + count)
        next_page += count
        mine = np.arange(kv_len - q_len, kv_len, dtype=np.int32)
        positions[start : start + q_len] = mine
        pages = table[row, mine // PAGE_SIZE]
        write_slots[start : start + q_len] = pages * PAGE_SIZE + mine % PAGE_SIZE
        start += q_len
    padding = bucket.num_rows - len(kv_lens)
    ends = np.cumsum(q_lens).tolist()
    return StepInputs(
        bucket=bucket,
        token_ids=np.random.default_rng(0).integers(5, 1000, bucket.num_tokens).astype(np.int32),
        positions=positions,
        write_slots=write_slots,
        page_table=table,
        kv_lens=np.asarray(kv_lens + [0] * padding, np.int32),
        q_starts=np.asarray([0, *ends, *[ends[-1]] * padding], np.int32),
        row_slots=np.asarray([*range(1, len(kv_lens) + 1), *[0] * padding], np.int32),
        sampling=neutral_sampling(bucket.num_rows, len(kv_lens)),
    )


def milliseconds(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Minimum and median wall time."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times), statistics.median(times)


def make_runner(
    args: argparse.Namespace, num_pages: int, width: int
) -> tuple[ModelRunner, list[Bucket]]:
    source = resolve_source(args.model_path, load_format=args.load_format)
    model_config = ModelConfig.from_hf(source.hf_config)
    enable_compilation_cache(args.compilation_cache_dir)
    device = device_info()
    config = EngineConfig(
        dtype=args.dtype,
        page_size=PAGE_SIZE,
        max_running_requests=max([*args.rows, 1]),
        attention_backend=args.attention_backend,
    )
    config = resolve(config, model_config, device)
    plan = plan_shards(model_config, config.tp_size)
    attention = settle_backend(args.attention_backend, config, model_config, plan, device)
    config = replace(config, attention_backend=attention.name)
    buckets = [Bucket(Mode.DECODE, rows, rows, width) for rows in args.rows]
    buckets += [Bucket(Mode.EXTEND, tokens, 1, width) for tokens in args.tokens]
    runner = build_runner(
        config, model_config, source, device, num_pages=num_pages, buckets=tuple(buckets)
    )
    return runner, buckets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", default=None, help="default: the demo model")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--attention-backend", default="auto", choices=ATTENTION_BACKENDS)
    parser.add_argument("--rows", type=int, nargs="*", default=[2, 8, 32])
    parser.add_argument("--tokens", type=int, nargs="*", default=[], help="EXTEND buckets")
    parser.add_argument("--context", type=int, default=200, help="tokens of a DECODE row")
    parser.add_argument("--num-pages", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compilation-cache-dir", default=None)
    args = parser.parse_args()
    width = -(-max([args.context, *args.tokens]) // PAGE_SIZE)
    print("| mode | rows | tokens | context | pages in the pool | min ms | median ms |")
    print("|---|---|---|---|---|---|---|")
    for num_pages in args.num_pages:
        runner, buckets = make_runner(args, num_pages, width)
        for bucket in buckets:
            is_decode = bucket.mode is Mode.DECODE
            context = args.context if is_decode else bucket.num_tokens
            q_lens = [1] * bucket.num_rows if is_decode else [bucket.num_tokens]
            inputs = inputs_of(bucket, [context] * len(q_lens), q_lens)
            best, median = milliseconds(
                lambda runner=runner, inputs=inputs: runner.launch(inputs).fetch(), args.repeats
            )
            print(
                f"| {bucket.mode.value} | {bucket.num_rows} | {bucket.num_tokens} | {context} "
                f"| {num_pages} | {best:.1f} | {median:.1f} |"
            )


if __name__ == "__main__":
    main()
