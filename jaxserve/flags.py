"""The command line: one flag per field of ``EngineConfig`` and ``ServerConfig``, SGLang's names."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from jaxserve import config_file, foreign_flags
from jaxserve.config import SECRETS, EngineConfig, ServerConfig
from jaxserve.errors import ConfigError
from jaxserve.flag_tables import (
    ALIASES,
    BOUNDS,
    CHOICES,
    DEFAULTS,
    ENVIRONMENT,
    HELP,
    LISTS,
    PADDINGS,
    RULES,
)
from jaxserve.flag_values import (
    between,
    bucket_bounds,
    json_object,
    labels,
    sampling_params,
)

logger = logging.getLogger("jaxserve.flags")


def parse_flags(
    argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> tuple[EngineConfig, ServerConfig]:
    """Configs of a command line; a mistake in it exits with 2 and a line that names the flag."""
    parser = make_parser()
    try:
        arguments = config_file.expand(sys.argv[1:] if argv is None else argv)
        parser.set_defaults(**_from_environment(environment))
        known, left = parser.parse_known_args(arguments)
        values = vars(known)
        for name in RULES:
            values[name] = values[name] and bucket_bounds(values[name])
    except (ConfigError, argparse.ArgumentTypeError) as error:
        parser.error(str(error))
    warnings, errors, unknown = foreign_flags.judge(left)
    for warning in warnings:
        logger.warning("%s", warning)
    if unknown:
        errors.append(f"unrecognized arguments: {' '.join(unknown)}")
    errors += _conflicts(values)
    if errors:
        parser.error("; ".join(errors))
    for name in LISTS:
        values[name] = None if values[name] is None else tuple(values[name])
    return (
        EngineConfig(**{item.name: values[item.name] for item in fields(EngineConfig)}),
        ServerConfig(**{item.name: values[item.name] for item in fields(ServerConfig)}),
    )


def _conflicts(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with flags that would each be right alone."""
    if not values["enable_strict_thinking"]:
        return []
    wrong = []
    if values["reasoning_parser"] is None:
        wrong.append(
            "--enable-strict-thinking must know how the model marks its reasoning: give "
            "--reasoning-parser a name, or auto"
        )
    if values["grammar_backend"] == "none":
        wrong.append("--enable-strict-thinking masks tokens: leave --grammar-backend none away")
    return wrong


def hide_secrets(argv: Sequence[str]) -> list[str]:
    """``argv`` with ``***`` in place of every key and password, abbreviated flags included."""
    shown: list[str] = []
    hides_next = False
    for argument in argv:
        flag, has_value, _ = argument.partition("=")
        name = flag[2:].replace("-", "_")
        is_secret = flag.startswith("--") and any(secret.startswith(name) for secret in SECRETS)
        if hides_next:
            shown.append("***")
        else:
            shown.append(f"{flag}=***" if is_secret and has_value else argument)
        hides_next = is_secret and not has_value and not hides_next
    return shown


def make_parser() -> argparse.ArgumentParser:
    """The parser of every flag there is."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxserve.launch",
        description="Serve a language model over SGLang's and OpenAI's HTTP APIs.",
    )
    parser.add_argument(
        config_file.FLAG, metavar="FILE", help="YAML file of flags; the command line goes before it"
    )
    for title, config in (("engine", EngineConfig), ("server", ServerConfig)):
        group = parser.add_argument_group(title)
        for item in fields(config):
            _add_flag(group, item)
    return parser


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    """Defaults that the environment sets.  A variable that is empty is not set."""
    found: dict[str, object] = {}
    for name, variable in ENVIRONMENT.items():
        text = environment.get(variable, "")
        if not text:
            continue
        try:
            found[name] = _READERS.get(name, str)(text)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise ConfigError(f"{variable}={text}: {error}") from None
    return found


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
        if item.name in LISTS or item.name in RULES:
            options["nargs"], options["metavar"] = "+", "N" if item.name in LISTS else "RULE"
        options["type"] = _reader(item)
        shown = DEFAULTS.get(item.name, item.default)
        if shown not in (None, ""):
            options["help"] += f" (default: {shown})"
    if item.name in CHOICES:
        options["choices"] = CHOICES[item.name]
        del options["metavar"]
    group.add_argument(*names, **options)


def _reader(item: Field[Any]) -> Callable[[str], Any]:
    if item.name in _READERS:
        return _READERS[item.name]
    kind = item.type
    if kind in (int, int | None):
        return int
    if kind in (float, float | None):
        return float
    return str


def _time_limit(text: str) -> float | None:
    """Seconds; what is not positive is no limit, as in SGLang's variables."""
    seconds = between(float, -1.0, 86400.0)(text)
    return seconds if seconds > 0 else None


def _truth(text: str) -> bool:
    return text.lower() in {"1", "true", "yes", "y", "on"}


_READERS: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(PADDINGS, between(int, 1, 2**20)),
    **dict.fromkeys(BOUNDS, between(float, 0.0, 1e9)),
    "extra_metric_labels": labels,
    "default_chat_template_kwargs": json_object,
    "preferred_sampling_params": sampling_params,
    "tp_size": between(int, 1, 1024),
    "port": between(int, 0, 65535),
    "stream_interval": between(int, 1, 2**20),
    "max_body_bytes": between(int, 1, 2**40),
    "drain_timeout_s": between(float, 0.0, 86400.0),
    "health_check_timeout_s": between(float, 0.001, 86400.0),
    "grammar_timeout_s": between(float, 0.001, 86400.0),
    "waiting_timeout_s": _time_limit,
    "running_timeout_s": _time_limit,
    "disable_openapi_doc": _truth,
    "log_level": str.lower,
    "log_level_http": str.lower,
}
