"""Flags → configs: every field has one, defaults are the configs' own, mistakes are named."""

from dataclasses import fields
from pathlib import Path

import pytest

from jaxserve import foreign_flags
from jaxserve.config import EngineConfig, ServerConfig
from jaxserve.flag_tables import ALIASES, CHOICES, DEFAULTS, GROUPS, HELP
from jaxserve.flags import hide_secrets, parse_flags

FIELDS = {item.name for config in (EngineConfig, ServerConfig) for item in fields(config)}


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command line that cannot be taken is told."""
    with pytest.raises(SystemExit) as exit_info:
        parse_flags(argv)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_no_flags_give_the_defaults() -> None:
    assert parse_flags([]) == (EngineConfig(), ServerConfig())


def test_tables_name_every_field_and_nothing_else() -> None:
    assert HELP.keys() == FIELDS
    assert CHOICES.keys() <= FIELDS
    assert ALIASES.keys() <= FIELDS
    assert DEFAULTS.keys() <= FIELDS
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(FIELDS)


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


def test_log_levels_come_in_any_case() -> None:
    server = parse_flags(["--log-level", "WARNING", "--log-level-http", "Error"])[1]
    assert (server.log_level, server.log_level_http) == ("warning", "error")


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
        (
            ["--enable-strict-thinking"],
            "--enable-strict-thinking must know how the model marks its reasoning: give "
            "--reasoning-parser a name, or auto",
        ),
        (
            [
                *("--enable-strict-thinking", "--reasoning-parser", "auto"),
                *("--grammar-backend", "none"),
            ],
            "--enable-strict-thinking masks tokens: leave --grammar-backend none away",
        ),
    ],
)
def test_mistakes_are_named(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(argv, capsys)


def test_lists_and_rules() -> None:
    engine, _ = parse_flags(
        [
            *("--bucket-time-to-first-token", "0.1", "2", "--extra-metric-labels", '{"a": "b"}'),
            *("--prompt-tokens-buckets", "tse", "100", "2", "4"),
            *("--generation-tokens-buckets", "custom", "5", "1"),
        ]
    )
    assert engine.bucket_time_to_first_token == (0.1, 2.0)
    assert engine.extra_metric_labels == {"a": "b"}
    assert engine.prompt_tokens_buckets == (96.0, 98.0, 100.0, 102.0, 104.0)
    assert engine.generation_tokens_buckets == (1.0, 5.0)
    assert parse_flags(["--prompt-tokens-buckets", "default"]) == (EngineConfig(), ServerConfig())


def test_the_environment_sets_defaults() -> None:
    given = {"SGLANG_HEALTH_CHECK_TIMEOUT": "5", "DISABLE_OPENAPI_DOC": "true"}
    server = parse_flags([], given)[1]
    assert (server.health_check_timeout_s, server.disable_openapi_doc) == (5.0, True)
    assert parse_flags(["--health-check-timeout-s", "7"], given)[1].health_check_timeout_s == 7.0


def test_a_file_of_flags(tmp_path: Path) -> None:
    path = tmp_path / "flags.yaml"
    path.write_text(
        "model-path: m\nport: 1\ndisable_radix_cache: true\nlog-requests: false\n"
        "precompile-bs-paddings: [1, 2]\nextra-metric-labels: {a: b}\napi-key: null\n"
    )
    for argv in (["--config", str(path), "--port", "2"], ["--port=2", f"--config={path}"]):
        engine, server = parse_flags(argv)
        assert engine == EngineConfig(
            model_path="m", disable_radix_cache=True, precompile_bs_paddings=(1, 2),
            extra_metric_labels={"a": "b"},
        )  # fmt: skip
        assert server == ServerConfig(port=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("a: [", "is not YAML: "),
        ("- a", "must be lines such as `port: 30000`"),
        ("no-such-flag: 3", "unrecognized arguments: --no-such-flag 3"),
        ("dp-size: 2", "--dp-size is not supported: one process on one host serves"),
    ],
)
def test_a_wrong_file_of_flags(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "flags.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit):
        parse_flags(["--config", str(path)])
    assert message in capsys.readouterr().err


# --- SGLang's other flags ---


def test_flags_that_change_nothing_are_taken_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    argv = ["--trust-remote-code", "--cuda-graph-max-bs", "8", "--tp", "1", "--disable-cuda-graph"]
    assert parse_flags(argv) == (EngineConfig(), ServerConfig())
    assert "--trust-remote-code changes nothing here: no code of a checkpoint" in caplog.text
    assert "--disable-cuda-graph changes nothing here" in caplog.text


def test_refused_flags_may_ask_for_nothing() -> None:
    argv = ["--dp", "1", "--nnodes=1", "--kv-cache-dtype", "auto", "--disaggregation-mode", "null"]
    assert parse_flags([*argv, "--port", "9"])[1] == ServerConfig(port=9)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dp", "2"], "--dp-size is not supported: one process"),
        (["--dp-size=2", "--port", "3"], "--dp-size is not supported"),
        (["--speculative-algorithm", "EAGLE"], "--speculative-algorithm is not supported: there"),
        (["--enable-lora"], "--enable-lora is not supported: there are no LoRA adapters"),
        (["--lora-paths", "a=b", "c=d"], "--lora-paths is not supported"),
        (["--quantization", "fp8"], "--quantization is not supported: weights are served"),
        (["--kv-cache-dtype", "fp8_e5m2"], "--kv-cache-dtype is not supported"),
        (["--disaggregation-mode", "prefill"], "--disaggregation-mode is not supported"),
        (["--is-embedding"], "--is-embedding is not supported: it serves models that generate"),
        (["--enable-lora", "--what"], "unrecognized arguments: --what"),
        (["model"], "unrecognized arguments: model"),
        (["--config"], "--config needs a file: --config flags.yaml"),
        (["--extra-metric-labels", "[1]"], "must be a JSON object of strings"),
        (["--preferred-sampling-params", "[1]"], "must be a JSON object, got [1]"),
        (["--preferred-sampling-params", '{"top_p": 2}'], "top_p must be in (0, 1], got 2.0."),
        (["--prompt-tokens-buckets", "tse", "1"], "must be default | tse MIDDLE BASE COUNT"),
    ],
)
def test_flags_of_what_is_not_built_are_refused_by_name(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(argv, capsys)


def test_no_flag_of_ours_is_called_foreign() -> None:
    ours = {name.replace("_", "-") for name in FIELDS}
    tables = [*foreign_flags.NO_EFFECT.values(), *foreign_flags.REFUSED.values()]
    foreign = {item.partition("=")[0] for names in tables for item in names}
    assert not ours & foreign


def test_no_key_is_shown() -> None:
    argv = ["x", "--api-key", "k", "--admin=k", "--ssl-keyfile-pass", "k", "--ssl-keyfile", "f"]
    assert hide_secrets(argv) == [
        "x", "--api-key", "***", "--admin=***", "--ssl-keyfile-pass", "***", "--ssl-keyfile", "***",
    ]  # fmt: skip
    assert hide_secrets(["x", "--port", "1", "--host=h"]) == ["x", "--port", "1", "--host=h"]
