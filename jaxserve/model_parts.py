"""From an ``EngineConfig`` to everything that an ``LLM`` is made of."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from jaxserve.config import EngineConfig
from jaxserve.engine import build_engine
from jaxserve.errors import ConfigError, ModelNotFoundError
from jaxserve.metrics import EngineStats, Metrics
from jaxserve.model_config import ModelConfig
from jaxserve.request import Request, TokenOutput
from jaxserve.text import Tokenizer, load_tokenizer
from jaxserve.weights import ModelSource, resolve_source

_GENERATION_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class TokenEngine(Protocol):
    """What an ``LLM`` asks of its engine; ``jaxserve.engine.Engine`` is one."""

    @property
    def is_alive(self) -> bool: ...

    def submit(self, request: Request, deliver: Callable[[TokenOutput], None]) -> None: ...

    def abort(self, rid: str) -> None: ...

    def flush_cache(self) -> Future[bool]: ...

    def stats(self) -> EngineStats: ...

    def shutdown(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is known of the model being served.  Lengths in tokens."""

    model_path: str  # as the user named it
    tokenizer_path: str
    context_len: int
    max_total_num_tokens: int  # capacity of the KV pool
    vocab_size: int  # of the model; its tokenizer may have fewer
    model_type: str
    architectures: tuple[str, ...]
    load_format: str
    has_chat_template: bool
    weight_version: str = "default"
    served_model_name: str | None = None
    is_generation: bool = True
    generation_defaults: Mapping[str, float] = field(default_factory=dict)

    @property
    def max_seq_len(self) -> int:
        """What prompt and output together may have."""
        return min(self.context_len, self.max_total_num_tokens)

    @property
    def max_req_input_len(self) -> int:
        """The longest prompt that leaves room for one token."""
        return self.max_seq_len - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """An engine that runs, and what belongs to it.  ``config`` is the resolved one."""

    engine: TokenEngine
    tokenizer: Tokenizer
    info: ModelInfo
    config: EngineConfig
    metrics: Metrics


def load_model(config: EngineConfig, served_model_name: str | None = None) -> ModelParts:
    """Find the checkpoint, load its tokenizer, and build and warm up its engine.

    Raises:
        JaxserveError: what is missing, broken or unsupported, and what to do about it.
    """
    source = resolve_source(
        config.model_path,
        load_format=config.load_format,
        revision=config.revision,
        download_dir=config.download_dir,
    )
    model_config = ModelConfig.from_hf(source.hf_config)
    tokenizer_path = _tokenizer_path(config, source)
    tokenizer = load_tokenizer(tokenizer_path, config.chat_template)
    ends = (*model_config.eos_token_ids, *tokenizer.eos_token_ids)
    model_config = replace(
        model_config,
        eos_token_ids=tuple(dict.fromkeys(i for i in ends if i < model_config.vocab_size)),
    )
    metrics = Metrics(served_model_name or source.name)
    engine = build_engine(config, source, model_config, metrics)
    info = ModelInfo(
        model_path=source.name,
        tokenizer_path=str(tokenizer_path),
        context_len=engine.config.context_length or model_config.context_len,
        max_total_num_tokens=engine.max_total_num_tokens,
        vocab_size=model_config.vocab_size,
        model_type=model_config.model_type,
        architectures=model_config.architectures,
        load_format=source.format,
        has_chat_template=tokenizer.chat_template is not None,
        weight_version=config.weight_version,
        served_model_name=served_model_name,
        generation_defaults=_generation_defaults(source.path),
    )
    return ModelParts(
        engine=engine, tokenizer=tokenizer, info=info, config=engine.config, metrics=metrics
    )


def _tokenizer_path(config: EngineConfig, source: ModelSource) -> Path:
    if config.tokenizer_path is None:
        return source.path
    path = Path(config.tokenizer_path).expanduser()
    if path.exists():
        return path
    try:  # "dummy" resolves a hub id without fetching its weights
        source = resolve_source(
            config.tokenizer_path, load_format="dummy", download_dir=config.download_dir
        )
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"--tokenizer-path {config.tokenizer_path} cannot be found or fetched; give a folder "
            "with a tokenizer.json, a .gguf file or a hub id"
        ) from error
    return source.path


def _generation_defaults(path: Path) -> dict[str, float]:
    """The sampling that the checkpoint's authors recommend, in its generation_config.json."""
    file = path / "generation_config.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not readable JSON ({error}); fetch it again") from error
    return {
        name: found[name]
        for name in _GENERATION_DEFAULTS
        if isinstance(found, dict) and isinstance(found.get(name), (int, float))
    }
