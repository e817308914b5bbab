"""The same attention by PyTorch: its fused kernels on contiguous keys, and its paged one."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from gpu.kernel_cases import KernelCase
from gpu.kernel_timing import num_calls, num_tables
from gpu.settings import Settings
from gpu.time_kernels import PAGED_BASELINE, shapes, values_of
from gpu.torch_timing import device_name, is_healthy, measure_calls
from gpu.worker import Case, SkipError, Values

__all__ = ["cases", "is_healthy"]
BACKENDS = (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION))
VARLEN = "torch.nn.attention.varlen"  # newer than the oldest torch that this runs with
Call = Callable[[int], torch.Tensor]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device=device_name())


def dense_decode(case: KernelCase, backend: SDPBackend | None) -> Call:
    """One query per row; every call reads other keys, as ours does other pages."""
    batch, length = len(case.rows), case.kv_lens[0]
    q = random(batch, case.num_heads, 1, case.head_dim)
    keys = [
        [random(batch, case.num_kv_heads, length, case.head_dim) for _ in range(2)]
        for _ in range(num_tables(case))
    ]

    def call(index: int) -> torch.Tensor:
        k, v = keys[index % len(keys)]
        with _using(backend):
            return scaled_dot_product_attention(q, k, v, scale=case.scale, enable_gqa=True)

    return call


def dense_extend(case: KernelCase, backend: SDPBackend | None) -> Call:
    """One prompt, behind its prefix if it has one."""
    ((before, new),) = case.rows
    q = random(1, case.num_heads, new, case.head_dim)
    k, v = (random(1, case.num_kv_heads, before + new, case.head_dim) for _ in range(2))
    mask = causal_lower_right(new, before + new) if before else None

    def call(_: int) -> torch.Tensor:
        with _using(backend):
            return scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=case.scale, enable_gqa=True
            )

    return call


def paged(case: KernelCase) -> Call:
    """``varlen_attn`` over pages of ours: decode rows and ragged prompts alike."""
    attention = _varlen_with_pages()
    num_pages = 1 + case.num_owned_pages
    pool = (num_pages, case.page_size, case.num_kv_heads, case.head_dim)
    k, v = random(*pool), random(*pool)
    lengths = np.asarray(case.kv_lens)
    free = 1 + np.random.default_rng(0).permutation(case.num_owned_pages)
    table = np.zeros((len(lengths), case.pages_per_row), np.int32)
    for row, length in enumerate(lengths):
        count = -(-length // case.page_size)
        table[row, :count], free = free[:count], free[count:]
    new = np.asarray([count for _, count in case.rows])
    starts = torch.tensor([0, *np.cumsum(new)], dtype=torch.int32, device=device_name())
    used = torch.tensor(lengths, dtype=torch.int32, device=device_name())
    pages = torch.tensor(table, device=device_name())
    q = random(int(new.sum()), case.num_heads, case.head_dim)

    def call(_: int) -> torch.Tensor:
        return attention(
            q, k, v, starts, None, int(new.max()), int(lengths.max()), scale=case.scale,
            window_size=(-1, 0), enable_gqa=True, seqused_k=used, block_table=pages,
        )  # fmt: skip

    return call


def _varlen_with_pages() -> Callable[..., torch.Tensor]:
    if importlib.util.find_spec(VARLEN) is None:
        raise SkipError(f"torch {torch.__version__} has no varlen_attn")
    varlen = importlib.import_module(VARLEN)
    if "block_table" not in inspect.signature(varlen.varlen_attn).parameters:
        raise SkipError(f"torch {torch.__version__} has no varlen_attn over pages")
    if device_name() == "cpu":
        raise SkipError("varlen_attn needs CUDA")
    return varlen.varlen_attn


def _using(backend: SDPBackend | None):
    # The plain path is the only one on the CPU.
    return sdpa_kernel([backend or SDPBackend.MATH])


@dataclass(frozen=True, slots=True)
class TorchCase:
    """One call of one kind, timed."""

    case: KernelCase
    side: str
    make: Callable[[KernelCase], Call]
    settings: Settings

    def run(self) -> Values:
        with torch.inference_mode():
            timing = measure_calls(
                self.make(self.case), num_calls(self.case), self.settings.sample_budget_s
            )
        return values_of(self.case, self.side, timing)


def cases(settings: Settings) -> Iterator[Case]:
    """For the shapes that jax's baselines are timed with."""
    backends = (("math", None),) if device_name() == "cpu" else BACKENDS
    for case in shapes(settings.is_dry_run):
        is_compared = (len(case.rows), case.kv_lens[0]) in PAGED_BASELINE and case.group == 4
        if case.page_size != 16 or (
            case.op == "decode" and not (is_compared or settings.is_dry_run)
        ):
            continue
        kinds: list[tuple[str, Callable[[KernelCase], Call]]] = [("torch paged", paged)]
        if case.op == "decode" or len(case.rows) == 1:
            make = dense_decode if case.op == "decode" else dense_extend
            kinds += [(f"torch {name}", partial(make, backend=backend))
                      for name, backend in backends]  # fmt: skip
        for side, make_call in kinds:
            yield Case(f"{case.name}, {side}", TorchCase(case, side, make_call, settings).run)
