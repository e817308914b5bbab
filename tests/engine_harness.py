"""Run token prompts through a real engine on a real (tiny) model."""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxserve.config import EngineConfig
from jaxserve.constrained import Matcher
from jaxserve.engine import Engine
from jaxserve.engine_builder import build_engine
from jaxserve.metrics import Metrics
from jaxserve.model_config import ModelConfig
from jaxserve.request import FinishReason, Request, SamplingParams, TokenLogprob, TokenOutput
from jaxserve.weights import resolve_source


@dataclass
class Output:
    """Everything that one request produced."""

    rid: str
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    hidden_states: list[np.ndarray] = field(default_factory=list)
    finish: FinishReason | None = None
    num_cached: int = 0
    num_retractions: int = 0
    queue_s: list[float] = field(default_factory=list)

    def add(self, output: TokenOutput) -> None:
        assert self.finish is None, "an output came after the last one"
        self.tokens.extend(output.token_ids)
        self.logprobs.extend(output.logprobs)
        self.prompt_logprobs.extend(output.prompt_logprobs)
        if output.hidden_states is not None:
            self.hidden_states.append(output.hidden_states)
        self.finish = output.finish
        self.num_cached = output.num_cached
        self.num_retractions = output.num_retractions
        if output.queue_s is not None:
            self.queue_s.append(output.queue_s)


class EngineHarness:
    """An engine, and blocking ways to run requests through it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._rids = (f"r{index}" for index in itertools.count())

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams],
        *,
        constraints: Sequence[Matcher | None] | None = None,
        embeds: Sequence[np.ndarray | None] | None = None,
        on_output: Callable[[Output], None] = lambda output: None,
    ) -> list[Output]:
        """Submit all at once, wait for all."""
        each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
        matchers = constraints or [None] * len(prompts)
        given = embeds or [None] * len(prompts)
        return asyncio.run(self._run(prompts, each, matchers, given, on_output))

    def run_one_by_one(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams]
    ) -> list[Output]:
        """Each alone in the engine."""
        return [
            self.run([prompt], params)[0] for prompt, params in zip(prompts, sampling, strict=True)
        ]

    def flush(self) -> None:
        """Forget cached prefixes."""
        assert self.engine.flush_cache().result(timeout=10)

    async def _run(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[SamplingParams],
        matchers: Sequence[Matcher | None],
        embeds: Sequence[np.ndarray | None],
        on_output: Callable[[Output], None],
    ) -> list[Output]:
        outputs = [Output(next(self._rids)) for _ in prompts]
        done = [asyncio.Event() for _ in prompts]

        def deliver_to(output: Output, event: asyncio.Event) -> Callable[[TokenOutput], None]:
            def deliver(item: TokenOutput) -> None:
                output.add(item)
                on_output(output)
                if item.finish is not None:
                    event.set()

            return deliver

        for prompt, params, matcher, rows, output, event in zip(
            prompts, sampling, matchers, embeds, outputs, done, strict=True
        ):
            request = Request(
                rid=output.rid,
                prompt_ids=tuple(prompt),
                sampling=params,
                arrival_s=0.0,
                embeds=rows,
            )
            self.engine.submit(request, deliver_to(output, event), matcher)
        async with asyncio.timeout(120):
            for event in done:
                await event.wait()
        return outputs


@contextmanager
def running_engine(checkpoint: Path, cache_dir: str, **fields: object) -> Iterator[EngineHarness]:
    """An engine over a checkpoint in f32 with few, small buckets unless told otherwise."""
    defaults: dict[str, object] = {
        "dtype": "float32",
        "max_total_tokens": 2048,
        "max_running_requests": 8,
        "chunked_prefill_size": 64,
        "context_length": 256,
        "precompile_bs_paddings": (),
        "precompile_token_paddings": (),
        "compilation_cache_dir": cache_dir,
    }
    config = EngineConfig(model_path=str(checkpoint), **{**defaults, **fields})
    source = resolve_source(config.model_path)
    model_config = ModelConfig.from_hf(source.hf_config)
    engine = build_engine(config, source, model_config, Metrics("tiny"))
    try:
        yield EngineHarness(engine)
    finally:
        engine.shutdown()
