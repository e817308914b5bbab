"""From a configuration to a running engine: resolve, plan the memory, load, compile, start."""

import logging
from dataclasses import replace

from jaxserve.config import CUDA_TABLE_WIDTHS, EngineConfig, resolve
from jaxserve.constraints import Constraints
from jaxserve.engine import Engine
from jaxserve.engine_report import DeviceMemory, EngineReport
from jaxserve.executor import (
    build_runner,
    device_info,
    enable_compilation_cache,
    keep_freed_memory,
    make_model,
    plan_memory,
    settle_backend,
)
from jaxserve.metrics import Metrics
from jaxserve.model_config import ModelConfig
from jaxserve.scheduler import Buckets, Scheduler, SchedulerConfig, make_buckets
from jaxserve.step_times import StepTimes
from jaxserve.weights import ModelSource

logger = logging.getLogger("jaxserve.engine")


def build_engine(
    config: EngineConfig, source: ModelSource, model_config: ModelConfig, metrics: Metrics
) -> Engine:
    """Resolve the config for this device, plan its memory, load, compile, start.

    Raises:
        ConfigError: a flag that this model or device cannot be served with.
        WeightLoadError: the checkpoint does not fit the model.
        DeviceHangError: the device does not answer.
    """
    cache_dir = enable_compilation_cache(config.compilation_cache_dir)
    device = device_info(config.tp_size)
    if device.platform == "cpu":
        keep_freed_memory()
    asked = config.attention_backend
    config = resolve(config, model_config, device)
    model = make_model(config, model_config, device.platform)
    attention = settle_backend(asked, config, model_config, model.plan, device)
    config = replace(config, attention_backend=attention.name)
    memory = plan_memory(
        config,
        model_config,
        weight_bytes=model.num_bytes,
        free_bytes=device.free_bytes,
        platform=device.platform,
    )
    buckets = _buckets(config, device.platform)
    logger.info("device: %s, %s; attention: %s (%s)", device.platform, device.name,
                attention.name, attention.reason)  # fmt: skip
    logger.info("memory plan: %s", memory)
    logger.info("buckets: extend tokens %s x %d rows, decode rows %s, table widths %s; "
                "compilation cache: %s", buckets.extend_tokens, buckets.extend_rows,
                buckets.decode_rows, buckets.pages_per_row, cache_dir or "off")  # fmt: skip
    runner = build_runner(
        config, model_config, source, device, num_pages=memory.num_pages, buckets=buckets.all()
    )
    metrics.compiled(runner.num_buckets, runner.compile_s)
    scheduler = Scheduler(
        SchedulerConfig.from_engine(config),
        num_pages=memory.num_pages,
        buckets=buckets,
        eos_token_ids=model_config.eos_token_ids,
        on_evicted=metrics.evicted,
    )
    times = StepTimes(buckets.extend_tokens, buckets.decode_rows)
    constraints = Constraints(
        scheduler,
        times,
        vocab_size=model_config.vocab_size,
        eos_token_ids=model_config.eos_token_ids,
    )
    sizes = DeviceMemory(
        num_tokens=memory.num_tokens, weight_bytes=memory.weight_bytes,
        kv_cache_bytes=memory.kv_bytes, free_bytes=memory.free_bytes, device_name=device.name,
    )  # fmt: skip
    report = EngineReport(scheduler, metrics, config, sizes)
    return Engine(scheduler, runner, constraints, report, times, config=config)


def _buckets(config: EngineConfig, platform: str) -> Buckets:
    """The shapes that a resolved config asks for."""
    assert config.context_length and config.chunked_prefill_size
    assert config.max_running_requests and config.prefill_max_requests
    return make_buckets(
        chunked_prefill_size=config.chunked_prefill_size,
        max_running_requests=config.max_running_requests,
        prefill_max_requests=config.prefill_max_requests,
        max_pages_per_row=-(-config.context_length // config.page_size),
        pages_per_row=() if platform == "cpu" else CUDA_TABLE_WIDTHS,
        extend_tokens=config.precompile_token_paddings,
        decode_rows=config.precompile_bs_paddings,
    )
