"""The device side of a step: one jitted call, launched without waiting, fetched later."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.batch import Bucket, Mode, PromptBlock, StepInputs, StepResult, TokenMasks
from jaxserve.config import DeviceInfo, EngineConfig
from jaxserve.executor.bounds import PageBounds, check_masks
from jaxserve.executor.embeds import EmbedWriter, buffer_shape
from jaxserve.executor.hidden_states import HiddenRows, select
from jaxserve.executor.kv_pool import DeviceState, kv_dtype, make_state, state_specs
from jaxserve.executor.late_sampler import LateSampler
from jaxserve.executor.logprobs import Logprobs
from jaxserve.executor.packing import pack, packed_len
from jaxserve.executor.prompt_logprobs import PromptScorer, empty_block, join_blocks
from jaxserve.executor.sampler import Sampled
from jaxserve.executor.sharding import Placement
from jaxserve.executor.slots import SlotWriter
from jaxserve.executor.step import StepOutput, trace_step
from jaxserve.executor.warmup import CompileCounter, compile_all
from jaxserve.model_config import ModelConfig
from jaxserve.models import Model, build_model
from jaxserve.weights import ModelSource, load_weights


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step that runs or has run on the device."""

    sampled: Sampled
    wants_logprobs: bool
    prompt: tuple[Logprobs, ...] = ()  # of its prompt blocks
    logits: jax.Array | None = None  # f32[B, V], for rows that are not sampled yet
    hidden: HiddenRows | None = None

    def fetch(self) -> StepResult:
        """Wait for the step and bring its tokens to the host: the only call that blocks."""
        token_ids = np.asarray(self.sampled.token_ids)
        prompt = join_blocks(self.prompt)
        hidden = None if self.hidden is None else self.hidden.fetch()
        if not self.wants_logprobs:
            return StepResult(token_ids, prompt=prompt, hidden=hidden)
        found = jax.tree.map(np.asarray, self.sampled.logprobs)
        return StepResult(
            token_ids,
            logprobs=found.chosen,
            top_logprobs=found.top,
            top_token_ids=found.top_token_ids,
            id_logprobs=found.named,
            prompt=prompt,
            hidden=hidden,
        )


class ModelRunner:
    """Owns the weights, the device state and one executable per bucket.

    Args:
        config: resolved, the attention backend settled too.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: Model,
        leaves: Sequence[jax.Array],
        state: DeviceState,
        placement: Placement,
        *,
        buckets: tuple[Bucket, ...],
        num_compile_threads: int = 1,
    ) -> None:
        assert all(isinstance(leaf, jax.Array) for leaf in leaves), "a leaf is not on the device"
        self._model = model
        self._leaves = list(leaves)
        self._state = state
        self._placement = placement
        self._config = config
        num_pages, _, page_size, _ = state.kv.k[0].shape
        self._bounds = PageBounds(num_pages, page_size)
        self.compile_counter = CompileCounter()
        started = time.monotonic()
        self._steps: Mapping[Bucket, Any] = compile_all(
            buckets, self.lower_step, num_threads=num_compile_threads, what="buckets"
        )
        samples_late = config.grammar_backend != "none"  # only a grammar defers a row
        outputs = [step.out_info[1] for step in self._steps.values()]  # StepOutput of structs
        self._writer = SlotWriter(state.slots, placement)
        self._late = LateSampler(
            [output.logits for output in outputs if samples_late],
            [output.sampled for output in outputs if samples_late],
            state,
            placement,
            num_threads=num_compile_threads,
        )
        self._embeds = None if state.embeds is None else EmbedWriter(state.embeds, placement)
        self._scorer = PromptScorer(
            model,
            placement,
            leaves,
            state.slots.logprob_ids,
            [self._steps[each].out_info[1].hidden for each in buckets if each.mode is Mode.EXTEND],
            num_threads=num_compile_threads,
        )
        self.compile_s = time.monotonic() - started
        self._run_smallest()
        self.compile_counter.freeze()

    @property
    def num_buckets(self) -> int:
        """Number of executables."""
        return len(self._steps)

    def launch(self, inputs: StepInputs, deferred: Sequence[int] = ()) -> PendingStep:
        """Enqueue one step and return at once; steps execute in the order of the calls.

        Args:
            inputs: the step.
            deferred: rows that ``sample`` will sample, or nobody.

        Raises:
            ValueError: a page id outside the pool, which no device would notice.
        """
        self._bounds.check(inputs)
        if inputs.slot_inits:
            slots = self._writer.write(self._state.slots, inputs.slot_inits)
            self._state = replace(self._state, slots=slots)
        if inputs.embeds:
            assert self._embeds is not None and self._state.embeds is not None
            written = self._embeds.write(self._state.embeds, inputs.embeds)
            self._state = replace(self._state, embeds=written)
        early = inputs.without(list(deferred)) if deferred else inputs
        output = self._run(inputs.bucket, pack(early))
        sampling = inputs.sampling
        return PendingStep(
            output.sampled,
            bool((sampling.wants_logprobs & sampling.samples).any()),
            self._score(output.hidden, inputs.prompt_blocks),
            output.logits if deferred else None,
            self._hidden_rows(output.hidden, inputs),
        )

    def sample(self, step: PendingStep, inputs: StepInputs, masks: TokenMasks) -> PendingStep:
        """Enqueue the sampling of deferred rows of the step launched last; call it once.

        Args:
            step: what ``launch`` made of ``inputs``.
            masks: the rows, and what each may sample.  The arrays are copied: the caller may
                write to them again after the call.

        Raises:
            ValueError: masks that do not fit the step.
        """
        assert step.logits is not None, "no row of this step is deferred"
        check_masks(masks, inputs, self._state.slots.token_info.shape[1])
        last_tokens, slots, sampled = self._late.launch(
            step.logits, step.sampled, self._state, inputs, masks
        )
        self._state = replace(self._state, last_tokens=last_tokens, slots=slots)
        return replace(step, sampled=sampled, logits=None)

    def close(self) -> None:
        """Let go of what outlives the runner.  Call it once, after the last step."""
        self.compile_counter.close()

    def lower_step(self, bucket: Bucket, platforms: tuple[str, ...] | None = None) -> Any:
        """Trace the step of one bucket, for compiling it or for looking at it.

        What is lowered for other ``platforms`` than the device's can only be looked at.
        """
        traced = trace_step(
            self._model,
            bucket,
            self._config.attention_backend,
            self._placement,
            self._leaves,
            self._state,
            keeps_hidden=self._config.enable_return_hidden_states,
        )
        return traced.lower(lowering_platforms=platforms)

    def _run(self, bucket: Bucket, packed: np.ndarray) -> StepOutput:
        output: StepOutput
        self._state, output = self._steps[bucket](self._leaves, self._state, packed)
        return output

    def _score(
        self, hidden: jax.Array | None, blocks: tuple[PromptBlock, ...]
    ) -> tuple[Logprobs, ...]:
        if not blocks:
            return ()
        assert hidden is not None, "prompt blocks in a step that computes no prompt"
        return self._scorer.launch(self._leaves, hidden, self._state.slots.logprob_ids, blocks)

    def _hidden_rows(self, hidden: jax.Array | None, inputs: StepInputs) -> HiddenRows | None:
        if inputs.hidden_tokens is None:
            return None
        assert hidden is not None, "hidden states of a runner that does not keep them"
        is_decode = inputs.bucket.mode is Mode.DECODE
        return select(hidden, inputs.hidden_tokens, None if is_decode else self._scorer.take)

    def _run_smallest(self) -> None:
        """Run the smallest step of each mode on padding: a program that cannot run fails here."""
        smallest = {bucket.mode: bucket for bucket in sorted(self._steps, key=_cost, reverse=True)}
        for bucket in smallest.values():
            output = self._run(bucket, np.zeros(packed_len(bucket), np.int32))
            blocks = (empty_block(),) if bucket.mode is Mode.EXTEND else ()
            jax.block_until_ready((output, self._score(output.hidden, blocks)))


def _cost(bucket: Bucket) -> int:
    return bucket.num_tokens * bucket.pages_per_row


def make_model(config: EngineConfig, model_config: ModelConfig, platform: str) -> Model:
    """The model that a resolved config asks for, without its weights: one shard's sizes.

    Raises:
        ConfigError: a model that ``--tp-size`` cannot divide.
    """
    assert config.context_length is not None
    return build_model(
        model_config,
        context_len=config.context_length,
        dtype=jnp.dtype(config.dtype),
        act_dtype=_act_dtype(config, platform),
        num_shards=config.tp_size,
    )


def _act_dtype(config: EngineConfig, platform: str) -> jnp.dtype:
    # XLA:CPU has no bf16 arithmetic outside matrix products: it would convert around every op
    return jnp.dtype(jnp.float32) if platform == "cpu" else jnp.dtype(config.dtype)


def build_runner(
    config: EngineConfig,
    model_config: ModelConfig,
    source: ModelSource,
    device: DeviceInfo,
    *,
    num_pages: int,
    buckets: tuple[Bucket, ...],
) -> ModelRunner:
    """Load the weights, allocate the state, compile the buckets.

    Raises:
        WeightLoadError: the checkpoint does not fit the model.
    """
    assert config.max_running_requests is not None
    model = make_model(config, model_config, device.platform)
    placement = Placement.of_this_host(model.plan)
    weights = load_weights(source, model_config, placement.expected(model), model.plan)
    specs = state_specs(
        model_config,
        placement,
        num_pages=num_pages,
        page_size=config.page_size,
        num_slots=config.max_running_requests + 1,
        dtype=kv_dtype(config, device.platform),
    )
    if config.disable_radix_cache:  # what is cached under token ids would be found for embeddings
        shape = buffer_shape(max(b.num_tokens for b in buckets), model_config.hidden_size)
        dtype = _act_dtype(config, device.platform)
        specs = replace(specs, embeds=cast(jax.Array, placement.struct(shape, dtype)))
    return ModelRunner(
        config,
        model,
        [weights[path] for path in model.paths],
        make_state(specs),
        placement,
        buckets=buckets,
        num_compile_threads=device.num_cores,
    )
