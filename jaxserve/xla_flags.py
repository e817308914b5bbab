"""What XLA and its allocator are told before a server starts jax: the one place for it.

XLA reads these variables once, when jax starts its first backend, and an XLA flag that it does
not know ends the process.  So the flags here are those that every supported jaxlib has, they are
set by ``python -m jaxserve.launch`` alone (importing a module of this package, or making an
``LLM``, changes no variable), and what the user has set is left as it is, flag by flag.

A script that uses ``LLM`` on a GPU calls ``set_for_serving()`` itself, before anything else of
jax runs, or does without.
"""

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

logger = logging.getLogger(__name__)

XLA_FLAGS = "XLA_FLAGS"
# jax's own default is 0.75, made for training scripts that share a GPU; --mem-fraction-static is
# a share of what this leaves.  The rest is for the CUDA context, graphs and libraries.
MEMORY = {"XLA_CLIENT_MEM_FRACTION": "0.92"}
# Any of these says that the user plans the memory.
MEMORY_VARIABLES = (
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)
# A step is one CUDA graph: added to the kinds that are recorded anyway.  Loops are xla's
# attention, collectives those of --tp-size.
COMMAND_BUFFERS = {"xla_gpu_enable_command_buffer": "+CONDITIONAL,+WHILE,+COLLECTIVES"}
# Starts a collective as early and waits for it as late as the data allows.
LATENCY_HIDING = {"xla_gpu_enable_latency_hiding_scheduler": "true"}

_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_NVIDIA_DEVICES = ("nvidia0", "nvidiactl", "dxg")  # the last is WSL's


def set_for_serving(tp_size: int = 1) -> None:
    """Set the variables in this process if it will run on NVIDIA GPUs; log what was set."""
    if not uses_cuda(os.environ):
        return
    added = serving_variables(os.environ, tp_size)
    os.environ.update(added)
    for name, value in added.items():
        logger.info("environment: %s=%s", name, value)


def serving_variables(environ: Mapping[str, str], tp_size: int = 1) -> dict[str, str]:
    """The variables to set, given those that there are; a user's own value is never changed."""
    variables = {}
    if not any(name in environ for name in MEMORY_VARIABLES):
        variables.update(MEMORY)
    flags = COMMAND_BUFFERS | (LATENCY_HIDING if tp_size > 1 else {})
    given = environ.get(XLA_FLAGS, "")
    if given and not given.lstrip().startswith("-"):
        logger.warning(
            "XLA_FLAGS=%s names a file, which is left as it is; jaxserve would add %s",
            given,
            _written(flags),
        )
        return variables
    names = {word.lstrip("-").partition("=")[0] for word in given.split()}
    missing = {name: value for name, value in flags.items() if name not in names}
    if missing:
        variables[XLA_FLAGS] = f"{given} {_written(missing)}".strip()
    return variables


def uses_cuda(environ: Mapping[str, str]) -> bool:
    """Whether jax will find an NVIDIA GPU; told without starting or importing it."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.lower().split(",")):
        return False
    has_device = any((Path("/dev") / name).exists() for name in _NVIDIA_DEVICES)
    return has_device and any(find_spec(name) is not None for name in _CUDA_PLUGINS)


def _written(flags: Mapping[str, str]) -> str:
    return " ".join(f"--{name}={value}" for name, value in flags.items())
