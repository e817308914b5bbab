"""What the user may type as --model-path, and what is said when it is wrong."""

import json
import re
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from make_tiny_checkpoint import make_tiny_llama

import jaxserve.weights.source as source_module
from jaxserve.errors import ConfigError, ModelNotFoundError, WeightLoadError
from jaxserve.weights import resolve_source


def test_no_path_is_the_demo_model(demo_model):
    source = resolve_source(None)
    assert (source.path, source.format) == (demo_model, "gguf")
    assert source.name == "SmolLM2-135M-Instruct"
    assert source.hf_config["vocab_size"] == 49152
    assert resolve_source(None, load_format="dummy").format == "dummy"


def test_a_folder(tmp_path):
    folder = make_tiny_llama(tmp_path)
    source = resolve_source(str(folder))
    assert (source.path, source.format, source.name) == (folder, "safetensors", str(folder))
    assert source.hf_config == json.loads((folder / "config.json").read_text())


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_tiny_llama(tmp_path / "model")
    assert resolve_source("~/model").path == tmp_path / "model"


def test_a_gguf_file_and_a_folder_that_holds_one(tmp_path, write_gguf):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    for text, load_format in ((path, "auto"), (path, "gguf"), (tmp_path, "auto")):
        source = resolve_source(str(text), load_format=load_format)
        assert (source.path, source.format) == (path, "gguf")


def test_gguf_beside_safetensors_is_taken_only_when_asked_for(tmp_path, write_gguf):
    make_tiny_llama(tmp_path)
    write_gguf(tmp_path / "tiny.gguf")
    assert resolve_source(str(tmp_path)).format == "safetensors"
    assert resolve_source(str(tmp_path), load_format="gguf").path.name == "tiny.gguf"


@pytest.mark.parametrize(
    ("own", "generation", "wanted"),
    [
        (128001, [128001, 128008, 128009], [128001, 128008, 128009]),
        ([1, 2], 3, [1, 2, 3]),
        (None, 5, [5]),
        (7, None, 7),
    ],
)
def test_generation_config_adds_end_ids(tmp_path, own, generation, wanted):
    folder = make_tiny_llama(tmp_path, eos_token_id=own)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert resolve_source(str(folder)).hf_config["eos_token_id"] == wanted


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["/no/such/folder", "./absent", "a/b/c", "absent.gguf", "a b"])
def test_a_path_that_is_not_there(text):
    with pytest.raises(ModelNotFoundError, match="there is no such file or folder. Give a check"):
        resolve_source(text)


def test_an_unknown_load_format(tmp_path):
    with pytest.raises(ConfigError, match="--load-format must be one of auto, .*; got 'orbax'"):
        resolve_source(str(tmp_path), load_format="orbax")


def test_a_file_that_is_not_gguf(tmp_path):
    folder = make_tiny_llama(tmp_path)
    with pytest.raises(ConfigError, match="is a file that is not .gguf; for safetensors give the"):
        resolve_source(str(folder / "model.safetensors"))


def test_a_gguf_file_read_as_safetensors(tmp_path, write_gguf):
    write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ConfigError, match="--load-format safetensors does not go with"):
        resolve_source(str(tmp_path / "tiny.gguf"), load_format="safetensors")


def test_a_folder_of_many_gguf_files_or_none(tmp_path, write_gguf):
    with pytest.raises(ConfigError, match=re.escape("as --model-path (here: none)")):
        resolve_source(str(tmp_path), load_format="gguf")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"give one \.gguf file .*here: a\.gguf, b\.gguf"):
        resolve_source(str(tmp_path))


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json \(it holds nothing\); give the"):
        resolve_source(str(tmp_path))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable JSON .*fetch it again"),
        ("[1]", "holds list, a JSON object is needed"),
    ],
)
def test_broken_json(tmp_path, file, text, message):
    (make_tiny_llama(tmp_path) / file).write_text(text)
    with pytest.raises(ConfigError, match=f"{file} {message}"):
        resolve_source(str(tmp_path))


def test_a_checkpoint_in_another_format(tmp_path):
    folder = make_tiny_llama(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightLoadError, match="no .safetensors file .*pytorch_model.bin.*convert"):
        resolve_source(str(folder))
    assert resolve_source(str(folder), load_format="dummy").format == "dummy"


# --- the hub ----------------------------------------------------------------------------------


class FakeResponse:
    """As much of an HTTP response as the hub's errors look at."""

    headers: dict[str, str] = {}
    request = None
    status_code = 404


def refusing(error: Exception):
    def download(*args, **kwargs):
        raise error

    return download


def test_a_hub_id_is_downloaded_with_the_users_choices(tmp_path, monkeypatch):
    folder = make_tiny_llama(tmp_path)
    calls = []

    def download(hub_id: str, **kwargs: object) -> str:
        calls.append((hub_id, kwargs))
        return str(folder)

    monkeypatch.setattr(source_module, "snapshot_download", download)
    source = resolve_source("org/name", revision="v2", download_dir="there")
    assert (source.path, source.format, source.name) == (folder, "safetensors", "org/name")
    ((hub_id, options),) = calls
    assert (hub_id, options["revision"], options["cache_dir"]) == ("org/name", "v2", "there")
    assert "*.safetensors" in options["allow_patterns"]
    resolve_source("org/name", load_format="dummy")
    assert "*.safetensors" not in calls[1][1]["allow_patterns"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError("404", response=FakeResponse()), "check its spelling"),
        (RevisionNotFoundError("404", response=FakeResponse()), "of this name at revision v9"),
        (GatedRepoError("403", response=FakeResponse()), "ask for access on its page"),
        (HFValidationError("--"), "the hub does not give out a model"),
        (HfHubHTTPError("500 broken", response=FakeResponse()), "500 broken.*Check the connection"),
        (ConnectionError("reset"), "the hub cannot be reached for it"),
    ],
)
def test_the_hub_refuses(monkeypatch, error, message):
    monkeypatch.setattr(source_module, "snapshot_download", refusing(error))
    with pytest.raises(ModelNotFoundError, match=f"--model-path org/name.*{message}"):
        resolve_source("org/name", revision="v9")


def test_a_hub_out_of_reach_fails_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    start_s = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="cannot be reached for it .*leave --model-path"):
        resolve_source("no-such-org/no-such-model", download_dir=str(tmp_path))
    assert time.monotonic() - start_s < 5


def test_paths_are_never_asked_of_the_hub(monkeypatch):
    monkeypatch.setattr(source_module, "snapshot_download", refusing(AssertionError("asked")))
    for text in ("/absent", "../absent", "~/absent", "absent.safetensors", str(Path("a/b/c/d"))):
        with pytest.raises(ModelNotFoundError):
            resolve_source(text)
