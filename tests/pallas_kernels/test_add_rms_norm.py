"""The residual addition and its norm: the specification, the kernel, and what it refuses."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import add_rms_norm, supports_add_rms_norm
from pallas_kernels.add_rms_norm import MAX_SIZE, WARPGROUP

ROOT = Path(__file__).parent.parent.parent
CASES = [[3, 256, 0, "bfloat16"], [2, 384, 3, "bfloat16"], [1, 128, 1, "float16"]]


def random(*shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), dtype)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("parts", [0, 1, 5])
def test_it_is_the_sum_and_its_norm(implementation: str, parts: int) -> None:
    x, weight = random(4, 96), random(96)
    delta = random(parts, 4, 96) if parts else random(4, 96) * 2
    total, norm = add_rms_norm(x, delta, weight, epsilon=1e-3, implementation=implementation)
    expected = np.float64(x) + (np.float64(delta).sum(axis=0) if parts else np.float64(delta))
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)
    scale = 1 / np.sqrt((expected**2).mean(axis=1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(norm, expected * scale * np.float64(weight), rtol=1e-4, atol=1e-5)


def test_the_kernel_equals_the_reference_under_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("norm_cases.py"), json.dumps(CASES)],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(map(json.loads, done.stdout.split())) == [0.0] * len(CASES)


@pytest.mark.parametrize("size", [128, 896, 2048, 3584, 4096, 8192])
@pytest.mark.parametrize("parts", [0, 2, 8])
def test_it_lowers_for_a_gpu(size: int, parts: int) -> None:
    x = jax.ShapeDtypeStruct((5, size), jnp.bfloat16)
    delta = jax.ShapeDtypeStruct((parts, 5, size), jnp.float32) if parts else x
    weight = jax.ShapeDtypeStruct((size,), jnp.bfloat16)
    op = functools.partial(add_rms_norm, epsilon=1e-5, implementation="pallas")
    lowered = jax.jit(op).trace(x, delta, weight).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("stablehlo.custom_call @mosaic_gpu_v2") == 1
    assert supports_add_rms_norm(size, jnp.bfloat16)


@pytest.mark.parametrize(
    ("size", "dtype"), [(100, "bfloat16"), (MAX_SIZE + WARPGROUP, "bfloat16"),
                        (128, "float32")],
)  # fmt: skip
def test_what_the_kernel_does_not_take_is_said(size: int, dtype: str) -> None:
    assert not supports_add_rms_norm(size, jnp.dtype(dtype))
    x = random(2, size, dtype=dtype)
    message = rf"add_rms_norm: given rows of {size} {dtype}; supported multiples of 128"
    with pytest.raises(NotImplementedError, match=message) as refused:
        add_rms_norm(x, x, x[0], epsilon=1e-5, implementation="pallas")
    assert "use implementation='xla'" in str(refused.value)


def test_arguments_that_do_not_fit_are_refused() -> None:
    x = random(3, 8)
    for delta in (random(3, 7), random(2, 3, 7), random(3, 8, dtype="bfloat16"), random(8)):
        with pytest.raises(ValueError, match=r"delta must be as x, or float32 \[S, T, D\]"):
            add_rms_norm(x, delta, random(8), epsilon=1e-5)
    with pytest.raises(ValueError, match=r"weight must have shape \[D\] = \(8,\); got \(7,\)"):
        add_rms_norm(x, x, random(7), epsilon=1e-5)
    with pytest.raises(ValueError, match="x must be one of float32, bfloat16, float16; got int32"):
        add_rms_norm(x.astype(jnp.int32), x, random(8), epsilon=1e-5)
