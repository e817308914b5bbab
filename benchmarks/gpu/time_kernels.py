"""Times of the kernels, and of the same calls by what jax ships, in turns in one process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gpu import baselines
from gpu.device import is_cuda, is_healthy
from gpu.kernel_cases import KernelCase
from gpu.kernel_timing import Pools, TimedKernel, decode_case, extend_case, mixed_case
from gpu.settings import Settings
from gpu.timing import Timing
from gpu.worker import Case, SkipError, Values

__all__ = ["cases", "is_healthy"]
# (rows, context): those that GPU.md's goal names first
DECODE_G4 = (
    (64, 2048), (16, 8192), (16, 2048), (64, 8192), (1, 8192), (256, 2048), (64, 1024), (1, 1024),
    (256, 1024), (16, 1024), (1, 2048), (256, 8192),
)  # fmt: skip
DECODE_G8 = ((64, 2048), (16, 8192), (64, 8192), (1, 8192))
DECODE_PAGE_64 = ((64, 2048), (16, 8192), (1, 8192))
PAGED_BASELINE = ((64, 2048), (16, 8192))
PORTABLE = ((64, 2048),)


def shapes(is_tiny: bool) -> list[KernelCase]:
    """What is timed, in order of worth; one kind of pool after the other."""
    if is_tiny:
        tiny = {"num_kv_heads": 2, "group": 2, "head_dim": 64}
        return [decode_case(2, 64, **tiny), extend_case(64, **tiny), mixed_case(64, 2, **tiny)]
    found = [decode_case(*shape) for shape in DECODE_G4[:4]]
    found += [extend_case(8192), mixed_case(8192, 16), extend_case(2048, 8192)]
    found += [decode_case(*shape, group=8) for shape in DECODE_G8]
    found += [decode_case(*shape) for shape in DECODE_G4[4:]]
    found += [extend_case(8192, group=8)]
    found += [decode_case(*shape, page_size=64) for shape in DECODE_PAGE_64]
    return [*found, extend_case(8192, page_size=64)]


def values_of(case: KernelCase, side: str, timing: Timing, flops: int | None = None) -> Values:
    """A timing with the work that it stands for; ``shape`` is equal on all sides."""
    return {
        "shape": case.name,
        "op": case.op,
        "side": side,
        "rows": len(case.rows),
        "context": max(case.kv_lens),
        "group": case.group,
        "head_dim": case.head_dim,
        "kv_bytes": case.kv_bytes,
        "flops": case.flops if flops is None else flops,
        **timing.values(),
    }


@dataclass(frozen=True, slots=True)
class BaselineCase:
    """A baseline that is looked up when its turn comes: it may not exist here."""

    make: Callable[[KernelCase], baselines.Baseline]
    case: KernelCase
    settings: Settings

    def lower(self) -> list[Any]:
        if not is_cuda():
            raise SkipError("no CUDA")
        return self.make(self.case).lower()

    def run(self, program: Any) -> Values:
        baseline = self.make(self.case)
        timing = baseline.time(program, self.settings.seed, self.settings.sample_budget_s)
        return values_of(self.case, baseline.name, timing, baseline.flops)


def cases(settings: Settings) -> Iterator[Case]:
    """Ours and the baselines, shape by shape."""
    todo = shapes(settings.is_dry_run)
    pools = Pools(todo, settings.seed)
    for case in todo:
        ours = TimedKernel(case, settings.implementation, pools, settings.seed)
        yield _timed(ours, "ours", settings)
        for name, make in _baselines_of(case, settings.is_dry_run):
            other = BaselineCase(make, case, settings)
            yield Case(f"{case.name}, {name}", other.run, other.lower)
        if (len(case.rows), case.kv_lens[0]) in PORTABLE and case.page_size == 16:
            yield _timed(TimedKernel(case, "xla", pools, settings.seed), "xla", settings)


def _timed(timed: TimedKernel, side: str, settings: Settings) -> Case:
    def run(program: Any) -> Values:
        return values_of(timed.case, side, timed.time(program, settings.sample_budget_s))

    return Case(f"{timed.case.name}, {side}", run, timed.lower)


def _baselines_of(
    case: KernelCase, is_tiny: bool
) -> list[tuple[str, Callable[[KernelCase], baselines.Baseline]]]:
    if case.op == "decode":
        is_one = is_tiny or (len(case.rows), case.kv_lens[0]) in PAGED_BASELINE
        return [("cuDNN paged", baselines.cudnn_paged_decode)] if is_one else []
    if len(case.rows) > 1 or case.page_size != 16:
        return []
    found = [("cuDNN", baselines.cudnn_extend)]
    if case.rows[0][0] == 0:
        found.append(("jax's attention_mgpu, f16", baselines.mosaic_extend))
    return found
