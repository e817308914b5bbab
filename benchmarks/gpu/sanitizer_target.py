"""One small call of one kernel, checked: what compute-sanitizer watches.

python -m gpu.sanitizer_target decode pallas
"""

import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from gpu.kernel_cases import KernelCase, attention_of, random_inputs
from gpu.oracle import deviation, expected

DONE = "the answer is right"
ROWS = {
    "decode": ((0, 1), (16, 1), (63, 1), (0, 0), (199, 1)),
    "extend": ((0, 17), (33, 20), (16, 1), (0, 0), (64, 70)),
}


def main() -> int:
    op, implementation = sys.argv[1:]
    case = KernelCase(op=op, rows=ROWS[op], num_kv_heads=2, group=4, head_dim=128)
    inputs = random_inputs(case, np.random.default_rng(zlib.crc32(op.encode())))
    arguments = jax.tree.map(jnp.asarray, inputs.arguments)
    out = np.asarray(jax.jit(attention_of(case, implementation))(arguments))
    found = deviation(case, out, expected(case, inputs))
    print(DONE if found.is_fine else f"the answer is wrong: {found}", flush=True)
    return 0 if found.is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
