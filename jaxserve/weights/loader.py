"""From a resolved source to the model's parameters on the device."""

import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import numpy.typing as npt

from jaxserve.model_config import ModelConfig
from jaxserve.shard_plan import ShardPlan, plan_shards
from jaxserve.weights.dummy import dummy_weights
from jaxserve.weights.gguf import GGUFReader
from jaxserve.weights.mapping import Assembly, layout
from jaxserve.weights.reader import TensorReader
from jaxserve.weights.safetensors import SafetensorsReader
from jaxserve.weights.source import ModelSource

logger = logging.getLogger(__name__)

# More threads read no faster, and each holds one parameter of host memory.
_MAX_THREADS = 4


def load_weights(
    source: ModelSource,
    config: ModelConfig,
    expected: Mapping[str, jax.ShapeDtypeStruct],
    plan: ShardPlan | None = None,
) -> dict[str, jax.Array]:
    """Load every parameter onto the device, or each shard of it onto its device.

    The host holds at most one parameter per thread at a time, besides the file's own pages; no
    device ever holds more than its shards.

    Args:
        source: where the checkpoint lies, from ``resolve_source``.
        config: the same checkpoint's config.
        expected: our parameter path → shape over all shards, dtype (tensors are converted to it)
            and sharding (None: the default device).
        plan: how heads and halves are ordered in fused parameters; None: as on one device.

    Returns:
        Our path → array, in the order of ``expected``.

    Raises:
        WeightLoadError: a file that cannot be read, or tensors that do not fit the model; every
            one that is missing, unexpected or of a wrong shape is named.
    """
    start_s = time.perf_counter()
    if source.format == "dummy":
        weights = dummy_weights(expected)
    else:
        is_gguf = source.format == "gguf"
        reader = GGUFReader(source.path) if is_gguf else SafetensorsReader(source.path)
        weights = _load(reader, config, expected, plan or plan_shards(config, 1), source.name)
    for array in weights.values():
        array.block_until_ready()
    logger.info(
        "Loaded weights. source: %s, format: %s, tensors: %d, GiB: %.2f, seconds: %.2f",
        source.name,
        source.format,
        len(weights),
        sum(array.nbytes for array in weights.values()) / 2**30,
        time.perf_counter() - start_s,
    )
    return weights


def _load(
    reader: TensorReader,
    config: ModelConfig,
    expected: Mapping[str, jax.ShapeDtypeStruct],
    plan: ShardPlan,
    where: str,
) -> dict[str, jax.Array]:
    shapes = {path: struct.shape for path, struct in expected.items()}
    assemblies = layout(reader.shapes, config, plan, shapes, where)

    def load_one(path: str) -> jax.Array:
        host = _assemble(reader, assemblies[path], expected[path])
        # An array of the host is cut on the host.  Waiting here bounds the host's memory: a
        # transfer in flight keeps its source alive.
        return jax.device_put(host, expected[path].sharding).block_until_ready()

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(expected, pool.map(load_one, expected), strict=True))


def _assemble(
    reader: TensorReader, assembly: Assembly, struct: jax.ShapeDtypeStruct
) -> npt.NDArray[np.generic]:
    axis, parts = assembly.axis, assembly.parts
    if len(parts) == 1 and len(parts[0].runs) == 1:
        return reader.read(parts[0].source).astype(struct.dtype, copy=False)
    make = np.empty if assembly.num_filled == struct.shape[axis] else np.zeros
    fused = make(struct.shape, struct.dtype)
    before = (slice(None),) * axis
    for part in parts:
        values = reader.read(part.source)
        for run in part.runs:
            target = slice(run.target, run.target + run.stop - run.start)
            fused[(*before, target)] = values[(*before, slice(run.start, run.stop))]
    return fused
