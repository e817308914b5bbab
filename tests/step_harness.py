"""A runner over a checkpoint with two small buckets, and what its programs look like."""

import re
from pathlib import Path

import jax
import numpy as np

from jaxserve.batch import Bucket, Mode, SamplingArrays
from jaxserve.config import DeviceInfo, EngineConfig, resolve
from jaxserve.executor import ModelRunner, build_runner
from jaxserve.model_config import ModelConfig
from jaxserve.weights import resolve_source

DEVICE = DeviceInfo("cpu", "cpu", 8 * 2**30, 2, num_devices=8)
DECODE = Bucket(Mode.DECODE, 4, 4, 8)
EXTEND = Bucket(Mode.EXTEND, 32, 2, 8)


def make_runner(
    checkpoint: Path, *, num_pages: int, dtype: str = "float32", tp_size: int = 1, **fields: object
) -> ModelRunner:
    source = resolve_source(str(checkpoint))
    model_config = ModelConfig.from_hf(source.hf_config)
    config = EngineConfig(
        **{"dtype": dtype, "tp_size": tp_size, "max_running_requests": 4, "context_length": 128}
        | fields
    )
    config = resolve(config, model_config, DEVICE)
    return build_runner(
        config, model_config, source, DEVICE, num_pages=num_pages, buckets=(DECODE, EXTEND)
    )


def neutral_sampling(bucket: Bucket) -> SamplingArrays:
    rows = bucket.num_rows
    return SamplingArrays(
        samples=np.ones(rows, np.bool_),
        temperature=np.zeros(rows, np.float32),
        top_k=np.zeros(rows, np.int32),
        top_p=np.ones(rows, np.float32),
        min_p=np.zeros(rows, np.float32),
        frequency_penalty=np.zeros(rows, np.float32),
        presence_penalty=np.zeros(rows, np.float32),
        repetition_penalty=np.ones(rows, np.float32),
        seeds=np.arange(2 * rows, dtype=np.uint32).reshape(rows, 2) + np.uint32(2**31),
        min_lens=np.zeros(rows, np.int32),
        has_logit_bias=np.zeros(rows, np.bool_),
        wants_logprobs=np.zeros(rows, np.bool_),
    )


def program_of(runner: ModelRunner, bucket: Bucket) -> jax.stages.Compiled:
    return runner.lower_step(bucket).compile()


def moved_shapes(text: str) -> set[tuple[int, ...]]:
    """The shape of every array that an instruction copies, slices, transposes or converts.

    What stands inside a fusion is computed element by element and never stored, so only the
    result of a fusion counts, when the fusion is named after such an instruction.
    """
    shapes = set()
    for computation in re.split(r"\n(?=%|ENTRY)", text):
        if computation.startswith("%fused_computation"):
            continue
        for name, shape, operation in re.findall(
            r"%(\S+) = \w+\[([\d,]+)\]\S* ([\w-]+)\(", computation
        ):
            moves = ("copy", "dynamic-slice", "transpose", "convert")
            if operation in moves or (operation == "fusion" and name.startswith(moves)):
                shapes.add(tuple(int(size) for size in shape.split(",")))
    return shapes
