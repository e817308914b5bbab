"""Checkpoints in the safetensors format: one file, or shards with an index."""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from jaxserve.errors import WeightLoadError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_REMEDY = "the download is probably incomplete; fetch the file again"


class SafetensorsReader:
    """Tensors of every .safetensors file of a checkpoint folder, memory-mapped.

    Raises:
        WeightLoadError: no such file, a broken or truncated one, a shard of the index that is
            not there, or a tensor stored as something other than a float.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        problems: list[str] = []
        for path in _shards(folder):
            with _open(path) as handle:
                for name in handle.keys():  # noqa: SIM118 - not a dict, it has no __iter__
                    view = handle.get_slice(name)
                    if view.get_dtype() not in _DTYPES:
                        problems.append(f"{name} is stored as {view.get_dtype()}")
                    self._files[name] = path
                    self._shapes[name] = tuple(view.get_shape())
        if problems:
            raise WeightLoadError(
                f"{folder} has tensors that are not floats ({', '.join(problems)}); supported: "
                f"{', '.join(_DTYPES)}. Use the unquantized checkpoint, or a .gguf file"
            )

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See TensorReader."""
        return self._shapes

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """See TensorReader."""
        # A handle of its own for each tensor: opening maps the file and parses a small header,
        # and the map, which keeps every page it touched, goes away with the handle.
        with _open(self._files[name]) as handle:
            tensor: npt.NDArray[np.generic] = handle.get_tensor(name)
        return tensor


def has_safetensors(folder: Path) -> bool:
    """Whether ``folder`` holds weights that SafetensorsReader can look at."""
    return any(folder.glob("*.safetensors")) or (folder / INDEX_FILE).is_file()


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise WeightLoadError(f"{path} cannot be read ({error}); {_REMEDY}") from error


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if not index.is_file():
        single = folder / SINGLE_FILE
        if single.is_file():
            return [single]
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise WeightLoadError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE} (it holds {found}); "
            "pass the folder of a checkpoint in the safetensors format"
        )
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        shards = [folder / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightLoadError(
            f"the list of shards in {index} cannot be read ({error!r}); {_REMEDY}"
        ) from error
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise WeightLoadError(
            f"{folder} lacks shards that its {INDEX_FILE} names: {', '.join(missing)}; "
            "fetch them, or fetch the whole checkpoint again"
        )
    return shards
