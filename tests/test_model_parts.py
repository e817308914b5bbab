"""From a config to an LLM's parts, with a fake where the engine would be built."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine

from jaxserve import model_parts
from jaxserve.config import EngineConfig
from jaxserve.errors import ConfigError, ModelNotFoundError
from jaxserve.metrics import Metrics
from jaxserve.model_config import ModelConfig
from jaxserve.model_parts import ModelParts, load_model
from jaxserve.weights import ModelSource


class BuiltEngine(FakeEngine):
    """What ``build_engine`` returns: also tells what was resolved."""

    def __init__(self, config: EngineConfig, model_config: ModelConfig) -> None:
        super().__init__(lambda request: [], model_config.eos_token_ids)
        self.config = replace(config, context_length=100)
        self.max_total_num_tokens = 160


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModelParts]:
    def build(
        config: EngineConfig, source: ModelSource, model_config: ModelConfig, metrics: Metrics
    ) -> BuiltEngine:
        return BuiltEngine(config, model_config)

    monkeypatch.setattr(model_parts, "build_engine", build)

    def load(
        path: Path,
        served_model_name: str | None = None,
        parsers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> ModelParts:
        config = EngineConfig(model_path=str(path), load_format="dummy", **fields)
        return load_model(config, served_model_name, **(parsers or {}))

    return load


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def test_info(load: Callable[..., ModelParts], checkpoint: Path) -> None:
    parts = load(checkpoint, "name", weight_version="v2")
    info = parts.info
    assert info.model_path == info.tokenizer_path == str(checkpoint)
    assert (info.context_len, info.max_total_num_tokens, info.max_seq_len) == (100, 160, 100)
    assert info.max_req_input_len == 99
    assert (info.model_type, info.architectures) == ("llama", ("LlamaForCausalLM",))
    assert (info.load_format, info.weight_version) == ("dummy", "v2")
    assert info.chat_template is not None and info.is_generation
    assert info.served_model_name == "name"
    assert info.generation_defaults == {}
    assert parts.config.context_length == 100


def test_ends_are_those_of_config_and_tokenizer(
    load: Callable[..., ModelParts], checkpoint: Path
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"eos_token_id": [5, 256]}))
    engine = load(checkpoint).engine
    assert isinstance(engine, BuiltEngine)
    assert engine.eos == (5, 256)


def test_generation_defaults_are_the_sampling_fields(
    load: Callable[..., ModelParts], checkpoint: Path
) -> None:
    file = checkpoint / "generation_config.json"
    file.write_text('{"temperature": 0.6, "top_k": 20, "top_p": null, "do_sample": true}')
    assert load(checkpoint).info.generation_defaults == {"temperature": 0.6, "top_k": 20}
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json is not readable JSON"):
        load(checkpoint)


def test_tokenizer_path(
    load: Callable[..., ModelParts], checkpoint: Path, demo_model: Path
) -> None:
    parts = load(checkpoint, tokenizer_path=str(demo_model))
    assert parts.tokenizer.vocab_size == 49152
    assert parts.info.tokenizer_path == str(demo_model)
    with pytest.raises(ModelNotFoundError, match="--tokenizer-path ./nowhere cannot be found"):
        load(checkpoint, tokenizer_path="./nowhere")


# --- parsers and grammars ---


def test_parsers_are_named_or_told_from_the_template(
    load: Callable[..., ModelParts], checkpoint: Path, tmp_path: Path
) -> None:
    info = load(checkpoint).info
    assert (info.reasoning_parser, info.tool_call_parser) == (None, None)
    info = load(checkpoint, None, {"reasoning_parser": "qwen3", "tool_call_parser": "hermes"}).info
    assert (info.reasoning_parser, info.tool_call_parser) == ("qwen3", "hermes")
    auto = {"reasoning_parser": "auto", "tool_call_parser": "auto"}
    info = load(checkpoint, None, auto).info  # its template knows of neither
    assert (info.reasoning_parser, info.tool_call_parser) == (None, None)
    template = tmp_path / "thinks.jinja"
    template.write_text("{% if enable_thinking %}<think>{% endif %}</think>{{ messages }}")
    info = load(checkpoint, None, auto, chat_template=str(template)).info
    assert info.reasoning_parser is not None
    assert info.chat_template == template.read_text()


@pytest.mark.parametrize("name", ["reasoning_parser", "tool_call_parser"])
def test_unknown_parsers_are_refused(
    load: Callable[..., ModelParts], checkpoint: Path, name: str
) -> None:
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"{flag} must be auto or one of .*; got 'nope'"):
        load(checkpoint, None, {name: "nope"})


def test_grammars_need_a_backend(load: Callable[..., ModelParts], checkpoint: Path) -> None:
    parts = load(checkpoint)
    assert parts.grammars is not None
    parts.grammars.close()
    assert load(checkpoint, grammar_backend="none").grammars is None
