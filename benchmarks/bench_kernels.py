"""µs and rate of one attention call on the device, by implementation.

    python benchmarks/bench_kernels.py decode --rows 1 16 64 --context 2048 8192
    python benchmarks/bench_kernels.py extend --tokens 8192 --context 0 --implementations pallas xla

Decode is rated by the bytes of its keys and values, extend by its arithmetic over the visible
pairs.  How the time is taken stands in ``gpu/timing.py`` and ``gpu/kernel_timing.py``;
``scripts/gpu`` times the same programs beside cuDNN and PyTorch.
"""

import argparse
from collections.abc import Iterator

import jax
from gpu.kernel_cases import SHORT, KernelCase
from gpu.kernel_timing import Pools, TimedKernel, decode_case, extend_case

from pallas_kernels.api import IMPLEMENTATIONS


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("op", choices=("decode", "extend"))
    parser.add_argument("--rows", type=int, nargs="+", default=[16], help="of a decode step")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512], help="of a prompt")
    parser.add_argument("--context", type=int, nargs="+", default=[1024],
                        help="tokens of a decode row, or cached ones before a prompt")  # fmt: skip
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--group", type=int, nargs="+", default=[4])
    parser.add_argument("--head-dim", type=int, nargs="+", default=[128])
    parser.add_argument("--page-size", type=int, nargs="+", default=[16])
    parser.add_argument("--dtype", choices=[name for name in SHORT if "8" not in name],
                        default="bfloat16")  # fmt: skip
    parser.add_argument("--kv-dtype", choices=SHORT, help="default: --dtype")
    parser.add_argument("--sliding-window", type=int)
    parser.add_argument("--logit-soft-cap", type=float)
    parser.add_argument("--implementations", nargs="+", choices=sorted(IMPLEMENTATIONS),
                        default=["xla"])  # fmt: skip
    parser.add_argument("--seconds", type=float, default=1.0, help="for the samples of one call")
    return parser


def cases_of(args: argparse.Namespace) -> Iterator[KernelCase]:
    """The product of the flags that take several values."""
    for page_size in args.page_size:
        for head_dim in args.head_dim:
            for group in args.group:
                fields = {
                    "num_kv_heads": args.kv_heads, "group": group, "head_dim": head_dim,
                    "page_size": page_size, "dtype": args.dtype, "kv_dtype": args.kv_dtype or "",
                    "sliding_window": args.sliding_window, "logit_soft_cap": args.logit_soft_cap,
                }  # fmt: skip
                for size in args.rows if args.op == "decode" else args.tokens:
                    for context in args.context:
                        make = decode_case if args.op == "decode" else extend_case
                        yield make(size, context, **fields)


def main() -> None:
    args = build_parser().parse_args()
    cases = list(cases_of(args))
    pools = Pools(cases, seed=0)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; median (minimum) per call")
    print("| call | implementation | µs | rate |\n|---|---|---|---|")
    for case in cases:
        for implementation in args.implementations:
            timed = TimedKernel(case, implementation, pools)
            try:
                (lowered,) = timed.lower()
            except (NotImplementedError, ValueError) as error:
                print(f"| {case.name} | {implementation} | – | {error} |")
                continue
            timing = timed.time(lowered.compile(), args.seconds)
            is_decode = case.op == "decode"
            work = case.kv_bytes if is_decode else case.flops
            rate = f"{work / timing.median_s / 1e9:,.1f} {'GB/s' if is_decode else 'GFLOP/s'}"
            micros = f"{timing.median_s * 1e6:.1f} ({min(timing.samples_s) * 1e6:.1f})"
            print(f"| {case.name} | {implementation} | {micros} | {rate} |", flush=True)


if __name__ == "__main__":
    main()
