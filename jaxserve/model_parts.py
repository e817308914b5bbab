"""From an ``EngineConfig`` to everything that an ``LLM`` is made of."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from jaxserve.config import EngineConfig
from jaxserve.constrained import GrammarCompiler, Matcher, Vocabulary
from jaxserve.engine_builder import build_engine
from jaxserve.errors import ConfigError, ModelNotFoundError
from jaxserve.metrics import EngineStats, MetricBuckets, Metrics
from jaxserve.model_config import ModelConfig
from jaxserve.parsers import REASONING_FORMATS, TOOL_FORMATS, detect
from jaxserve.request import PauseMode, Request, TokenOutput
from jaxserve.text import Tokenizer, load_tokenizer
from jaxserve.weights import ModelSource, resolve_source

AUTO = "auto"
_GENERATION_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class TokenEngine(Protocol):
    """What an ``LLM`` asks of its engine; ``jaxserve.engine.Engine`` is one."""

    @property
    def is_alive(self) -> bool: ...

    @property
    def is_paused(self) -> bool: ...

    def submit(
        self,
        request: Request,
        deliver: Callable[[TokenOutput], None],
        constraint: Matcher | None = None,
    ) -> None: ...

    def abort(self, rid: str) -> None: ...

    def flush_cache(self) -> Future[bool]: ...

    def pause(self, mode: PauseMode) -> Future[int]: ...

    def resume(self) -> Future[None]: ...

    def start_profile(
        self,
        output_dir: str | None = None,
        num_steps: int | None = None,
        start_step: int | None = None,
    ) -> Future[None]: ...

    def stop_profile(self) -> Future[None]: ...

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
    hidden_size: int  # numbers of a token's embedding
    model_type: str
    architectures: tuple[str, ...]
    load_format: str
    eos_token_ids: tuple[int, ...] = ()  # each ends an output
    chat_template: str | None = None  # its Jinja source
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
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
    """An engine that runs, and what belongs to it.  ``config`` is the resolved one.

    ``grammars`` is None where no output can be constrained.
    """

    engine: TokenEngine
    tokenizer: Tokenizer
    info: ModelInfo
    config: EngineConfig
    metrics: Metrics
    grammars: GrammarCompiler | None = None


def load_model(
    config: EngineConfig,
    served_model_name: str | None = None,
    *,
    reasoning_parser: str | None = None,
    tool_call_parser: str | None = None,
) -> ModelParts:
    """Find the checkpoint, load its tokenizer, and build and warm up its engine.

    Args:
        served_model_name: what metrics and clients call the model.
        reasoning_parser, tool_call_parser: names of ``parsers``, "auto", or None.

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
    parsers = _parsers(reasoning_parser, tool_call_parser, tokenizer.chat_template)
    metrics = _make_metrics(served_model_name or source.name, config)
    engine = build_engine(config, source, model_config, metrics)
    info = ModelInfo(
        model_path=source.name,
        tokenizer_path=str(tokenizer_path),
        context_len=engine.config.context_length or model_config.context_len,
        max_total_num_tokens=engine.max_total_num_tokens,
        vocab_size=model_config.vocab_size,
        hidden_size=model_config.hidden_size,
        model_type=model_config.model_type,
        architectures=model_config.architectures,
        load_format=source.format,
        eos_token_ids=model_config.eos_token_ids,
        chat_template=tokenizer.chat_template,
        reasoning_parser=parsers[0],
        tool_call_parser=parsers[1],
        weight_version=config.weight_version,
        served_model_name=served_model_name,
        generation_defaults=_generation_defaults(source.path),
    )
    return ModelParts(
        engine=engine,
        tokenizer=tokenizer,
        info=info,
        config=engine.config,
        metrics=metrics,
        grammars=_grammar_compiler(config, tokenizer, model_config),
    )


def _parsers(
    reasoning: str | None, tool_calls: str | None, chat_template: str | None
) -> tuple[str | None, str | None]:
    """The formats of reasoning and of tool calls, "auto" told from the chat template.

    Raises:
        ConfigError: a format that there is not.
    """
    of_template = detect(chat_template)
    for flag, name, formats in (
        ("--reasoning-parser", reasoning, REASONING_FORMATS),
        ("--tool-call-parser", tool_calls, TOOL_FORMATS),
    ):
        if name not in (None, AUTO) and name not in formats:
            raise ConfigError(f"{flag} must be auto or one of {', '.join(formats)}; got {name!r}")
    return (
        of_template[0] if reasoning == AUTO else reasoning,
        of_template[1] if tool_calls == AUTO else tool_calls,
    )


def _grammar_compiler(
    config: EngineConfig, tokenizer: Tokenizer, model_config: ModelConfig
) -> GrammarCompiler | None:
    token_bytes = tokenizer.vocabulary_bytes()
    eos_token_ids = tuple(i for i in model_config.eos_token_ids if i < len(token_bytes))
    if config.grammar_backend == "none" or not token_bytes or not eos_token_ids:
        return None
    vocabulary = Vocabulary(
        token_bytes=token_bytes[: model_config.vocab_size],
        eos_token_ids=eos_token_ids,
        special_token_ids=frozenset(
            i for i in tokenizer.special_token_ids if i < model_config.vocab_size
        ),
        vocab_size=model_config.vocab_size,
        encode=partial(tokenizer.encode, add_special_tokens=False),
    )
    return GrammarCompiler(
        vocabulary,
        timeout_s=config.grammar_timeout_s,
        whitespace_pattern=config.constrained_json_whitespace_pattern,
        disable_any_whitespace=config.constrained_json_disable_any_whitespace,
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


def _make_metrics(model_name: str, config: EngineConfig) -> Metrics:
    given = {
        "ttft_s": config.bucket_time_to_first_token,
        "inter_token_s": config.bucket_inter_token_latency,
        "e2e_s": config.bucket_e2e_request_latency,
        "prompt_tokens": config.prompt_tokens_buckets,
        "generation_tokens": config.generation_tokens_buckets,
    }
    buckets = MetricBuckets(**{name: bounds for name, bounds in given.items() if bounds})
    return Metrics(model_name, extra_labels=config.extra_metric_labels, buckets=buckets)
