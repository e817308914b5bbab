"""What the executor reads off the machine."""

import ctypes
import os
from types import SimpleNamespace

import jax
import pytest

from jaxserve.errors import ConfigError
from jaxserve.executor import device_info, enable_compilation_cache, keep_freed_memory


def test_cpu() -> None:
    info = device_info()
    assert info.platform == "cpu"
    assert info.num_cores >= 1
    assert 2**20 < info.free_bytes < 2**50


@pytest.mark.parametrize(
    ("stats", "free"), [({"bytes_limit": 100, "bytes_in_use": 40}, 60), ({}, None), (None, None)]
)
def test_gpu(
    monkeypatch: pytest.MonkeyPatch, stats: dict[str, int] | None, free: int | None
) -> None:
    gpu = SimpleNamespace(
        platform="gpu",
        id=0,
        device_kind="NVIDIA X",
        compute_capability="9.0",
        memory_stats=lambda: stats,
    )
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    if free is None:
        with pytest.raises(
            ConfigError, match=r"device 0 \(NVIDIA X\) does not report its free memory"
        ):
            device_info()
    else:
        assert (device_info().platform, device_info().free_bytes) == ("cuda", free)
        assert device_info().compute_capability == "9.0"


def test_the_least_free_of_several_gpus_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are used; the others are only counted."""
    gpus = [
        SimpleNamespace(
            platform="gpu",
            id=index,
            device_kind="NVIDIA X",
            compute_capability="9.0",
            memory_stats=lambda free=free: {"bytes_limit": free, "bytes_in_use": 0},
        )
        for index, free in enumerate((60, 40, 20, 0))
    ]
    monkeypatch.setattr(jax, "devices", lambda: gpus)
    assert (device_info(2).free_bytes, device_info(2).num_devices) == (40, 4)
    assert device_info(3).free_bytes == 20
    with pytest.raises(ConfigError, match=r"device 3 \(NVIDIA X\) does not report"):
        device_info(4)


def test_cpu_devices_share_the_memory_of_the_host() -> None:
    one, four = device_info(1), device_info(4)
    assert one.num_devices == four.num_devices == len(jax.devices())
    assert abs(one.free_bytes / 4 - four.free_bytes) < 0.2 * four.free_bytes


def test_compilation_cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    folder = tmp_path / "cache"
    assert enable_compilation_cache(str(folder)) == str(folder)
    assert folder.is_dir()
    assert settings["jax_compilation_cache_dir"] == str(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert enable_compilation_cache(None) == str(tmp_path / "jaxserve" / "compiled")
    assert enable_compilation_cache("") == ""
    assert settings["jax_enable_compilation_cache"] is False


def test_no_compilation_cache_where_none_can_be_written(
    tmp_path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="--compilation-cache-dir .*file/x cannot be used: Not a"):
        enable_compilation_cache(str(file / "x"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert enable_compilation_cache(None) == ""
    assert settings == {"jax_enable_compilation_cache": False}
    assert "every start compiles anew" in caplog.text
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # nothing is forbidden to root
    with pytest.raises(ConfigError, match="Permission denied"):
        enable_compilation_cache(str(tmp_path))


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep_freed_memory() == ("mallopt" in dir_of_libc())
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert keep_freed_memory() is False


def dir_of_libc() -> list[str]:
    libc = ctypes.CDLL(None)
    try:
        return [libc.mallopt.__name__]
    except AttributeError:
        return []
