"""Sequences → padded ``StepInputs``: the only padding code of the project.

What a sequence never changes while it holds a slot (its sampling parameters) is written once
into arrays with one row per slot; its pages are mirrored by ``KVManager.page_table``.  A plan is
then a few gathers by slot.  Slot 0 is the padding row of every such array.  Each gather makes a
new array, because a device may go on reading the last step's memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from jaxserve.batch import (
    MAX_PROMPT_BLOCK,
    PROMPT_BLOCK_SIZES,
    Mode,
    PromptBlock,
    SamplingArrays,
    SlotInit,
    StepInputs,
)
from jaxserve.scheduler.buckets import Buckets
from jaxserve.scheduler.embed_rows import place_embeds
from jaxserve.scheduler.hidden_spans import HiddenPlanner
from jaxserve.scheduler.sequence import Sequence, Status

_WORD_BITS = 32
_WORD_MASK = 2**_WORD_BITS - 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence for an EXTEND step: ``num_tokens`` after its ``num_computed``."""

    seq: Sequence
    num_tokens: int
    is_first: bool  # the sequence took its slot for this chunk
    is_behind: bool = False  # has tokens that were appended: the device has not counted them

    @property
    def is_last(self) -> bool:
        """Nothing of the prompt remains after it.  True only until the chunk is launched."""
        return self.seq.num_computed + self.num_tokens >= self.seq.num_tokens


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """Positions [start, stop) of a prompt whose logprobs a step computes.

    Position 0 has none; the first other one is entry ``offset`` of ``StepResult.prompt``.
    """

    start: int
    stop: int
    offset: int


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One step: which sequences its rows belong to, and its arrays."""

    rows: tuple[Sequence, ...]
    inputs: StepInputs
    num_new_tokens: int
    num_cached_tokens: int = 0  # of the sequences that took a slot in this step
    num_new_sequences: int = 0
    prompt_spans: Mapping[int, PromptSpan] = field(default_factory=dict)  # by row
    hidden_spans: Mapping[int, slice] = field(
        default_factory=dict
    )  # by row: its entries of StepResult.hidden

    @property
    def mode(self) -> Mode:
        """EXTEND or DECODE."""
        return self.inputs.bucket.mode

    @property
    def has_extras(self) -> bool:
        """Some row gets more than a token: see ``outputs.row_extras``."""
        return bool(self.prompt_spans or self.hidden_spans)

    def awaited(self, rows: Iterable[int]) -> list[int]:
        """Those of its rows whose sequence lives and waits for a token of this step.

        For the newest plan: a sequence has gone on without it when tokens were appended to it.
        """
        return [
            row
            for row in rows
            if self.rows[row].status is not Status.FINISHED and self.rows[row].num_inflight
        ]

    def without(self, rows: list[int]) -> "BatchPlan":
        """The plan of a step in which ``rows`` turned out to sample nothing."""
        return replace(self, inputs=self.inputs.without(rows))


class SamplingTable:
    """Sampling parameters by slot; slot 0 is greedy and has everything off."""

    def __init__(self, num_slots: int) -> None:
        self._temperature = np.zeros(num_slots, np.float32)
        self._top_k = np.zeros(num_slots, np.int32)
        self._top_p = np.ones(num_slots, np.float32)
        self._min_p = np.zeros(num_slots, np.float32)
        self._frequency_penalty = np.zeros(num_slots, np.float32)
        self._presence_penalty = np.zeros(num_slots, np.float32)
        self._repetition_penalty = np.ones(num_slots, np.float32)
        self._seeds = np.zeros((num_slots, 2), np.uint32)
        self._min_lens = np.zeros(num_slots, np.int32)
        self._has_logit_bias = np.zeros(num_slots, np.bool_)
        self._wants_logprobs = np.zeros(num_slots, np.bool_)

    def write(self, seq: Sequence) -> None:
        """Fill the row of the slot that a sequence has just taken."""
        slot, sampling = seq.slot, seq.request.sampling
        self._temperature[slot] = sampling.temperature
        self._top_k[slot] = sampling.top_k
        self._top_p[slot] = sampling.top_p
        self._min_p[slot] = sampling.min_p
        self._frequency_penalty[slot] = sampling.frequency_penalty
        self._presence_penalty[slot] = sampling.presence_penalty
        self._repetition_penalty[slot] = sampling.repetition_penalty
        self._seeds[slot] = _seed_words(sampling.seed or 0)
        self._min_lens[slot] = _min_len(seq)
        self._has_logit_bias[slot] = bool(sampling.logit_bias)
        self._wants_logprobs[slot] = sampling.num_logprobs is not None

    def gather(self, slots: np.ndarray, samples: np.ndarray) -> SamplingArrays:
        """Return fresh arrays for rows in these slots, i32[B]; ``samples`` is bool[B]."""
        return SamplingArrays(
            samples=samples,
            temperature=self._temperature[slots],
            top_k=self._top_k[slots],
            top_p=self._top_p[slots],
            min_p=self._min_p[slots],
            frequency_penalty=self._frequency_penalty[slots],
            presence_penalty=self._presence_penalty[slots],
            repetition_penalty=self._repetition_penalty[slots],
            seeds=self._seeds[slots],
            min_lens=self._min_lens[slots],
            has_logit_bias=self._has_logit_bias[slots],
            wants_logprobs=self._wants_logprobs[slots],
        )


class PlanBuilder:
    """Builds the arrays of a step from sequences whose pages are already there.

    Call it before the sequences' counters advance: a row's tokens start at ``num_computed``.
    """

    def __init__(self, *, buckets: Buckets, page_table: np.ndarray, page_size: int) -> None:
        self._buckets = buckets
        self._page_table = page_table  # i32[num_slots, pages_per_row], the KV manager's mirror
        self._page_size = page_size
        self._sampling = SamplingTable(len(page_table))
        self._hidden = HiddenPlanner()

    def extend(self, chunks: list[Chunk]) -> BatchPlan:
        """One EXTEND step.  A padding row owns no token; a padding token belongs to no row."""
        num_rows = len(chunks)
        lens = [chunk.num_tokens for chunk in chunks]
        num_tokens = sum(lens)
        bucket = self._buckets.choose(
            Mode.EXTEND,
            num_tokens=num_tokens,
            num_rows=num_rows,
            num_pages=max(len(chunk.seq.pages) for chunk in chunks),
        )
        q_starts = np.full(bucket.num_rows + 1, num_tokens, np.int32)
        q_starts[0] = 0
        np.cumsum(lens, out=q_starts[1 : num_rows + 1])
        token_ids = np.zeros(bucket.num_tokens, np.int32)
        positions = np.zeros(bucket.num_tokens, np.int32)
        kv_lens = np.zeros(bucket.num_rows, np.int32)
        row_slots = np.zeros(bucket.num_rows, np.int32)
        samples = np.zeros(bucket.num_rows, np.bool_)
        token_slots = np.zeros(bucket.num_tokens, np.int32)
        stop = 0
        for row, chunk in enumerate(chunks):
            seq, first = chunk.seq, chunk.seq.num_computed
            start, stop = stop, stop + chunk.num_tokens
            token_ids[start:stop] = seq.tokens[first : first + chunk.num_tokens] or ~seq.slot
            positions[start:stop] = np.arange(first, first + chunk.num_tokens, dtype=np.int32)
            token_slots[start:stop] = seq.slot
            kv_lens[row] = first + chunk.num_tokens
            row_slots[row] = seq.slot
            samples[row] = chunk.is_last and seq.wants_sample
        prompt_spans, prompt_blocks = _plan_prompt_logprobs(chunks, q_starts)
        new_rows = self._note_new(chunks)
        rows = tuple(chunk.seq for chunk in chunks)
        hidden_spans, hidden_tokens = self._hidden.plan(rows, q_starts)
        inputs = StepInputs(
            bucket=bucket,
            token_ids=token_ids,
            positions=positions,
            write_slots=self._write_slots(token_slots, positions),
            page_table=self._page_table[row_slots, : bucket.pages_per_row],
            kv_lens=kv_lens,
            q_starts=q_starts,
            row_slots=row_slots,
            sampling=self._sampling.gather(row_slots, samples),
            slot_inits=_slot_inits(chunks),
            prompt_blocks=prompt_blocks,
            embeds=place_embeds(rows, q_starts, token_ids),
            hidden_tokens=hidden_tokens,
        )
        return BatchPlan(
            rows=rows,
            inputs=inputs,
            num_new_tokens=num_tokens,
            num_cached_tokens=sum(seq.num_computed for seq in new_rows),
            num_new_sequences=len(new_rows),
            prompt_spans=prompt_spans,
            hidden_spans=hidden_spans,
        )

    def decode(self, rows: list[Sequence]) -> BatchPlan:
        """One DECODE step: each row one token at ``num_computed``, padding rows one of length 0."""
        num_rows = len(rows)
        bucket = self._buckets.choose(
            Mode.DECODE,
            num_tokens=num_rows,
            num_rows=num_rows,
            num_pages=max([len(seq.pages) for seq in rows]),
        )
        size = bucket.num_rows
        row_slots = np.zeros(size, np.int32)
        row_slots[:num_rows] = [seq.slot for seq in rows]
        positions = np.zeros(size, np.int32)
        positions[:num_rows] = [seq.num_computed for seq in rows]
        kv_lens = positions + 1
        kv_lens[num_rows:] = 0
        samples = np.zeros(size, np.bool_)
        samples[:num_rows] = True
        q_starts = np.arange(size + 1, dtype=np.int32)
        hidden_spans, hidden_tokens = self._hidden.plan(rows, q_starts)
        inputs = StepInputs(
            bucket=bucket,
            token_ids=np.zeros(size, np.int32),
            positions=positions,
            write_slots=self._write_slots(row_slots, positions),
            page_table=self._page_table[row_slots, : bucket.pages_per_row],
            kv_lens=kv_lens,
            q_starts=q_starts,
            row_slots=row_slots,
            sampling=self._sampling.gather(row_slots, samples),
            hidden_tokens=hidden_tokens,
        )
        return BatchPlan(
            rows=tuple(rows), inputs=inputs, num_new_tokens=num_rows, hidden_spans=hidden_spans
        )

    def _note_new(self, chunks: list[Chunk]) -> list[Sequence]:
        """Take in the sequences that took their slots for these chunks; return them."""
        new_rows = [chunk.seq for chunk in chunks if chunk.is_first]
        for seq in new_rows:
            self._sampling.write(seq)
            self._hidden.note(seq)
        return new_rows

    def _write_slots(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        # Padding is slot 0 at position 0: the null page's first cell.
        write_slots: np.ndarray = self._page_table[slots, positions // self._page_size]
        write_slots *= self._page_size
        write_slots += positions % self._page_size
        return write_slots


def _plan_prompt_logprobs(
    chunks: list[Chunk], q_starts: np.ndarray
) -> tuple[dict[int, PromptSpan], tuple[PromptBlock, ...]]:
    """What the chunks' tokens say about the prompt tokens after them, where that is wanted.

    Moves ``next_prompt_logprob`` on: a plan is launched.
    """
    spans: dict[int, PromptSpan] = {}
    columns: list[np.ndarray] = []  # i32[3, n]: tokens, targets, slots
    num_before = 0
    for row, chunk in enumerate(chunks):
        seq, start = chunk.seq, chunk.seq.next_prompt_logprob
        stop = min(seq.num_computed + chunk.num_tokens + 1, seq.num_prompt)
        if stop <= start:
            continue
        spans[row] = PromptSpan(start, stop, num_before)
        seq.next_prompt_logprob = stop
        positions = np.arange(max(start, 1), stop, dtype=np.int32)
        columns.append(
            np.stack(
                [
                    positions - 1 - seq.num_computed + q_starts[row],
                    np.asarray(seq.request.prompt_ids[max(start, 1) : stop], np.int32),
                    np.full(len(positions), seq.slot, np.int32),
                ]
            )
        )
        num_before += len(positions)
    if not num_before:
        return spans, ()
    return spans, tuple(_prompt_blocks(np.concatenate(columns, axis=1)))


def _prompt_blocks(columns: np.ndarray) -> Iterator[PromptBlock]:
    """Cut i32[3, n] into blocks, the last one padded."""
    for start in range(0, columns.shape[1], MAX_PROMPT_BLOCK):
        part = columns[:, start : start + MAX_PROMPT_BLOCK]
        count = part.shape[1]
        padded = np.zeros((3, MAX_PROMPT_BLOCK), np.int32)
        padded[:, :count] = part
        size = min(size for size in PROMPT_BLOCK_SIZES if size >= count)
        yield PromptBlock(padded[0], padded[1], padded[2], size)


def _min_len(seq: Sequence) -> int:
    """Length of KV below which stop ids are masked; 0 = never.

    The token sampled at kv_len k follows ``k - num_prompt`` output tokens, so masking while
    fewer than ``min_new_tokens`` came before is masking while ``k < num_prompt + min_new_tokens``.
    """
    minimum = seq.request.sampling.min_new_tokens
    return seq.num_prompt + minimum if minimum else 0


def _seed_words(seed: int) -> tuple[int, int]:
    """High and low 32-bit words of a signed 64-bit seed in two's complement."""
    return (seed >> _WORD_BITS) & _WORD_MASK, seed & _WORD_MASK


def _needs_slot_init(seq: Sequence) -> bool:
    sampling = seq.request.sampling
    has_penalty = (
        sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
        or sampling.repetition_penalty != 1.0
    )
    has_ids = bool(sampling.logit_bias or sampling.logprob_token_ids)
    return has_penalty or has_ids or sampling.min_new_tokens > 0


def _slot_inits(chunks: list[Chunk]) -> tuple[SlotInit, ...]:
    return tuple(
        _slot_init(chunk.seq)
        for chunk in chunks
        if (chunk.is_first or chunk.is_behind) and _needs_slot_init(chunk.seq)
    )


def _slot_init(seq: Sequence) -> SlotInit:
    return SlotInit(
        slot=seq.slot,
        prompt_ids=seq.request.prompt_ids if seq.request.embeds is None else (),
        output_ids=tuple(seq.tokens[seq.num_prompt :]),
        stop_ids=tuple(sorted(seq.stop_ids)),
        logit_bias=seq.request.sampling.logit_bias,
        logprob_ids=seq.request.sampling.logprob_token_ids,
    )
