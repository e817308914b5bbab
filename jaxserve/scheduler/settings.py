"""What the scheduler is told."""

from dataclasses import dataclass

from jaxserve.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The part of ``EngineConfig`` that the scheduler reads, without a ``None`` that steers."""

    max_running_requests: int
    chunked_prefill_size: int
    prefill_max_requests: int
    page_size: int
    max_extends_per_decode: int = 8
    max_queued_requests: int | None = None  # None = unlimited
    schedule_policy: str = "fcfs"
    disable_radix_cache: bool = False
    enable_priority_scheduling: bool = False
    schedule_low_priority_values_first: bool = False

    @classmethod
    def from_engine(cls, config: EngineConfig) -> "SchedulerConfig":
        """Take the fields from a resolved ``EngineConfig``.

        Raises:
            ValueError: the config is not resolved; the message names the field.
        """
        return cls(
            max_running_requests=_resolved(config.max_running_requests, "max_running_requests"),
            chunked_prefill_size=_resolved(config.chunked_prefill_size, "chunked_prefill_size"),
            prefill_max_requests=_resolved(config.prefill_max_requests, "prefill_max_requests"),
            page_size=config.page_size,
            max_extends_per_decode=_resolved(
                config.max_extends_per_decode, "max_extends_per_decode"
            ),
            max_queued_requests=config.max_queued_requests,
            schedule_policy=config.schedule_policy,
            disable_radix_cache=config.disable_radix_cache,
            enable_priority_scheduling=config.enable_priority_scheduling,
            schedule_low_priority_values_first=config.schedule_low_priority_values_first,
        )


def _resolved(value: int | None, name: str) -> int:
    if value is None:
        raise ValueError(f"{name} is None; pass the config through resolve() first")
    return value
