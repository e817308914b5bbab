"""Checks of the extend kernel under the GPU interpreter.

Run as a program it checks the calls it is given (JSON of ``Call`` fields) one after the other and
prints one JSON line for each.  The interpreter can hang after an error, so tests run it in a
process of its own, with a timeout.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import FP8, Case, Spec, make_case
from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import get_races

from pallas_kernels import hopper, paged_extend, reference
from pallas_kernels.extend_tiles import ExtendPlan
from pallas_kernels.layout import KVLayout
from pallas_kernels.tuning import ExtendConfig


@dataclass(frozen=True)
class Call:
    """One call of the kernel; ``shared_pages``: of row 0, with which the others begin too."""

    rows: tuple[tuple[int, int], ...]
    num_heads: int = 1
    num_kv_heads: int = 1
    head_dim: int = 64
    page_size: int = 16
    padding_tokens: int = 3
    padding_rows: int = 0
    dtype: str = "bfloat16"
    kv_dtype: str | None = None
    kv_scales: tuple[float, float] | None = None
    poison: float = float("nan")
    logit_soft_cap: float | None = None
    sliding_window: int | None = None
    block_kv: int = 64
    num_stages: int = 2
    shared_pages: int = 0
    waits_for_data: bool = True
    frees_early: bool = False

    @classmethod
    def of(cls, values: dict[str, object]) -> "Call":
        """From decoded JSON, which has no tuples."""
        scales = values.get("kv_scales")
        tuples = {
            "rows": tuple(tuple(row) for row in values["rows"]),
            "kv_scales": tuple(scales) if scales else None,
        }
        return cls(**{**values, **tuples})

    @property
    def spec(self) -> Spec:
        names = {field.name for field in dataclasses.fields(Spec)}
        return Spec(**{k: v for k, v in vars(self).items() if k in names})


def make(call: Call) -> tuple[Case, np.ndarray]:
    """Arguments of the call, and its result."""
    case = make_case(call.spec)
    if not call.shared_pages:
        return case, case.expected
    table = case.page_table.at[1 : len(call.rows), : call.shared_pages].set(
        case.page_table[:1, : call.shared_pages]
    )
    case = dataclasses.replace(case, page_table=table)
    expected = reference.paged_extend_attention(*case.extend_arguments, **case.options)
    return case, np.asarray(expected, np.float64)


def run_kernel(call: Call, case: Case) -> jax.Array:
    """The kernel under the interpreter, with race detection."""
    plan = ExtendPlan(
        num_tokens=case.q.shape[0],
        num_heads=call.num_heads,
        layout=KVLayout.of(case.k_pages),
        dtype=case.q.dtype,
        scale=call.spec.scale,
        logit_soft_cap=call.logit_soft_cap,
        sliding_window=call.sliding_window,
        config=ExtendConfig(block_kv=call.block_kv, num_stages=call.num_stages),
        warpgroup=hopper.Warpgroup(interpreted=True),
        is_fp8=call.kv_dtype == FP8,
        waits_for_data=call.waits_for_data,
        frees_early=call.frees_early,
    )
    scales = {}
    if call.kv_scales:
        scales["scales"] = jnp.asarray(call.kv_scales, jnp.float32)
    run = partial(paged_extend.run, plan, interpret=hopper.interpreter_params())
    return jax.jit(run)(*case.extend_arguments, **scales)


def check(call: Call) -> dict[str, object]:
    """Largest absolute error, what padding tokens got, and whether a race was seen."""
    case, expected = make(call)
    try:
        out = np.asarray(run_kernel(call, case), np.float64)
    except jax.errors.JaxRuntimeError as error:
        if "RACE DETECTED" not in str(error):  # jax 0.12 stops there
            raise
        return {"error": float("inf"), "tail": 0.0, "has_race": True}
    error = float(np.max(np.abs(out - expected)))
    tail = float(np.sum(np.abs(out[int(case.q_starts[-1]) :])))
    return {"error": error, "tail": tail, "has_race": get_races().races_found}


def main() -> None:
    for values in json.loads(sys.argv[1]):
        call = Call.of(values)
        result = check(call)
        print("\n" + json.dumps({**dataclasses.asdict(call), **result}), flush=True)


if __name__ == "__main__":
    main()
