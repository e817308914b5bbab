"""What device there is, how much of it is free, and where compiled steps are kept."""

import ctypes
import errno
import logging
import os
from pathlib import Path

import jax
import psutil

from jaxserve.config import DeviceInfo
from jaxserve.errors import ConfigError

logger = logging.getLogger(__name__)

# from glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_KEEP_BELOW = 2**31 - 1
_HEAP_BYTES = 2**26  # of one heap of a thread's arena (HEAP_MAX_SIZE in glibc's arena.c)
_CGROUP_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def device_info(num_used: int = 1) -> DeviceInfo:
    """Describe the devices that jax puts arrays on; ``num_used`` of them, the first, are used.

    Raises:
        ConfigError: one of those does not say what is free of its memory.
    """
    devices = jax.devices()
    used = devices[:num_used]
    kind = used[0].device_kind
    if used[0].platform == "cpu":
        # all of them share the host's memory
        return DeviceInfo(
            "cpu", kind, _free_host_bytes() // len(used), _num_cores(), num_devices=len(devices)
        )
    platform = "cuda" if used[0].platform in ("gpu", "cuda") else used[0].platform
    free = []
    for device in used:
        memory = device.memory_stats() or {}
        free.append(int(memory.get("bytes_limit", 0)) - int(memory.get("bytes_in_use", 0)))
        if free[-1] <= 0:
            raise ConfigError(
                f"the {platform} device {device.id} ({kind}) does not report its free memory; "
                "free it, or run with JAX_PLATFORMS=cpu"
            )
    return DeviceInfo(
        platform,
        kind,
        min(free),
        _num_cores(),
        num_devices=len(devices),
        compute_capability=str(used[0].compute_capability) if platform == "cuda" else "",
    )


def enable_compilation_cache(folder: str | None) -> str:
    """Keep compiled steps in ``folder`` ("" = do not), so that the next start is quick.

    Returns:
        The folder in use, or "": the default one is done without where it cannot be written.

    Raises:
        ConfigError: a folder that was asked for cannot be written.
    """
    path = _default_cache_dir() if folder is None else folder
    problem = _problem_with(path) if path else None
    if problem is not None and folder is not None:
        raise ConfigError(
            f"--compilation-cache-dir {folder} cannot be used: {problem}; name a folder that can "
            'be written, or "" to compile anew at every start'
        )
    if problem is not None:
        logger.warning("no compilation cache, so every start compiles anew: %s: %s", path, problem)
        path = ""
    if not path:
        jax.config.update("jax_enable_compilation_cache", False)
        return ""
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return path


def _default_cache_dir() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "jaxserve", "compiled")


def _problem_with(folder: str) -> str | None:
    """Why ``folder`` cannot be written, after an attempt to make it; None when it can."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        return error.strerror
    return None if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def keep_freed_memory() -> bool:
    """Tell glibc not to give large blocks back to the system after each step.

    XLA:CPU allocates a step's temporaries anew each time.  Blocks over 32 MiB are mapped and
    unmapped by default, and faulting their pages in again costs more than a small step: greedy
    sampling of 64 rows takes 11.8 ms with the default and 1.8 ms without.

    A thread's arena is made of heaps of 64 MiB, and the last one is unmapped whenever it is
    empty, whatever the thresholds say, unless less than the padding would then be left on top.
    Which blocks lie there is chance: without the padding some processes fault in 2,000 pages a
    step, and pay a third of their CPU time for it, for minutes on end.

    Returns:
        Whether the C library took the settings; other libraries than glibc have no such call.
    """
    libc = ctypes.CDLL(None)
    try:
        mallopt = libc.mallopt
    except AttributeError:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _KEEP_BELOW),
        (_M_TRIM_THRESHOLD, _KEEP_BELOW),
        (_M_TOP_PAD, 2 * _HEAP_BYTES),
    )
    return all([mallopt(name, value) for name, value in settings])


def _num_cores() -> int:
    affinity = psutil.Process().cpu_affinity() if psutil.LINUX else None
    return len(affinity) if affinity else os.cpu_count() or 1


def _free_host_bytes() -> int:
    """Memory that this process may still take: the machine's, or its container's if less."""
    free = int(psutil.virtual_memory().available)
    for limit_file, usage_file in _CGROUP_LIMITS:
        if limit_file.is_file() and usage_file.is_file():
            limit = limit_file.read_text().strip()
            if limit.isdigit():
                free = min(free, max(0, int(limit) - int(usage_file.read_text())))
    return free
