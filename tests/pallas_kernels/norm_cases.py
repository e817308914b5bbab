"""Run ``add_rms_norm`` under the GPU interpreter and compare it with the reference.

A program of its own, as the interpreter can hang after an error: give it JSON lists of
``[rows, size, parts, dtype]`` (0 parts: a whole delta), it prints the largest difference of each.
"""

import json
import sys

import jax.numpy as jnp
import numpy as np

from pallas_kernels import hopper, reference
from pallas_kernels.add_rms_norm import add_rms_norm

EPSILON = 1e-5


def largest_difference(rows: int, size: int, parts: int, dtype: str) -> float:
    rng = np.random.default_rng(size + parts)

    def random(*shape: int, dtype: str = dtype):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    x, weight = random(rows, size), random(size)
    delta = random(parts, rows, size, dtype="float32") if parts else random(rows, size)
    got = add_rms_norm(x, delta, weight, epsilon=EPSILON, interpret=hopper.interpreter_params())
    expected = reference.add_rms_norm(x, delta, weight, epsilon=EPSILON)
    pairs = zip(got, expected, strict=True)
    return max(float(np.abs(np.float32(a) - np.float32(b)).max()) for a, b in pairs)


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        print(json.dumps(largest_difference(*case)), flush=True)
