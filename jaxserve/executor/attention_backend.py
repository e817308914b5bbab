"""Which implementation of attention serves, and why: decided before anything is compiled.

``pallas`` are the kernels for NVIDIA Hopper GPUs, ``xla`` the portable path.  ``auto`` takes the
kernels where there is such a GPU, they support the model's sizes and they pass the start-up
check.  A backend that the user named is used or refused, never swapped for another.
"""

import logging
import time
from dataclasses import dataclass

import jax.numpy as jnp

from jaxserve.config import HOPPER, DeviceInfo, EngineConfig
from jaxserve.errors import ConfigError
from jaxserve.executor.kernel_check import KernelShapes, find_problem
from jaxserve.executor.kv_pool import kv_dtype
from jaxserve.model_config import ModelConfig
from jaxserve.models import unsupported_reason
from jaxserve.shard_plan import ShardPlan

logger = logging.getLogger(__name__)

PALLAS, FALLBACK = "pallas", "xla"


@dataclass(frozen=True, slots=True)
class AttentionBackend:
    """The implementation, and the reason in words for the log."""

    name: str
    reason: str


def settle_backend(
    asked: str, config: EngineConfig, model: ModelConfig, plan: ShardPlan, device: DeviceInfo
) -> AttentionBackend:
    """Choose, and check the choice on the device.

    Args:
        asked: ``--attention-backend`` as the user gave it.
        config: resolved but for the backend.

    Raises:
        ConfigError: ``asked`` names what cannot serve, or fails the check.
        DeviceHangError: the check does not end.
    """
    shapes = kernel_shapes(config, model, plan, device.platform)
    return check_backend(choose_backend(asked, device, shapes), asked, shapes)


def kernel_shapes(
    config: EngineConfig, model: ModelConfig, plan: ShardPlan, platform: str
) -> KernelShapes:
    """The sizes that one device's attention will have."""
    return KernelShapes(
        num_heads=plan.num_heads,
        num_kv_heads=plan.num_kv_heads,
        head_dim=model.head_dim,
        page_size=config.page_size,
        hidden_size=model.hidden_size,
        dtype=jnp.dtype(config.dtype),
        kv_dtype=kv_dtype(config, platform),
    )


def choose_backend(asked: str, device: DeviceInfo, shapes: KernelShapes) -> AttentionBackend:
    """Decide by what is known of device and sizes.

    Raises:
        ConfigError: ``asked`` names what this device or model cannot be served with.
    """
    if asked not in (PALLAS, "auto"):
        return AttentionBackend(asked, "asked for")
    if not device.is_hopper:
        what = device.compute_capability and f" of compute capability {device.compute_capability}"
        problem: str | None = (
            f"the kernels are for NVIDIA Hopper GPUs (compute capability {HOPPER}), and this is "
            f"{device.platform} ({device.name}){what}"
        )
    else:
        problem = unsupported_reason(
            num_heads=shapes.num_heads,
            num_kv_heads=shapes.num_kv_heads,
            head_dim=shapes.head_dim,
            page_size=shapes.page_size,
            dtype=shapes.dtype,
            kv_dtype=shapes.kv_dtype,
        )
    if problem is None:
        return AttentionBackend(PALLAS, "asked for" if asked == PALLAS else "Hopper GPU")
    if asked == PALLAS:
        raise ConfigError(
            f"--attention-backend {PALLAS} cannot serve this: {problem}; use --attention-backend "
            f"auto or {FALLBACK}"
        )
    if device.platform != "cuda":
        return AttentionBackend(FALLBACK, "the portable path")
    return AttentionBackend(FALLBACK, problem)


def check_backend(
    chosen: AttentionBackend, asked: str, shapes: KernelShapes, *, baseline: str = FALLBACK
) -> AttentionBackend:
    """Compare the kernels with ``baseline`` on this device; what serves after that.

    Only kernels are checked: every other backend comes back as it is.

    Raises:
        ConfigError: they differ or fail, and the user named them.
        DeviceHangError: they do not end.
    """
    if chosen.name != PALLAS:
        return chosen
    started = time.monotonic()
    problem = find_problem(chosen.name, shapes, baseline=baseline)
    if problem is None:
        seconds = time.monotonic() - started
        reason = f"{chosen.reason}; agrees with {baseline} on random pages, {seconds:.1f} s"
        return AttentionBackend(chosen.name, reason)
    if asked == chosen.name:
        raise ConfigError(
            f"--attention-backend {chosen.name} failed its start-up check on this device: "
            f"{problem}; use --attention-backend {baseline}, and please report this"
        )
    logger.error(
        "THE %s ATTENTION KERNELS ARE WRONG ON THIS DEVICE: %s. Serving with %s instead, which is "
        "slower; please report this",
        chosen.name.upper(),
        problem,
        baseline,
    )
    return AttentionBackend(baseline, f"{chosen.name} failed its start-up check: {problem}")
