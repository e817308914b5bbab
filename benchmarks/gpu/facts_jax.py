"""What this machine is, as jax sees it: versions, target config, and its two ceilings."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gpu.device import is_healthy
from gpu.settings import Settings
from gpu.timing import measure
from gpu.worker import Case, SkipError, Values

__all__ = ["cases", "is_healthy"]
PACKAGES = (
    "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt", "flax", "numpy", "transformers",
    "tokenizers", "torch", "triton", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-nvcc",
)  # fmt: skip
NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit",
    "--format=csv,noheader",
)
TARGET_CONFIG_FILE = "gpu_target_config.txtpb"
COPY_BYTES = (8 << 20, 2 << 30)  # of the dry run, and on a GPU: much more than any cache
MATMUL_SIZE = (256, 8192)


def facts() -> Values:
    """Versions and hardware."""
    device = jax.devices()[0]
    return {
        "nvidia_smi": _output(NVIDIA_SMI),
        "device_kind": device.device_kind,
        "num_devices": len(jax.devices()),
        "memory_stats": device.memory_stats() or {},
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "ptxas": _output(("ptxas", "--version")).splitlines()[-1:],
        "cuda_root": os.environ.get("CUDA_ROOT", ""),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _output(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not here"
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout or done.stderr).strip()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """Writes what the compiler knows of this GPU, to be laid beside the one kernels are proved
    against."""

    settings: Settings

    def run(self) -> Values:
        if self.settings.is_dry_run:
            raise SkipError("no CUDA")
        # Not public: the public topology keeps the devices and drops this attribute.
        runtime = importlib.import_module("jax._src.lib")._jax
        text = str(runtime.get_topology_for_devices(jax.devices()).target_config)
        path = Path(self.settings.output) / TARGET_CONFIG_FILE
        path.write_text(text, "utf-8")
        return {"file": path.name, "bytes": len(text)}


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes per second of an elementwise kernel: as many written as read, both counted."""

    num_bytes: int
    settings: Settings

    def _spec(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.num_bytes // 4,), jnp.uint32)

    def lower(self) -> list[Any]:
        return [jax.jit(lambda x: x + jnp.uint32(1)).lower(self._spec())]

    def run(self, program: Any) -> Values:
        x = jax.random.bits(jax.random.key(0), self._spec().shape, jnp.uint32)
        timing = measure(
            lambda: program(x), jax.block_until_ready, budget_s=self.settings.sample_budget_s
        )
        return {"bytes_per_s": 2 * self.num_bytes / timing.median_s, **timing.values()}


@dataclass(frozen=True, slots=True)
class Matmul:
    """FLOP/s of a square product of random bf16."""

    size: int
    settings: Settings

    def lower(self) -> list[Any]:
        spec = jax.ShapeDtypeStruct((self.size, self.size), jnp.bfloat16)
        return [jax.jit(jnp.matmul).lower(spec, spec)]

    def run(self, program: Any) -> Values:
        shape = (self.size, self.size)
        x, y = (jax.random.normal(key, shape, jnp.bfloat16)
                for key in jax.random.split(jax.random.key(1)))  # fmt: skip
        timing = measure(
            lambda: program(x, y), jax.block_until_ready, budget_s=self.settings.sample_budget_s
        )
        return {"flops_per_s": 2 * self.size**3 / timing.median_s, **timing.values()}


def cases(settings: Settings) -> Iterator[Case]:
    """Facts, then ceilings."""
    is_real = not settings.is_dry_run
    yield Case("facts", facts)
    yield Case("target config", TargetConfig(settings).run)
    copy = Copy(COPY_BYTES[is_real], settings)
    matmul = Matmul(MATMUL_SIZE[is_real], settings)
    yield Case("copy, jax", copy.run, copy.lower)
    yield Case("matmul, jax", matmul.run, matmul.lower)
