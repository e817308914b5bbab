"""Logprobs of a prompt's own tokens, from the hidden states that an EXTEND step leaves.

Two programs, run only for steps in which some row asks: ``take_block`` per EXTEND size gathers a
block of hidden states (small, so that a size costs little to compile), ``score_block`` per block
size makes logits of them, blocks and not steps wide: what is held at once is a decode step's.

Neither temperature nor penalties: these are the model's own log-probabilities.

Axis letters: T tokens of the step, D model width, N = MAX_PROMPT_BLOCK, R rows of a shard,
S slots, V vocabulary, I = MAX_LOGPROB_TOKEN_IDS.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from jaxserve.batch import MAX_PROMPT_BLOCK, PROMPT_BLOCK_SIZES, PromptBlock, PromptLogprobs
from jaxserve.executor.logprobs import Logprobs, logprobs
from jaxserve.executor.sampler import without_nan
from jaxserve.executor.sharding import Placement
from jaxserve.executor.warmup import compile_all
from jaxserve.models import Model, RowShards


def take_block(hidden: Array, tokens: Array) -> Array:
    """[N, D]: the rows i32[N] of [T, D]."""
    return hidden.at[tokens].get(mode="promise_in_bounds")


def score_function(
    model: Model, size: int
) -> Callable[[list[Array], Array, Array, Array], Logprobs]:
    """``score_block`` for the first ``size`` of a block's tokens."""

    def score_block(
        leaves: list[Array], hidden: Array, logprob_ids: Array, packed: Array
    ) -> Logprobs:
        """Logprobs of hidden states [N, D]: ids i32[S, I] of each slot, packed i32[2, N]."""
        shards = RowShards(model.plan, size)
        targets, slots = shards.mine(packed[:, :size], axis=1)  # i32[R] each
        logits = without_nan(model.bind(leaves).logits(hidden[:size]))  # f32[R, V]
        named_ids = logprob_ids.at[slots].get(mode="promise_in_bounds")
        temperature = jnp.ones(len(targets), jnp.float32)
        return shards.everyones(logprobs(logits, temperature, targets, named_ids))

    return score_block


def empty_block() -> PromptBlock:
    """The smallest block, all padding."""
    padding = np.zeros(MAX_PROMPT_BLOCK, np.int32)
    return PromptBlock(padding, padding, padding, PROMPT_BLOCK_SIZES[0])


def join_blocks(blocks: tuple[Logprobs, ...]) -> PromptLogprobs | None:
    """Bring the blocks of a step to the host; None when there are none."""
    if not blocks:
        return None
    fetched = [jax.tree.map(np.asarray, block) for block in blocks]
    found = jax.tree.map(lambda *parts: np.concatenate(parts), *fetched)
    return PromptLogprobs(found.chosen, found.top, found.top_token_ids, found.named)


class PromptScorer:
    """Compiles the programs and launches them.

    Args:
        leaves, logprob_ids: of the model and of the slots; only their shapes are kept.
        hidden: what each size of EXTEND step leaves, [T, D].
    """

    def __init__(
        self,
        model: Model,
        placement: Placement,
        leaves: Sequence[Array],
        logprob_ids: Array,
        hidden: Sequence[jax.ShapeDtypeStruct],
        *,
        num_threads: int,
    ) -> None:
        taken = {spec.shape[0]: placement.struct(spec.shape, spec.dtype) for spec in hidden}

        def lower_take(num_tokens: int) -> Any:
            tokens = placement.struct((MAX_PROMPT_BLOCK,), jnp.int32)
            return jax.jit(take_block).lower(taken[num_tokens], tokens)

        def lower_score(size: int) -> Any:
            spec = hidden[0]
            arguments = (
                list(leaves),
                placement.struct((MAX_PROMPT_BLOCK, *spec.shape[1:]), spec.dtype),
                logprob_ids,
                placement.struct((2, MAX_PROMPT_BLOCK), jnp.int32),
            )
            score = placement.shard_map(
                score_function(model, size), arguments, lambda _: PartitionSpec()
            )
            return jax.jit(score).lower(*arguments)

        sizes = PROMPT_BLOCK_SIZES if hidden else ()
        programs = compile_all(
            [*(("take", tokens) for tokens in taken), *(("score", size) for size in sizes)],
            lambda key: (lower_take if key[0] == "take" else lower_score)(key[1]),
            num_threads=num_threads,
            what="prompt scorers",
        )
        self._take = {tokens: programs["take", tokens] for tokens in taken}
        self._score = {size: programs["score", size] for size in sizes}

    def take(self, hidden: Array, tokens: np.ndarray) -> Array:
        """Enqueue ``take_block`` of what an EXTEND step left."""
        taken: Array = self._take[hidden.shape[0]](hidden, tokens)
        return taken

    def launch(
        self,
        leaves: list[Array],
        hidden: Array,
        logprob_ids: Array,
        blocks: tuple[PromptBlock, ...],
    ) -> tuple[Logprobs, ...]:
        """Enqueue the blocks of a step that left ``hidden``."""
        return tuple(
            self._score[block.size](
                leaves,
                self.take(hidden, block.tokens),
                logprob_ids,
                np.stack([block.targets, block.slots]),
            )
            for block in blocks
        )
