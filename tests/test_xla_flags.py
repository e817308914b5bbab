"""The variables that a server sets before jax starts: whose value wins, and that XLA knows them."""

import os
import subprocess
import sys

import pytest

from jaxserve import launch, xla_flags
from jaxserve.xla_flags import MEMORY, serving_variables, set_for_serving, uses_cuda

OURS = "--xla_gpu_enable_command_buffer=+CONDITIONAL,+WHILE,+COLLECTIVES"
HIDING = "--xla_gpu_enable_latency_hiding_scheduler=true"


@pytest.mark.parametrize(
    ("environ", "tp_size", "expected"),
    [
        ({}, 1, {"XLA_FLAGS": OURS, **MEMORY}),
        ({"XLA_FLAGS": ""}, 8, {"XLA_FLAGS": f"{OURS} {HIDING}", **MEMORY}),
        ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, 1, {"XLA_FLAGS": OURS}),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, 1, {"XLA_FLAGS": OURS}),
        (
            {"XLA_FLAGS": "--xla_dump_to=d", "XLA_CLIENT_MEM_FRACTION": ".5"},
            1,
            {"XLA_FLAGS": f"--xla_dump_to=d {OURS}"},
        ),
        (
            {"XLA_FLAGS": "--xla_gpu_enable_command_buffer=", "XLA_CLIENT_MEM_FRACTION": ".5"},
            2,
            {"XLA_FLAGS": f"--xla_gpu_enable_command_buffer= {HIDING}"},
        ),
        (
            {
                "XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false "
                "--xla_gpu_enable_command_buffer=FUSION",
                "XLA_CLIENT_MEM_FRACTION": ".5",
            },
            2,
            {},
        ),
    ],
    ids=str,
)
def test_what_the_user_has_set_wins_flag_by_flag(environ, tp_size, expected) -> None:
    assert serving_variables(environ, tp_size) == expected


def test_a_file_of_flags_is_left_alone_and_said(caplog: pytest.LogCaptureFixture) -> None:
    assert "XLA_FLAGS" not in serving_variables({"XLA_FLAGS": "flags.txt"})
    assert "XLA_FLAGS=flags.txt names a file, which is left as it is" in caplog.text
    assert f"jaxserve would add {OURS}" in caplog.text


@pytest.mark.parametrize(
    ("platforms", "has_plugin", "expected"),
    [("", True, True), ("cuda,cpu", True, True), ("gpu", True, True), ("cpu", True, False),
     ("tpu", True, False), ("", False, False)],
)  # fmt: skip
def test_cuda_is_recognised_without_jax(monkeypatch, platforms, has_plugin, expected) -> None:
    monkeypatch.setattr(xla_flags, "_NVIDIA_DEVICES", ("null",))
    monkeypatch.setattr(xla_flags, "find_spec", lambda name: object() if has_plugin else None)
    assert uses_cuda({"JAX_PLATFORMS": platforms}) is expected


def test_a_machine_without_a_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_flags, "_NVIDIA_DEVICES", ())
    before = dict(os.environ)
    set_for_serving(tp_size=8)
    assert dict(os.environ) == before


def test_a_machine_with_one_gets_them_and_a_log_line(monkeypatch, caplog) -> None:
    for name in (*xla_flags.MEMORY_VARIABLES, "XLA_FLAGS"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(xla_flags, "uses_cuda", lambda environ: True)
    with caplog.at_level("INFO"):
        set_for_serving()
    assert os.environ["XLA_FLAGS"] == OURS
    assert f"environment: XLA_FLAGS={OURS}" in caplog.text


def test_the_server_sets_them_before_it_builds_anything(monkeypatch) -> None:
    calls = []

    async def serve(*_: object) -> int:
        calls.append("serve")
        return 0

    monkeypatch.setattr(launch, "set_for_serving", lambda tp_size: calls.append(tp_size))
    monkeypatch.setattr(launch, "serve", serve)
    assert launch.main(["--tp-size", "2"]) == 0
    assert calls == [2, "serve"]


def start_jax(flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import jax; jax.jit(lambda x: x + 1)(1.0)"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_the_installed_jaxlib_knows_every_flag() -> None:
    flags = serving_variables({}, tp_size=2)["XLA_FLAGS"]
    assert start_jax(flags).returncode == 0
    unknown = start_jax(f"{flags} --xla_gpu_no_such_flag=1")
    assert unknown.returncode != 0, "this test would pass for any flag"
    assert "xla_gpu_no_such_flag" in unknown.stderr


def test_importing_the_library_sets_nothing() -> None:
    code = (
        "import os, jaxserve.llm, jaxserve.launch, jaxserve.xla_flags\n"
        "assert not [name for name in os.environ if name.startswith('XLA_')]"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("XLA_")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)
