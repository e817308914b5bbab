"""Packages that a GPU machine without a network may lack: fetched before, put on the path there.

``fetch`` runs where there is a network, ``install`` on the GPU machine.  No environment is made
there: its python3 is used as it is, with the carried packages in a folder of their own.
"""

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = ".gpu-wheels"
PYTHON = "3.12"
# With what they need: its versions are tied to each other.
WITH_NEEDS = ("pydantic",)
# Without: numpy, requests, pyyaml and tqdm are on such a machine.
ALONE = ("gguf", "orjson", "prometheus-client", "filelock", "psutil")
TAGS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
        "manylinux_2_12_x86_64", "manylinux1_x86_64")  # fmt: skip
NEEDED = (
    "jax", "flax", "numpy", "ml_dtypes", "transformers", "tokenizers", "jinja2", "safetensors",
    "gguf", "huggingface_hub", "aiohttp", "pydantic", "prometheus_client", "orjson", "filelock",
    "psutil", "tqdm",
)  # fmt: skip
WHEEL_NAME = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)-.*\.whl")


def fetch(folder: Path) -> list[Path]:
    """Download the wheels for the GPU machine's Python and platform.

    Raises:
        subprocess.CalledProcessError: pip could not; it has said why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", "utf-8")
    for old in folder.glob("*.whl"):  # two versions of a package would stop the installation
        old.unlink()
    common = [
        sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:",
        "--python-version", PYTHON, "--implementation", "cp", "--dest", str(folder),
    ]  # fmt: skip
    common += [argument for tag in TAGS for argument in ("--platform", tag)]
    subprocess.run([*common, *WITH_NEEDS], check=True)
    subprocess.run([*common, "--no-deps", *ALONE], check=True)
    return sorted(folder.glob("*.whl"))


def install(folder: Path, site: Path) -> list[str]:
    """Unpack into ``site`` what this Python lacks or has older; the names of what was.

    Raises:
        subprocess.CalledProcessError: pip could not; it has said why.
    """
    wanted = [wheel for wheel in sorted(folder.glob("*.whl")) if _is_newer(wheel)]
    if wanted:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
                   "--no-compile", "--no-cache-dir", "--target", str(site)]  # fmt: skip
        subprocess.run([*command, *map(str, wanted)], check=True)
    return [wheel.name.partition("-")[0] for wheel in wanted]


def missing(carried: Sequence[str] = ()) -> list[str]:
    """Names of packages that jaxserve needs and that are neither installed nor carried."""
    here = {name.lower() for name in carried}
    return [name for name in NEEDED if name not in here and _installed(name) is None]


def _is_newer(wheel: Path) -> bool:
    match = WHEEL_NAME.fullmatch(wheel.name)
    if match is None:
        return False
    installed = _installed(match["name"])
    return installed is None or _release(match["version"]) > _release(installed)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
