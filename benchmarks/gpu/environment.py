"""The environment of a worker: no network, this tree first, and a CUDA toolkit that is found."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from gpu.settings import Settings, Worker
from jaxserve.xla_flags import serving_variables

REPO = Path(__file__).resolve().parents[2]
TOOLKITS = ("/usr/local/cuda", "/opt/cuda")  # where NVIDIA's and distributions' packages put it


def worker_environment(
    settings: Settings, worker: Worker, site: Path | None, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """What ``worker`` runs with; ``site`` holds the packages that were carried here."""
    env = dict(base)
    folders = [REPO, REPO / "benchmarks", REPO / "scripts"]
    ours = [*map(str, folders), *([str(site)] if site else [])]
    env["PYTHONPATH"] = os.pathsep.join([*ours, *filter(None, [base.get("PYTHONPATH")])])
    env |= {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "JAX_COMPILATION_CACHE_DIR": base.get(
            "JAX_COMPILATION_CACHE_DIR", str(Path(settings.scratch) / "compiled")
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        # A GPU that jax cannot use must be an error, not a slow run on the CPU.
        "JAX_PLATFORMS": "cpu" if settings.is_dry_run else "cuda,cpu",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true" if worker.memory else "false",
    }
    env.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # the old name; both at once are refused
    if worker.memory:
        env["XLA_CLIENT_MEM_FRACTION"] = str(worker.memory)
    if not settings.is_dry_run:
        env |= toolkit_variables(env)
        env |= serving_variables(env) if worker.is_served else {}
    return env


def toolkit_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Where XLA and Mosaic find ptxas and libdevice, if nothing has told them so far.

    jax looks in its own nvidia packages and then in CUDA_ROOT; a machine may have neither and a
    whole toolkit beside them.
    """
    root = toolkit_root(env)
    if root is None:
        return {}
    found = {"CUDA_ROOT": str(root)}
    if shutil.which("ptxas", path=env.get("PATH")) is None:
        found["PATH"] = os.pathsep.join([str(root / "bin"), env.get("PATH", "")])
    return found


def toolkit_root(env: Mapping[str, str]) -> Path | None:
    """The first toolkit with a ptxas in it."""
    ptxas, nvcc = (shutil.which(name, path=env.get("PATH")) for name in ("ptxas", "nvcc"))
    candidates = [env.get("CUDA_ROOT"), env.get("CUDA_HOME"), env.get("CUDA_PATH")]
    candidates += [*_nvidia_packages()]
    candidates += [str(Path(tool).resolve().parents[1]) for tool in (ptxas, nvcc) if tool]
    candidates += TOOLKITS
    for candidate in filter(None, candidates):
        if (Path(candidate) / "bin" / "ptxas").is_file():
            return Path(candidate)
    return None


def _nvidia_packages() -> list[str]:
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return [str(Path(folder) / name) for folder in folders for name in ("cu13", "cuda_nvcc")]
