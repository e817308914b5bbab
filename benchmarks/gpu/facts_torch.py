"""The two ceilings once more, through PyTorch."""

from collections.abc import Iterator
from functools import partial

import torch

from gpu.facts_jax import COPY_BYTES, MATMUL_SIZE
from gpu.settings import Settings
from gpu.timing import measure
from gpu.torch_timing import device_name, is_healthy, wait
from gpu.worker import Case, Values

__all__ = ["cases", "is_healthy"]


def copy(num_bytes: int, budget_s: float) -> Values:
    """Bytes per second of ``Tensor.copy_``, read and written ones counted."""
    x = torch.randint(0, 2**31, (num_bytes // 4,), dtype=torch.int32, device=device_name())
    y = torch.empty_like(x)
    timing = measure(lambda: y.copy_(x), wait, budget_s=budget_s)
    return {"bytes_per_s": 2 * num_bytes / timing.median_s, **timing.values()}


def matmul(size: int, budget_s: float) -> Values:
    """FLOP/s of a square product of random bf16."""
    x, y = (torch.randn(size, size, dtype=torch.bfloat16, device=device_name()) for _ in range(2))
    out = torch.empty_like(x)
    timing = measure(lambda: torch.matmul(x, y, out=out), wait, budget_s=budget_s)
    return {"flops_per_s": 2 * size**3 / timing.median_s, **timing.values()}


def cases(settings: Settings) -> Iterator[Case]:
    """Both."""
    is_real = not settings.is_dry_run
    yield Case("copy, torch", partial(copy, COPY_BYTES[is_real], settings.sample_budget_s))
    yield Case("matmul, torch", partial(matmul, MATMUL_SIZE[is_real], settings.sample_budget_s))
