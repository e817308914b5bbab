"""From what the user typed to a checkpoint on this machine and its config."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HFValidationError,
    HTTPError,  # of whichever HTTP library it uses: the base of all its network failures
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from jaxserve.config import LOAD_FORMATS
from jaxserve.errors import ConfigError, ModelNotFoundError, WeightLoadError
from jaxserve.gguf_header import read_gguf_header
from jaxserve.weights.demo import DEMO_NAME, demo_model_path
from jaxserve.weights.gguf import hf_config_from_header
from jaxserve.weights.safetensors import has_safetensors

_CONFIG_FILE = "config.json"
_GENERATION_CONFIG_FILE = "generation_config.json"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_HUB_FILES_DUMMY = ["*.json", "*.jinja", "*.model", "*.txt"]
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A checkpoint that is on this machine.

    Attributes:
        path: a checkpoint folder, or a .gguf file; the tokenizer lies there too.
        format: how the weights are read: "safetensors", "gguf" or "dummy".
        hf_config: config.json (from a .gguf file: its header written as one), with the end ids
            of generation_config.json merged in.
        name: what the user typed, or the demo model's name.
    """

    path: Path
    format: str
    hf_config: Mapping[str, object]
    name: str


def resolve_source(
    model_path: str | None,
    *,
    load_format: str = "auto",
    revision: str | None = None,
    download_dir: str | None = None,
) -> ModelSource:
    """Find a checkpoint; download it first if it is the demo model or a hub id.

    Args:
        model_path: a folder, a .gguf file or a hub id; None for the demo model.
        load_format: "auto" takes what is there; "dummy" needs only a config.
        revision: branch, tag or commit of a hub id.
        download_dir: where hub ids are kept; the hub's own cache folder if None.

    Raises:
        ModelNotFoundError: no such path, or the hub does not know it or is out of reach.
        WeightLoadError: there are no weights of the wanted format, or a broken header.
        ConfigError: no readable config.json, an unsupported .gguf architecture, or a
            ``load_format`` that does not go with the path.
    """
    if load_format not in LOAD_FORMATS:
        raise ConfigError(
            f"--load-format must be one of {', '.join(LOAD_FORMATS)}; got {load_format!r}"
        )
    if model_path is None:
        return _gguf_source(demo_model_path(), load_format, DEMO_NAME)
    path = Path(model_path).expanduser()
    if path.is_file():
        return _file_source(path, load_format, model_path)
    if path.is_dir():
        return _folder_source(path, load_format, model_path)
    if not _looks_like_hub_id(model_path):
        raise ModelNotFoundError(
            f"--model-path {model_path}: there is no such file or folder. Give a checkpoint "
            "folder, a .gguf file, a hub id such as org/name, or leave it away for the demo model"
        )
    folder = _download(model_path, load_format, revision, download_dir)
    return _folder_source(folder, load_format, model_path)


def _looks_like_hub_id(text: str) -> bool:
    is_path = text.startswith((".", "/", "~")) or text.endswith((".gguf", ".safetensors"))
    return not is_path and _HUB_ID.fullmatch(text) is not None


def _file_source(path: Path, load_format: str, name: str) -> ModelSource:
    if path.suffix != ".gguf":
        raise ConfigError(
            f"--model-path {name} is a file that is not .gguf; for safetensors give the folder "
            f"that holds it and its {_CONFIG_FILE}"
        )
    return _gguf_source(path, load_format, name)


def _gguf_source(path: Path, load_format: str, name: str) -> ModelSource:
    if load_format == "safetensors":
        raise ConfigError(
            f"--load-format safetensors does not go with {name}, a .gguf file; "
            "leave it away, or use gguf or dummy"
        )
    header = read_gguf_header(path)
    kind = "dummy" if load_format == "dummy" else "gguf"
    return ModelSource(path, kind, hf_config_from_header(path, header), name)


def _folder_source(folder: Path, load_format: str, name: str) -> ModelSource:
    gguf_files = sorted(folder.glob("*.gguf"))
    if load_format == "gguf" or (gguf_files and not (folder / _CONFIG_FILE).is_file()):
        if len(gguf_files) != 1:
            found = ", ".join(path.name for path in gguf_files) or "none"
            raise ConfigError(f"{folder}: give one .gguf file as --model-path (here: {found})")
        return _gguf_source(gguf_files[0], load_format, name)
    hf_config = _hf_config(folder)
    if load_format == "dummy":
        return ModelSource(folder, "dummy", hf_config, name)
    if not has_safetensors(folder):
        found = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise WeightLoadError(
            f"{folder} holds no .safetensors file (it holds {found}); convert the checkpoint to "
            "safetensors (`save_pretrained` of transformers writes it), or use --load-format dummy"
        )
    return ModelSource(folder, "safetensors", hf_config, name)


def _hf_config(folder: Path) -> dict[str, object]:
    path = folder / _CONFIG_FILE
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise ConfigError(
            f"{folder} has no {_CONFIG_FILE} (it holds {found}); give the folder of a checkpoint"
        )
    config = _read_object(path)
    generation_path = folder / _GENERATION_CONFIG_FILE
    if generation_path.is_file():
        # Chat models end a turn with an id that only generation_config.json lists.
        more = _id_list(_read_object(generation_path).get("eos_token_id"))
        own = _id_list(config.get("eos_token_id"))
        if more:
            config["eos_token_id"] = list(dict.fromkeys([*own, *more]))
    return config


def _id_list(value: object) -> list[object]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _read_object(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not readable JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {type(value).__name__}, a JSON object is needed")
    return value


def _download(
    hub_id: str, load_format: str, revision: str | None, download_dir: str | None
) -> Path:
    at = f" at revision {revision}" if revision else ""
    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            cache_dir=download_dir,
            allow_patterns=_HUB_FILES_DUMMY if load_format == "dummy" else _HUB_FILES,
            etag_timeout=_HUB_TIMEOUT_S,
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        remedy = (
            "ask for access on its page, then log in with `hf auth login`"
            if isinstance(error, GatedRepoError)
            else "check its spelling; if it is private, log in with `hf auth login`"
        )
        raise ModelNotFoundError(
            f"--model-path {hub_id}: no such folder here, and the hub does not give out a model "
            f"of this name{at}; {remedy}"
        ) from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        raise ModelNotFoundError(
            f"--model-path {hub_id}: no such folder here, and the hub cannot be reached for it{at} "
            f"({str(error).splitlines()[0]}). Check the connection, give a local checkpoint folder "
            "or .gguf file, or leave --model-path away for the demo model"
        ) from error
    return Path(folder)
