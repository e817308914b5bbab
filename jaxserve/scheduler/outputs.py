"""What a sequence gives out, and when it ends by itself."""

from jaxserve.request import FinishReason, TokenLogprob, TokenOutput
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
