"""Small Mosaic kernels, one good and one that spills, compiled and printed as JSON.

Run by the tests with the python of ``scripts/aot --env``.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.aot_compile import Compiler
from pallas_kernels.aot_kernels import KernelCase, KernelReport

M, N, K = 64, 256, 64
TILED = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))


def matmul(num_accumulators: int) -> Callable[..., Any]:
    """``a @ b`` on one tile, ``num_accumulators`` times, all of them alive at once.

    One takes half of the 255 registers that a thread can have; three cannot fit.
    """

    def body(a_gmem, b_gmem, out_gmem, a_smem, b_smem, out_smem, barrier):
        plgpu.copy_gmem_to_smem(a_gmem, a_smem, barrier)
        plgpu.copy_gmem_to_smem(b_gmem, b_smem, barrier)
        plgpu.barrier_wait(barrier)

        def multiply(*accumulators):
            for accumulator in accumulators:
                plgpu.wgmma(accumulator, a_smem, b_smem)
            plgpu.wgmma_wait(0)
            products = [accumulator[...] for accumulator in accumulators]
            return sum(products[1:], start=products[0])

        accumulators = [plgpu.ACC((M, N), jnp.float32)] * num_accumulators
        out_smem[...] = pl.run_scoped(multiply, *accumulators).astype(jnp.bfloat16)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, out_gmem)
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((M, N), jnp.bfloat16),
        scratch_types=[
            plgpu.SMEM((M, K), jnp.bfloat16, transforms=TILED),
            plgpu.SMEM((K, N), jnp.bfloat16, transforms=TILED),
            plgpu.SMEM((M, N), jnp.bfloat16, transforms=TILED),
            plgpu.Barrier(num_arrivals=2),
        ],
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )


def store_only() -> Callable[..., Any]:
    """No product and no load: neither HGMMA nor UTMALDG."""

    def body(a_gmem, b_gmem, out_gmem, out_smem):
        del a_gmem, b_gmem
        out_smem[...] = jnp.full((M, N), 1, jnp.bfloat16)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, out_gmem)
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((M, N), jnp.bfloat16),
        scratch_types=[plgpu.SMEM((M, N), jnp.bfloat16)],
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )


def main() -> None:
    """Print one JSON object: name -> the kernels' facts and the laws they break."""
    compiler = Compiler()
    arguments = compiler.spec((M, K), jnp.bfloat16), compiler.spec((K, N), jnp.bfloat16)
    programs = {
        "good": matmul(1),
        # an identical kernel in another program: on jax 0.10 Mosaic does not compile it again
        "again": lambda a, b: matmul(1)(a, b) * 2,
        "spilling": matmul(3),
        "idle": store_only(),
    }
    found = {}
    for name, program in programs.items():
        report = compiler.compile(jax.jit(program), *arguments, name=name)
        problems = KernelReport(KernelCase(op="decode"), report).problems
        found[name] = {"kernels": [asdict(x) for x in report.mosaic], "problems": problems}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
