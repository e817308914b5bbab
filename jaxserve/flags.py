"""The command line: one flag per field of ``EngineConfig`` and ``ServerConfig``, SGLang's names."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from jaxserve.config import (
    API_COMPATS,
    ATTENTION_BACKENDS,
    DTYPES,
    LOAD_FORMATS,
    SAMPLING_DEFAULTS,
    SCHEDULE_POLICIES,
    EngineConfig,
    ServerConfig,
)

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "load_format": LOAD_FORMATS,
    "dtype": DTYPES,
    "schedule_policy": SCHEDULE_POLICIES,
    "attention_backend": ATTENTION_BACKENDS,
    "log_level": LOG_LEVELS,
    "sampling_defaults": SAMPLING_DEFAULTS,
    "api_compat": API_COMPATS,
}
LISTS = ("precompile_token_paddings", "precompile_bs_paddings")
ALIASES: Mapping[str, str] = {"model_path": "--model", "tp_size": "--tensor-parallel-size"}
HELP: Mapping[str, str] = {
    "model_path": "Hugging Face folder, hub id or .gguf file; without it the demo model is served",
    "tokenizer_path": "folder or .gguf file of the tokenizer; default: the model's own",
    "load_format": "format of the weights; dummy = random weights of the model's config",
    "revision": "branch, tag or commit on the hub",
    "download_dir": "folder for downloaded models",
    "dtype": "type of the weights; auto = bfloat16 on CPU, else the checkpoint's",
    "tp_size": "devices that the model is divided among (tensor parallelism)",
    "context_length": "longest prompt + output in tokens; default: the model's own",
    "chat_template": "a .jinja file to use in place of the model's chat template",
    "mem_fraction_static": "share of the free memory for weights and KV pool",
    "max_total_tokens": "size of the KV pool in tokens; default: what fits",
    "max_running_requests": "sequences decoded at once",
    "max_queued_requests": "waiting sequences before new ones are refused with 503",
    "chunked_prefill_size": "prompt tokens computed in one step; -1 = whole prompts",
    "prefill_max_requests": "sequences in one extend step",
    "precompile_token_paddings": "token counts of the extend steps to compile; default: by device",
    "precompile_bs_paddings": "row counts of the decode steps to compile; default: by device",
    "page_size": "tokens per page of the KV pool, a power of two",
    "schedule_policy": "order of the waiting queue",
    "max_extends_per_decode": "extend steps in a row while other sequences wait to decode",
    "disable_radix_cache": "compute every prompt anew",
    "disable_overlap_schedule": "wait for each step before planning the next",
    "attention_backend": "auto = pallas (kernels) on a Hopper GPU that they support, else xla",
    "random_seed": "seed of the sequences that bring none",
    "decode_log_interval": "decode steps between two log lines",
    "compilation_cache_dir": 'folder for compiled steps; "" = keep none',
    "skip_server_warmup": "do not generate a few tokens before serving",
    "weight_version": "name of the weights, returned in every meta_info",
    "host": "address to listen on",
    "port": "port to listen on; 0 = any free one",
    "served_model_name": "name in /v1/models; default: the model path",
    "api_key": "key that every request must send as Authorization: Bearer KEY",
    "log_level": "least severe messages to log",
    "enable_metrics": "serve Prometheus metrics at /metrics",
    "enable_cache_report": "report cached tokens in the usage of the OpenAI endpoints",
    "sampling_defaults": "where the OpenAI endpoints take temperature etc. from, when not given",
    "api_compat": "0.3: /get_model_info has exactly the two keys of SGLang 0.3",
    "stream_interval": "tokens per streamed event",
    "max_body_bytes": "longest request body that is read",
    "drain_timeout_s": "seconds that running requests are given after SIGTERM",
}


def parse_flags(argv: Sequence[str] | None = None) -> tuple[EngineConfig, ServerConfig]:
    """Configs of a command line; a mistake in it exits with 2 and a line that names the flag."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxserve.launch",
        description="Serve a language model over SGLang's and OpenAI's HTTP APIs.",
    )
    for title, config in (("engine", EngineConfig), ("server", ServerConfig)):
        group = parser.add_argument_group(title)
        for item in fields(config):
            _add_flag(group, item)
    values = vars(parser.parse_args(argv))
    for name in LISTS:
        values[name] = None if values[name] is None else tuple(values[name])
    return (
        EngineConfig(**{item.name: values[item.name] for item in fields(EngineConfig)}),
        ServerConfig(**{item.name: values[item.name] for item in fields(ServerConfig)}),
    )


def _add_flag(group: Any, item: Field[Any]) -> None:
    """``group`` is argparse's argument group, whose class has no public name."""
    names = [f"--{item.name.replace('_', '-')}"]
    if item.name in ALIASES:
        names.append(ALIASES[item.name])
    assert item.default is not MISSING
    options: dict[str, Any] = {"dest": item.name, "default": item.default, "help": HELP[item.name]}
    if item.type is bool:
        on_already = item.default is True
        options["action"] = argparse.BooleanOptionalAction if on_already else "store_true"
    else:
        options["metavar"] = item.name.rsplit("_", 1)[-1].upper()
        if item.name in LISTS:
            options["nargs"], options["metavar"] = "+", "N"
        options["type"] = _reader(item)
        if item.default is not None:
            options["help"] += f" (default: {item.default})"
    if item.name in CHOICES:
        options["choices"] = CHOICES[item.name]
        del options["metavar"]
    group.add_argument(*names, **options)


def _reader(item: Field[Any]) -> Callable[[str], Any]:
    if item.name in _BOUNDED:
        return _BOUNDED[item.name]
    kind = item.type
    if kind in (int, int | None):
        return int
    if kind in (float, float | None):
        return float
    return str


def _between(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be in [{low}, {high}], got {text}")
        return value

    return read


_BOUNDED: Mapping[str, Callable[[str], float]] = {
    **dict.fromkeys(LISTS, _between(int, 1, 2**20)),
    "tp_size": _between(int, 1, 1024),
    "port": _between(int, 0, 65535),
    "stream_interval": _between(int, 1, 2**20),
    "max_body_bytes": _between(int, 1, 2**40),
    "drain_timeout_s": _between(float, 0.0, 86400.0),
}
