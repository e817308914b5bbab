"""What a GPU machine lacks and where its toolkit lies."""

import os
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from gpu import wheels
from gpu.environment import toolkit_root, toolkit_variables, worker_environment
from gpu.settings import WORKERS, Settings


def make_wheel(folder: Path, name: str, release: str) -> Path:
    """The smallest wheel that pip installs."""
    path = folder / f"{name}-{release}-py3-none-any.whl"
    info = f"{name}-{release}.dist-info"
    files = {
        f"{name}.py": f"release = {release!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(file, text)
    return path


def test_only_what_is_missing_or_older_is_installed(tmp_path: Path) -> None:
    make_wheel(tmp_path, "jaxserve_no_such_package", "1.2")
    make_wheel(tmp_path, "numpy", "0.1")
    site = tmp_path / "site"
    assert wheels.install(tmp_path, site) == ["jaxserve_no_such_package"]
    assert (site / "jaxserve_no_such_package.py").is_file() and not (site / "numpy.py").exists()


def test_a_newer_wheel_than_what_is_installed_is_taken(tmp_path: Path) -> None:
    make_wheel(tmp_path, "numpy", "99.0")
    assert wheels.install(tmp_path, tmp_path / "site") == ["numpy"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wheels.missing() == []

    def without_gguf(name: str) -> str:
        if name in ("gguf", "orjson"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(wheels.importlib.metadata, "version", without_gguf)
    assert wheels.missing() == ["gguf", "orjson"]
    assert wheels.missing(["gguf"]) == ["orjson"]


def make_toolkit(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    tool = folder / "bin" / "ptxas"
    tool.touch()
    tool.chmod(0o755)
    return folder


def test_a_toolkit_is_found_where_it_is_named_or_on_the_path(tmp_path: Path) -> None:
    named, other = make_toolkit(tmp_path / "named"), make_toolkit(tmp_path / "other")
    path = {"PATH": str(other / "bin")}
    assert toolkit_root(path | {"CUDA_HOME": str(named)}) == named
    found = toolkit_variables({"PATH": "", "CUDA_HOME": str(named)})
    assert found["CUDA_ROOT"] == str(named) and str(named / "bin") in found["PATH"]
    assert "PATH" not in toolkit_variables(path | {"CUDA_ROOT": str(named)})


def test_a_worker_sees_the_tree_no_network_and_only_the_device_it_is_for(tmp_path: Path) -> None:
    settings = Settings(is_dry_run=True, scratch=str(tmp_path))
    env = worker_environment(settings, WORKERS[0], tmp_path / "site", {"PYTHONPATH": "before"})
    folders = env["PYTHONPATH"].split(os.pathsep)
    assert folders[-1] == "before" and str(tmp_path / "site") in folders
    assert env["JAX_PLATFORMS"] == "cpu" and env["HF_HUB_OFFLINE"] == "1"
    real = worker_environment(Settings(scratch=str(tmp_path)), WORKERS[0], None, {"PATH": ""})
    assert real["JAX_PLATFORMS"] == "cuda,cpu" and "XLA_FLAGS" not in real  # facts come first
    served = worker_environment(Settings(scratch=str(tmp_path)), WORKERS[-1], None, {"PATH": ""})
    assert "command_buffer" in served["XLA_FLAGS"]
