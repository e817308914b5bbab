"""The kernel grid on the device against the oracle.

Each case: fresh random arguments with NaN and infinities in every place that nobody owns, all
free device memory filled with NaN first, the answer compared with f64 on the host, then the same
call again and again: an error that moves is a race.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpu.device import is_healthy, poison_free_memory
from gpu.grid import correctness_grid
from gpu.kernel_cases import (
    KernelCase,
    argument_specs,
    attention_of,
    num_pages_with_foreign,
    random_inputs,
)
from gpu.oracle import deviation, expected
from gpu.settings import Settings
from gpu.worker import Case, CheckError, Values
from pallas_kernels import write_kv

__all__ = ["cases", "is_healthy"]
NUM_REPEATS = 4
DRY_RUN_CASES = (0, 1, 12, -1)
WRITE_DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class AttentionCheck:
    """One configuration of one kernel."""

    case: KernelCase
    settings: Settings

    def lower(self) -> list[Any]:
        specs = argument_specs(self.case, num_pages_with_foreign(self.case))
        return [jax.jit(attention_of(self.case, self.settings.implementation)).lower(specs)]

    def run(self, program: Any) -> Values:
        case = self.case
        seed = [self.settings.seed, zlib.crc32(case.name.encode())]
        inputs = random_inputs(case, np.random.default_rng(seed))
        reference = expected(case, inputs)
        arguments = jax.tree.map(jnp.asarray, inputs.arguments)
        out_spec = jax.ShapeDtypeStruct(reference.shape, arguments["q"].dtype)
        poison = poison_free_memory(out_spec)
        out = program(arguments)
        first = np.asarray(out)
        found = deviation(case, first, reference)
        values = {
            **found.values(), "was_poisoned": poison.covers(out), "repeats": NUM_REPEATS
        }  # fmt: skip
        del out
        if not found.is_fine:
            raise CheckError(_complaint(first, reference, found.limit), values)
        for _ in range(NUM_REPEATS):
            poison_free_memory(out_spec)
            again = np.asarray(program(arguments))
            if not np.array_equal(again.view(np.uint8), first.view(np.uint8)):
                moved = deviation(case, again, reference)
                raise CheckError("two runs on the same arguments differ: a race",
                                 {**values, "error_again": moved.total})  # fmt: skip
        return values


def _complaint(out: np.ndarray, reference: np.ndarray, limit: float) -> str:
    """Which queries and heads are wrong: the place tells the cause more often than the size."""
    answer = np.nan_to_num(out.astype(np.float64), nan=1e9, posinf=1e9, neginf=-1e9)
    off = np.linalg.norm(answer - reference, axis=-1) > 4 * limit * (
        np.linalg.norm(reference, axis=-1) + 1e-6
    )  # [tokens, N]
    tokens, heads = np.nonzero(off.any(axis=1))[0], np.nonzero(off.any(axis=0))[0]
    return (
        f"{int(off.sum())} of {off.size} (query, head) pairs are off; queries "
        f"{tokens[:12].tolist()}, heads {heads[:12].tolist()}"
    )


@dataclass(frozen=True, slots=True)
class WriteCheck:
    """Keys and values land in their slots, and nothing else changes."""

    dtype: str
    page_size: int
    settings: Settings

    def _specs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        pool = jax.ShapeDtypeStruct((64, 2, self.page_size, 128), self.dtype)
        new = jax.ShapeDtypeStruct((100, 2, 128), self.dtype)
        return pool, pool, new, new, jax.ShapeDtypeStruct((100,), jnp.int32)

    def lower(self) -> list[Any]:
        def write(*arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
            return write_kv(*arguments, implementation=self.settings.implementation)

        return [jax.jit(write, donate_argnums=(0, 1)).lower(*self._specs())]

    def run(self, program: Any) -> Values:
        rng = np.random.default_rng([self.settings.seed, self.page_size])
        drawn = [jnp.asarray(rng.standard_normal(spec.shape, np.float32), spec.dtype)
                 for spec in self._specs()[:4]]  # fmt: skip
        before = [np.asarray(array) for array in drawn]
        num_slots = math.prod(self._specs()[0].shape[::2])
        slots = self.page_size + rng.permutation(num_slots - self.page_size)[:100]
        slots[90:] = rng.integers(0, self.page_size, 10)  # padding, in the null page
        written = program(*drawn, jnp.asarray(slots, jnp.int32))
        pages, offsets = slots[:90] // self.page_size, slots[:90] % self.page_size
        num_wrong = 0
        for got, pool, new in zip(written, before[:2], before[2:], strict=True):
            want = pool.copy()
            want[pages, :, offsets] = new[:90]
            num_wrong += int((np.asarray(got)[1:] != want[1:]).sum())
        if num_wrong:
            raise CheckError(f"{num_wrong} entries are wrong", {"num_bad": num_wrong})
        return {"error": 0.0, "limit": 0.0}


def cases(settings: Settings) -> Iterator[Case]:
    """The grid, real models first."""
    grid = correctness_grid(settings.is_dry_run)
    if settings.is_dry_run:
        grid = [grid[index] for index in DRY_RUN_CASES]
    for case in grid:
        check = AttentionCheck(case, settings)
        yield Case(case.name, check.run, check.lower)
        if case is grid[3]:
            for dtype in WRITE_DTYPES:
                for page_size in (16,) if settings.is_dry_run else (16, 64):
                    write = WriteCheck(dtype, page_size, settings)
                    yield Case(f"write_kv page{page_size} {dtype}", write.run, write.lower)
