"""What is known of the flags beside their fields: groups, words, choices, aliases.

The command line, and the reference in docs/operations.md, are made of these tables.
"""

from collections.abc import Mapping

from jaxserve.config import (
    API_COMPATS,
    ATTENTION_BACKENDS,
    DTYPES,
    GRAMMAR_BACKENDS,
    LOAD_FORMATS,
    LOG_FORMATS,
    LOG_REQUESTS_LEVELS,
    SAMPLING_DEFAULTS,
    SCHEDULE_POLICIES,
)

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
CHOICES: Mapping[str, tuple[str | int, ...]] = {
    "load_format": LOAD_FORMATS,
    "dtype": DTYPES,
    "schedule_policy": SCHEDULE_POLICIES,
    "attention_backend": ATTENTION_BACKENDS,
    "log_level": LOG_LEVELS,
    "sampling_defaults": SAMPLING_DEFAULTS,
    "api_compat": API_COMPATS,
    "grammar_backend": GRAMMAR_BACKENDS,
    "log_level_http": LOG_LEVELS,
    "log_requests_level": LOG_REQUESTS_LEVELS,
    "log_requests_format": LOG_FORMATS,
}
PADDINGS = ("precompile_token_paddings", "precompile_bs_paddings")
BOUNDS = (
    "bucket_time_to_first_token", "bucket_inter_token_latency", "bucket_e2e_request_latency",
)  # fmt: skip
LISTS = (*PADDINGS, *BOUNDS)
RULES = ("prompt_tokens_buckets", "generation_tokens_buckets")
# Field -> SGLang's variable that sets its default.
ENVIRONMENT: Mapping[str, str] = {
    "health_check_timeout_s": "SGLANG_HEALTH_CHECK_TIMEOUT",
    "profile_dir": "SGLANG_TORCH_PROFILER_DIR",
    "disable_openapi_doc": "DISABLE_OPENAPI_DOC",
    "waiting_timeout_s": "SGLANG_REQ_WAITING_TIMEOUT",
    "running_timeout_s": "SGLANG_REQ_RUNNING_TIMEOUT",
}
ALIASES: Mapping[str, str] = {
    "model_path": "--model",
    "tp_size": "--tensor-parallel-size",
    "incremental_streaming_output": "--stream-output",
}
# Heading -> fields, in the order of the reference.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Model": (
        "model_path", "tokenizer_path", "load_format", "revision", "download_dir", "dtype",
        "tp_size", "context_length", "allow_auto_truncate", "chat_template",
        "weight_version", "random_seed",
    ),
    "Memory and scheduling": (
        "mem_fraction_static", "max_total_tokens", "page_size", "max_running_requests",
        "max_queued_requests", "waiting_timeout_s", "running_timeout_s", "chunked_prefill_size",
        "prefill_max_requests", "schedule_policy", "enable_priority_scheduling",
        "schedule_low_priority_values_first", "max_extends_per_decode", "disable_radix_cache",
        "disable_overlap_schedule", "attention_backend",
    ),
    "Compilation and warm-up": (
        "compilation_cache_dir", "precompile_token_paddings", "precompile_bs_paddings",
        "skip_server_warmup",
    ),
    "Constrained output": (
        "grammar_backend", "grammar_timeout_s", "constrained_json_whitespace_pattern",
        "constrained_json_disable_any_whitespace",
    ),
    "Server": (
        "host", "port", "ssl_certfile", "ssl_keyfile", "ssl_keyfile_password", "api_key",
        "admin_api_key", "fastapi_root_path", "max_body_bytes", "drain_timeout_s",
        "health_check_timeout_s", "disable_openapi_doc",
    ),
    "API": (
        "served_model_name", "api_compat", "reasoning_parser", "tool_call_parser",
        "enable_strict_thinking",
        "default_chat_template_kwargs", "sampling_defaults", "preferred_sampling_params",
        "enable_return_hidden_states", "stream_interval",
        "incremental_streaming_output", "stream_response_default_include_usage",
        "enable_cache_report", "enable_response_store",
    ),
    "Logs, metrics and profiles": (
        "log_level", "log_level_http", "log_requests", "log_requests_level",
        "log_requests_format", "decode_log_interval", "enable_metrics", "extra_metric_labels",
        "bucket_time_to_first_token", "bucket_inter_token_latency", "bucket_e2e_request_latency",
        "prompt_tokens_buckets", "generation_tokens_buckets", "profile_dir",
    ),
}  # fmt: skip
# What None stands for, until `resolve` settles it.
DEFAULTS: Mapping[str, str] = {
    "model_path": "the demo model",
    "tokenizer_path": "the model's",
    "revision": "the default branch",
    "download_dir": "the hub's own cache",
    "context_length": "the model's",
    "chat_template": "the model's",
    "random_seed": "random",
    "mem_fraction_static": "0.25 on CPU, 0.88 on GPU",
    "max_total_tokens": "what fits",
    "max_running_requests": "64 on CPU, 256 on GPU",
    "max_queued_requests": "no limit",
    "waiting_timeout_s": "no limit",
    "running_timeout_s": "no limit",
    "chunked_prefill_size": "512 on CPU, 2048 on GPU",
    "prefill_max_requests": "8 on CPU, 64 on GPU",
    "max_extends_per_decode": "8",
    "compilation_cache_dir": "the user's cache folder",
    "precompile_token_paddings": "a short list on CPU, doubling from 128 on GPU",
    "precompile_bs_paddings": "a short list on CPU, doubling on GPU",
    "constrained_json_whitespace_pattern": "at most 64 characters",
    "served_model_name": "the model path",
    "max_body_bytes": "64 MiB",
    "log_level_http": "as --log-level",
    "bucket_time_to_first_token": "SGLang's",
    "bucket_inter_token_latency": "SGLang's",
    "bucket_e2e_request_latency": "SGLang's",
    "prompt_tokens_buckets": "SGLang's",
    "generation_tokens_buckets": "SGLang's",
    "profile_dir": "a temporary folder",
}
HELP: Mapping[str, str] = {
    "model_path": "Hugging Face folder, hub id or .gguf file",
    "tokenizer_path": "folder or .gguf file of the tokenizer",
    "load_format": "format of the weights; dummy: random weights of the model's config",
    "revision": "branch, tag or commit on the hub",
    "download_dir": "folder for what is downloaded from the hub",
    "dtype": (
        "of the weights; auto: bfloat16 on CPU (activations stay in float32 there), else the "
        "checkpoint's"
    ),
    "tp_size": "devices that the model is divided among (tensor parallelism)",
    "context_length": "longest prompt plus output, in tokens",
    "allow_auto_truncate": (
        "cut a prompt's end, or lower its max_new_tokens, to what the context holds, in place of "
        "a 400"
    ),
    "chat_template": "a .jinja file to use in place of the model's chat template",
    "weight_version": "a label of the weights, returned in every meta_info",
    "random_seed": "seeds the sequences that bring no seed",
    "mem_fraction_static": (
        "share of the free memory that weights, per-slot state and KV pages may take"
    ),
    "max_total_tokens": (
        "size of the KV pool in tokens; may ask for more than the fraction, never for more "
        "than is free"
    ),
    "page_size": (
        "tokens per page of the KV pool, a power of two; prefixes are shared in whole pages"
    ),
    "max_running_requests": "sequences that decode together",
    "max_queued_requests": "waiting sequences; beyond them a request is a 503",
    "waiting_timeout_s": "seconds that a request may wait for its first step before it is a 503",
    "running_timeout_s": "seconds from the first step after which a request is a 503",
    "chunked_prefill_size": "token budget of one extend step; -1: whole prompts",
    "prefill_max_requests": "sequences in one extend step",
    "schedule_policy": (
        "order of the waiting queue; lpm: longest cached prefix first, priority: highest "
        "priority first"
    ),
    "enable_priority_scheduling": (
        "serve the highest priority first; it may take the place of a lower one in a full queue"
    ),
    "schedule_low_priority_values_first": "the lowest number is the highest priority",
    "max_extends_per_decode": "extend steps in a row while others wait to decode",
    "disable_radix_cache": "share no prefixes: compute every prompt anew",
    "disable_overlap_schedule": "fetch each step before planning the next (for debugging)",
    "attention_backend": (
        "pallas: the kernels for NVIDIA Hopper GPUs; xla: the portable path; reference: slow "
        "and obvious; auto: pallas where it can serve, else xla"
    ),
    "compilation_cache_dir": "where compiled steps are kept; an empty string keeps none",
    "precompile_token_paddings": (
        "token counts of the extend steps that are compiled; the chunk size is always one"
    ),
    "precompile_bs_paddings": (
        "row counts of the decode steps that are compiled; the maximum is always one"
    ),
    "skip_server_warmup": 'do not generate a few tokens before "ready"',
    "grammar_backend": (
        "what constrains output to a JSON schema, regex or grammar; none: refuse such requests"
    ),
    "grammar_timeout_s": (
        "seconds that a request waits for its grammar to be compiled before it is a 400"
    ),
    "constrained_json_whitespace_pattern": (
        "regex of the white space between the parts of constrained JSON"
    ),
    "constrained_json_disable_any_whitespace": "no white space inside constrained JSON",
    "host": "address to listen on",
    "port": "port to listen on; 0 = any free one",
    "ssl_certfile": (
        "PEM file of the TLS certificate and its chain; with --ssl-keyfile the server speaks HTTPS"
    ),
    "ssl_keyfile": "PEM file of the TLS key",
    "ssl_keyfile_password": "password of the TLS key",
    "api_key": (
        "key that every request must bring as Authorization: Bearer KEY (or x-api-key: KEY), "
        "except to /health*, /ready and /metrics"
    ),
    "admin_api_key": (
        "key of the endpoints that control the server, which --api-key then does not open; "
        "docs/api.md lists them"
    ),
    "fastapi_root_path": (
        "path under which a proxy shows the server; endpoints answer with it in front and without"
    ),
    "max_body_bytes": "longest request body; a longer one is a 413",
    "drain_timeout_s": "seconds that open requests are given after SIGTERM",
    "health_check_timeout_s": "seconds that GET /health_generate waits for its token",
    "disable_openapi_doc": "no /openapi.json and no /docs",
    "served_model_name": "the name in /v1/models",
    "api_compat": "0.3: /get_model_info has exactly the two keys that SGLang 0.3 had",
    "reasoning_parser": (
        "how the output marks its reasoning: a name of docs/api.md, or auto to tell from the "
        "chat template"
    ),
    "tool_call_parser": (
        "how the output marks tool calls: a name of docs/api.md, or auto to tell from the chat "
        "template"
    ),
    "enable_strict_thinking": (
        "take budgets of reasoning tokens, and let neither the output end nor a tool call begin "
        "before the reasoning's end mark; needs --reasoning-parser"
    ),
    "preferred_sampling_params": (
        "JSON object of sampling_params that /generate takes where a request gives none"
    ),
    "default_chat_template_kwargs": (
        """arguments of every chat template, as JSON: '{"enable_thinking": false}'; """
        "a request's own win"
    ),
    "sampling_defaults": (
        "where OpenAI endpoints take what a request leaves open from: model: "
        "generation_config.json, openai: OpenAI's defaults"
    ),
    "enable_return_hidden_states": (
        "requests may ask for hidden states: return_hidden_states; decode steps then keep theirs"
    ),
    "stream_interval": "tokens per event of a stream",
    "incremental_streaming_output": (
        "events of /generate hold the new text and tokens, not all so far"
    ),
    "stream_response_default_include_usage": (
        "end every OpenAI stream with its token counts, as if stream_options asked for it"
    ),
    "enable_cache_report": "usage.prompt_tokens_details.cached_tokens in OpenAI answers",
    "enable_response_store": (
        "keep the responses of /v1/responses in memory (the last 10 000, at most 256 MiB), so "
        "that they can be got, continued with previous_response_id and run in the background"
    ),
    "log_level": "least severe messages to log",
    "log_level_http": "least severe access lines to log",
    "log_requests": "log every sequence when it comes and when it ends",
    "log_requests_level": (
        "0: ids and counts; 1: and sampling parameters; 2: and the first 2048 characters of "
        "its texts; 3: and all of them"
    ),
    "log_requests_format": "text for people, json for programs",
    "decode_log_interval": "decode steps between two log lines",
    "enable_metrics": "serve Prometheus text at /metrics; --no-enable-metrics turns it off",
    "extra_metric_labels": """labels of every metric, as JSON: '{"zone": "a"}'""",
    "bucket_time_to_first_token": "upper bounds of that metric's histogram, in seconds",
    "bucket_inter_token_latency": "upper bounds of that metric's histogram, in seconds",
    "bucket_e2e_request_latency": "upper bounds of that metric's histogram, in seconds",
    "prompt_tokens_buckets": (
        "histogram of prompt lengths: default | tse MIDDLE BASE COUNT (bounds that grow on "
        "both sides of MIDDLE) | custom BOUND…"
    ),
    "generation_tokens_buckets": "histogram of output lengths, as --prompt-tokens-buckets",
    "profile_dir": "where /start_profile writes unless it says where",
}
