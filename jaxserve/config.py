"""How the engine runs (``EngineConfig``) and where it is served (``ServerConfig``).

Both are frozen.  ``resolve`` is the only place that fills a ``None`` or an ``"auto"``; nothing
re-reads a flag or the environment after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxserve.errors import ConfigError
from jaxserve.model_config import ModelConfig
from jaxserve.shard_plan import plan_shards

GIB = 2**30
CHUNKED_PREFILL_OFF = -1
SCHEDULE_POLICIES = ("fcfs", "lpm", "priority")
DTYPES = ("auto", "float32", "float", "bfloat16", "float16", "half")
LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")
SAMPLING_DEFAULTS = ("model", "openai")
API_COMPATS = ("0.5", "0.3")
LOG_FORMATS = ("text", "json")
LOG_REQUESTS_LEVELS = (0, 1, 2, 3)
GRAMMAR_BACKENDS = ("llguidance", "none")
CPU_TOKEN_PADDINGS = (32, 128)  # and the chunk size
CPU_ROW_PADDINGS = (2, 8, 16, 32)  # and the maximum
# Activations of an extend step are 5 % of an 8B model's weights at 8192 tokens and 1.2 % at 2048,
# where matrix products are bound by arithmetic all the same (2048 FLOP per byte of weights).
CUDA_CHUNK = 2048
# Widths of page tables, and the maximum: at 256 rows of 131072 tokens a step's table is 8 MB.
CUDA_TABLE_WIDTHS = (64, 512)
ATTENTION_BACKENDS = ("auto", "pallas", "xla", "reference")
SECRETS = ("api_key", "admin_api_key", "ssl_keyfile_password")  # shown as *** everywhere
HOPPER = "9.0"  # the compute capability that there are kernels for


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What to serve and how.  Field name = flag name with underscores.

    ``None`` and ``"auto"`` are filled by ``resolve``; every other value is taken as given.
    """

    model_path: str | None = None  # None = the embedded demo model
    tokenizer_path: str | None = None
    load_format: str = "auto"
    revision: str | None = None
    download_dir: str | None = None
    dtype: str = "auto"
    tp_size: int = 1  # devices that the model is divided among
    context_length: int | None = None
    chat_template: str | None = None  # a .jinja file
    mem_fraction_static: float | None = None
    max_total_tokens: int | None = None
    max_running_requests: int | None = None
    max_queued_requests: int | None = None  # None = unlimited
    chunked_prefill_size: int | None = None  # tokens; -1 = whole prompts
    prefill_max_requests: int | None = None
    precompile_token_paddings: tuple[int, ...] | None = None  # token sizes of EXTEND buckets
    precompile_bs_paddings: tuple[int, ...] | None = None  # row counts of DECODE buckets
    page_size: int = 16
    schedule_policy: str = "fcfs"
    max_extends_per_decode: int | None = None  # extend steps in a row while rows wait to decode
    disable_radix_cache: bool = False
    disable_overlap_schedule: bool = False
    attention_backend: str = "auto"  # pallas: kernels for Hopper GPUs; settled by the executor
    random_seed: int | None = None
    decode_log_interval: int = 40
    compilation_cache_dir: str | None = None  # None = the user's cache folder; "" = off
    skip_server_warmup: bool = False
    weight_version: str = "default"
    grammar_backend: str = "llguidance"
    constrained_json_whitespace_pattern: str | None = None  # a regex; None = at most 64 characters
    constrained_json_disable_any_whitespace: bool = False
    grammar_timeout_s: float = 20.0  # how long a request waits for its grammar to be compiled
    allow_auto_truncate: bool = False  # cut a prompt or an output that does not fit
    bucket_time_to_first_token: tuple[float, ...] | None = None  # upper bounds, in seconds
    bucket_inter_token_latency: tuple[float, ...] | None = None
    bucket_e2e_request_latency: tuple[float, ...] | None = None
    prompt_tokens_buckets: tuple[float, ...] | None = None  # upper bounds, in tokens
    generation_tokens_buckets: tuple[float, ...] | None = None
    extra_metric_labels: Mapping[str, str] | None = None  # on every metric
    waiting_timeout_s: float | None = None  # from arrival to the first step; None = no limit
    running_timeout_s: float | None = None  # from the first step to the end; None = no limit
    enable_return_hidden_states: bool = False  # requests may ask for them
    enable_priority_scheduling: bool = False  # Request.priority goes before the policy
    schedule_low_priority_values_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where and under which name the model is served."""

    host: str = "127.0.0.1"
    port: int = 30000
    served_model_name: str | None = None
    api_key: str | None = None
    log_level: str = "info"
    enable_metrics: bool = True
    enable_cache_report: bool = False
    sampling_defaults: str = "model"  # "model": generation_config.json; "openai": 1.0, 1.0, off
    api_compat: str = "0.5"  # "0.3": /get_model_info has exactly the two keys of SGLang 0.3
    stream_interval: int = 1  # tokens per streamed event
    max_body_bytes: int = 64 * 2**20
    drain_timeout_s: float = 30.0
    admin_api_key: str | None = None  # opens what controls the server; see server/auth.py
    reasoning_parser: str | None = None  # name, or "auto": what the chat template tells
    tool_call_parser: str | None = None  # likewise
    enable_strict_thinking: bool = False  # budgets of reasoning; it ends with its mark only
    incremental_streaming_output: bool = False  # events of /generate hold what is new only
    preferred_sampling_params: Mapping[str, object] | None = None  # /generate's defaults
    enable_response_store: bool = False  # keep responses of /v1/responses in memory
    ssl_keyfile: str | None = None  # PEM; with ssl_certfile, serve HTTPS
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None
    log_level_http: str | None = None  # of the access log; None = log_level
    log_requests: bool = False
    log_requests_level: int = 2  # 0: ids and counts; 1: and sampling; 2: and text cut; 3: all text
    log_requests_format: str = "text"
    fastapi_root_path: str = ""  # the path under which a proxy shows the server
    disable_openapi_doc: bool = False
    health_check_timeout_s: float = 20.0  # of /health_generate
    profile_dir: str | None = None  # where /start_profile writes, unless it says; None = a temp dir
    default_chat_template_kwargs: Mapping[str, object] | None = None  # a request's own win
    stream_response_default_include_usage: bool = False  # as if stream_options asked for it


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What ``resolve`` must know of the device, as plain numbers, so that it needs no jax."""

    platform: str  # "cpu" or "cuda"
    name: str
    free_bytes: int  # of the least free one of those that are used
    num_cores: int  # of the host
    num_devices: int = 1  # that there are, used or not
    compute_capability: str = ""  # of an NVIDIA GPU, such as "9.0"

    @property
    def is_hopper(self) -> bool:
        """One that the attention kernels are written for."""
        return self.platform == "cuda" and self.compute_capability == HOPPER


def resolve(config: EngineConfig, model: ModelConfig, device: DeviceInfo) -> EngineConfig:
    """Return ``config`` without a ``None`` or an ``"auto"`` that steers the engine.

    Raises:
        ConfigError: a value that this model or device cannot be served with.
    """
    _check(config, model)
    _check_devices(config, model, device)
    is_cpu = device.platform == "cpu"
    context_length = config.context_length or model.context_len
    chunk = config.chunked_prefill_size
    if chunk is None:
        chunk = 512 if is_cpu else CUDA_CHUNK
    if chunk == CHUNKED_PREFILL_OFF:
        chunk = context_length
    chunk = max(config.page_size, min(chunk, _round_up(context_length, config.page_size)))
    max_running = config.max_running_requests or (64 if is_cpu else 256)
    dtype = {"half": "float16", "float": "float32"}.get(config.dtype, config.dtype)
    if dtype == "auto":
        dtype = "bfloat16" if is_cpu else model.dtype
    token_paddings, row_paddings = config.precompile_token_paddings, config.precompile_bs_paddings
    if is_cpu and token_paddings is None:
        token_paddings = CPU_TOKEN_PADDINGS
    if is_cpu and row_paddings is None:
        # XLA:CPU multiplies one row with bf16 weights 10x slower than two
        row_paddings = CPU_ROW_PADDINGS if dtype != "float32" else (1, *CPU_ROW_PADDINGS)
    return replace(
        config,
        context_length=context_length,
        dtype=dtype,
        chunked_prefill_size=_round_up(chunk, config.page_size),
        max_running_requests=max_running,
        prefill_max_requests=config.prefill_max_requests or min(max_running, 8 if is_cpu else 64),
        max_extends_per_decode=config.max_extends_per_decode or 8,
        precompile_token_paddings=token_paddings,
        precompile_bs_paddings=row_paddings,
        mem_fraction_static=config.mem_fraction_static or (0.25 if is_cpu else 0.88),
        attention_backend=_attention_backend(config, device),
    )


def _attention_backend(config: EngineConfig, device: DeviceInfo) -> str:
    """Still "auto" where kernels may serve: what those support, the executor asks them."""
    asked = config.attention_backend
    return "xla" if asked == "auto" and not device.is_hopper else asked


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _check(config: EngineConfig, model: ModelConfig) -> None:
    _one_of("--schedule-policy", config.schedule_policy, SCHEDULE_POLICIES)
    _one_of("--dtype", config.dtype, DTYPES)
    _one_of("--attention-backend", config.attention_backend, ATTENTION_BACKENDS)
    _one_of("--grammar-backend", config.grammar_backend, GRAMMAR_BACKENDS)
    if config.page_size < 1 or config.page_size & (config.page_size - 1):
        raise ConfigError(f"--page-size must be a power of two, got {config.page_size}")
    if config.context_length is not None and not 1 <= config.context_length <= model.context_len:
        raise ConfigError(
            f"--context-length {config.context_length} is outside [1, {model.context_len}], the "
            "model's own context; choose a value inside it or leave the flag away"
        )
    fraction = config.mem_fraction_static
    if fraction is not None and not 0.0 < fraction <= 1.0:
        raise ConfigError(f"--mem-fraction-static must be in (0, 1], got {fraction}")
    chunk = config.chunked_prefill_size
    if chunk is not None and chunk != CHUNKED_PREFILL_OFF and chunk < config.page_size:
        raise ConfigError(
            f"--chunked-prefill-size must be -1 (off) or at least --page-size "
            f"({config.page_size}), got {chunk}"
        )
    for name in (
        "max_running_requests",
        "prefill_max_requests",
        "max_extends_per_decode",
        "max_total_tokens",
        "max_queued_requests",
        "decode_log_interval",
    ):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def _check_devices(config: EngineConfig, model: ModelConfig, device: DeviceInfo) -> None:
    plan_shards(model, config.tp_size)
    if config.tp_size > device.num_devices:
        raise ConfigError(
            f"--tp-size {config.tp_size} needs as many devices, and {device.num_devices} of "
            f"{device.platform} ({device.name}) are visible; choose a smaller one, or make more "
            "visible (CUDA_VISIBLE_DEVICES)"
        )


def _one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{flag} must be one of {', '.join(allowed)}; got {value!r}")
