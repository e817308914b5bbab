"""The only package that touches the device: numpy in, numpy out, one jitted call per step."""

from jaxserve.executor.attention_backend import settle_backend
from jaxserve.executor.device import device_info, enable_compilation_cache, keep_freed_memory
from jaxserve.executor.kv_pool import MemoryPlan, plan_memory
from jaxserve.executor.profiler import Profiler
from jaxserve.executor.runner import ModelRunner, PendingStep, build_runner, make_model

__all__ = [
    "MemoryPlan",
    "ModelRunner",
    "PendingStep",
    "Profiler",
    "build_runner",
    "device_info",
    "enable_compilation_cache",
    "keep_freed_memory",
    "make_model",
    "plan_memory",
    "settle_backend",
]
