"""What a sequence gives out, and when it ends by itself."""

from typing import Any

import numpy as np

from jaxserve.batch import StepResult
from jaxserve.request import FinishReason, TokenLogprob, TokenOutput
from jaxserve.scheduler.plan import BatchPlan
from jaxserve.scheduler.sequence import Sequence

DISPLACED = FinishReason(
    "abort", message="The request is aborted by a higher priority request.", status_code=503
)


def ending(seq: Sequence, token_id: int) -> FinishReason | None:
    """Whether a sequence ends with ``token_id``, its newest token."""
    num_output = seq.num_output
    if token_id in seq.stop_ids and num_output > seq.request.sampling.min_new_tokens:
        return FinishReason("stop", matched=token_id)
    if num_output >= seq.max_new_tokens:
        return FinishReason("length")
    return None


def continue_with(seq: Sequence, token_ids: tuple[int, ...]) -> tuple[int, FinishReason | None]:
    """Append tokens until one ends the sequence; how many were, and how it ended."""
    count, reason = 0, None
    for token_id in token_ids[: seq.max_new_tokens - seq.num_output]:
        seq.tokens.append(token_id)
        count += 1
        reason = ending(seq, token_id)
        if reason is not None:
            break
    return count, reason


def abort_reason(seq: Sequence) -> FinishReason:
    """The end of a sequence that somebody asked for."""
    message = "Aborted" if seq.has_run else "Abort in waiting queue"
    return FinishReason("abort", message=message)


def make_output(
    seq: Sequence,
    token_ids: tuple[int, ...] = (),
    logprobs: tuple[TokenLogprob, ...] = (),
    finish: FinishReason | None = None,
) -> TokenOutput:
    """An output with the counts of its sequence."""
    # Positional: one per row and step, and names cost a quarter more.
    return TokenOutput(
        seq.request.rid, token_ids, logprobs, finish, seq.num_cached, seq.num_retractions
    )


def row_extras(plan: BatchPlan, result: StepResult, row: int) -> dict[str, Any]:
    """The fields of a row's output that only those have who asked for them."""
    extras: dict[str, Any] = {}
    if entries := row_prompt_logprobs(plan, result, row):
        extras["prompt_logprobs"] = entries
    if (span := plan.hidden_spans.get(row)) is not None:
        assert result.hidden is not None, "hidden states were planned and not fetched"
        extras["hidden_states"] = result.hidden[span]
    return extras


def row_logprobs(result: StepResult, row: int, seq: Sequence) -> tuple[TokenLogprob, ...]:
    """The log-probabilities of one row's token; empty when its request did not ask for them."""
    sampling = seq.request.sampling
    if result.logprobs is None or sampling.num_logprobs is None:
        return ()
    assert result.top_token_ids is not None and result.top_logprobs is not None
    top: tuple[tuple[int, float], ...] = ()
    if count := sampling.num_logprobs:
        top = _pairs(result.top_token_ids[row, :count], result.top_logprobs[row, :count])
    of_ids: tuple[tuple[int, float], ...] = ()
    if ids := sampling.logprob_token_ids:
        assert result.id_logprobs is not None
        of_ids = tuple(zip(ids, result.id_logprobs[row, : len(ids)].tolist(), strict=True))
    return (TokenLogprob(int(result.token_ids[row]), float(result.logprobs[row]), top, of_ids),)


def row_prompt_logprobs(plan: BatchPlan, result: StepResult, row: int) -> tuple[TokenLogprob, ...]:
    """The log-probabilities of the prompt's tokens that this step computed for a row, in order.

    Empty when the row's request did not ask for them.  Each position comes in one step only.
    """
    span = plan.prompt_spans.get(row)
    if span is None:
        return ()
    request = plan.rows[row].request
    entries: list[TokenLogprob] = []
    if span.start == 0:
        entries.append(TokenLogprob(request.prompt_ids[0], None))
    found = result.prompt
    if found is None:  # a prompt of one token
        return tuple(entries)
    first = max(span.start, 1)
    where = slice(span.offset, span.offset + span.stop - first)
    count, ids = request.sampling.num_logprobs or 0, request.sampling.logprob_token_ids
    columns = zip(
        request.prompt_ids[first : span.stop],
        found.logprobs[where].tolist(),
        found.top_token_ids[where, :count].tolist(),
        found.top_logprobs[where, :count].tolist(),
        found.id_logprobs[where, : len(ids)].tolist(),
        strict=True,
    )
    for token_id, logprob, top_ids, top, of_ids in columns:
        entries.append(
            TokenLogprob(
                token_id,
                logprob,
                tuple(zip(top_ids, top, strict=True)),
                tuple(zip(ids, of_ids, strict=True)),
            )
        )
    return tuple(entries)


def _pairs(ids: np.ndarray, logprobs: np.ndarray) -> tuple[tuple[int, float], ...]:
    return tuple(zip(ids.tolist(), logprobs.tolist(), strict=True))
