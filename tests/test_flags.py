"""Flags → configs: every field has one, defaults are the configs' own, mistakes are named."""

from dataclasses import fields

import pytest

from jaxserve.config import EngineConfig, ServerConfig
from jaxserve.flags import ALIASES, CHOICES, HELP, parse_flags

FIELDS = {item.name for config in (EngineConfig, ServerConfig) for item in fields(config)}


def test_no_flags_give_the_defaults() -> None:
    assert parse_flags([]) == (EngineConfig(), ServerConfig())


def test_tables_name_every_field_and_nothing_else() -> None:
    assert HELP.keys() == FIELDS
    assert CHOICES.keys() <= FIELDS
    assert ALIASES.keys() <= FIELDS


def test_values_arrive_with_their_types() -> None:
    engine, server = parse_flags(
        [
            *("--model", "m", "--context-length", "99", "--mem-fraction-static", "0.5"),
            *("--disable-radix-cache", "--chunked-prefill-size", "-1", "--host", "0.0.0.0"),
            *("--port=0", "--drain-timeout-s", "2.5", "--no-enable-metrics"),
            *("--api-compat", "0.3"),
        ]
    )
    assert engine == EngineConfig(
        model_path="m", context_length=99, mem_fraction_static=0.5, disable_radix_cache=True,
        chunked_prefill_size=-1,
    )  # fmt: skip
    assert server == ServerConfig(
        host="0.0.0.0", port=0, drain_timeout_s=2.5, enable_metrics=False, api_compat="0.3"
    )


def test_prefixes_match_as_in_sglang() -> None:
    assert parse_flags(["--max-run", "3"])[0].max_running_requests == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (
            ["--tp-size", "0"],
            "argument --tp-size/--tensor-parallel-size: must be in [1, 1024], got 0",
        ),
        (["--port", "70000"], "argument --port: must be in [0, 65535], got 70000"),
        (["--port", "http"], "argument --port: 'http' is not a number"),
        (["--drain-timeout-s", "nan"], "argument --drain-timeout-s: must be in [0.0, 86400.0]"),
        (["--page-size", "x"], "argument --page-size: invalid int value: 'x'"),
        (["--dtype", "int3"], "argument --dtype: invalid choice: 'int3'"),
        (["--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
    ],
)
def test_mistakes_are_named(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_flags(argv)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
