"""What a prompt and its parameters must be for this model, and what they leave open."""

import operator
import random
import reprlib
from collections.abc import Sequence
from dataclasses import replace

from jaxserve.errors import ContextLengthError, InvalidRequestError
from jaxserve.model_parts import ModelInfo
from jaxserve.request import SamplingParams, check_in_vocabulary

MAX_COUNTED_CHARS = 2**20  # of a text that is no prompt: about a second and 200 MB
MAX_ABS_LOGIT_BIAS = 3.0e38  # what a float32 holds


def checked_ids(prompt: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """``prompt`` as token ids of the model.

    Raises:
        InvalidRequestError: no tokens, something else, or an id that is not in the vocabulary.
    """
    try:
        prompt_ids = tuple(map(operator.index, prompt))
    except TypeError as error:
        raise InvalidRequestError(
            f"a prompt is a text or a list of token ids, got {reprlib.repr(prompt)} ({error})"
        ) from None
    if not prompt_ids:
        raise InvalidRequestError("input_ids cannot be empty.")
    check_in_vocabulary(prompt_ids, vocab_size)
    return prompt_ids


def read_limit(num_chars: int, info: ModelInfo, is_prompt: bool) -> int | None:
    """The number of tokens beyond which a text need not be read; None: it is read anyway.

    Args:
        num_chars: its length.
        is_prompt: it is going to be generated from, so that what does not fit is refused.
    """
    return info.max_seq_len if is_prompt or num_chars > MAX_COUNTED_CHARS else None


def settled(
    params: SamplingParams, prompt_len: int, info: ModelInfo, *, clamps: bool, seed: int
) -> SamplingParams:
    """``params`` without a None, checked against the model.

    Args:
        clamps: shorten max_new_tokens to what fits instead of refusing it.
        seed: for parameters that bring none.

    Raises:
        InvalidRequestError: something that the model has not, or that the prompt has not.
        ContextLengthError: the prompt, or prompt and output, do not fit.
    """
    _check_ids(params, info.vocab_size)
    start = params.prompt_logprobs_start
    if start is not None and start > prompt_len:
        raise InvalidRequestError(
            f"logprob_start_len ({start}) is higher than the number of input tokens "
            f"({prompt_len}). Please use a smaller logprob_start_len."
        )
    return replace(
        params,
        max_new_tokens=_max_new_tokens(params.max_new_tokens, prompt_len, info, clamps),
        seed=seed if params.seed is None else params.seed,
        # An id that no token has can never match.
        stop_token_ids=tuple(i for i in params.stop_token_ids if 0 <= i < info.vocab_size),
        prompt_logprobs_start=None if start == prompt_len else start,
    )


def sample_seed(seed: int | None, index: int) -> int | None:
    """The first sample has the seed itself, so that n = 1 and n > 1 begin alike."""
    if index == 0:
        return seed
    return random.Random(f"{seed}/{index}").getrandbits(63)


def _check_ids(params: SamplingParams, vocab_size: int) -> None:
    for token_id, bias in params.logit_bias:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"logit_bias must has keys in [0, {vocab_size - 1}], got {token_id}."
            )
        if abs(bias) > MAX_ABS_LOGIT_BIAS:
            raise InvalidRequestError(
                f"logit_bias values must be finite 32-bit numbers, got {bias}."
            )
    check_in_vocabulary(params.logprob_token_ids, vocab_size, field="token_ids_logprob")


def _max_new_tokens(wanted: int | None, prompt_len: int, info: ModelInfo, clamps: bool) -> int:
    limit = info.max_seq_len
    room = limit - prompt_len
    is_flexible = wanted is None or (clamps and wanted > 0)
    if room < 0 or (room == 0 and is_flexible):
        raise ContextLengthError(
            f"The input ({prompt_len} tokens) is longer than the model's context length "
            f"({limit} tokens).{_limit_hint(info)}"
        )
    if wanted is None:
        return room
    if wanted > room and not clamps:
        raise ContextLengthError(
            f"Requested token count exceeds the model's maximum context length of {limit} "
            f"tokens. You requested a total of {prompt_len + wanted} tokens: {prompt_len} "
            f"tokens from the input messages and {wanted} tokens for the completion. Please "
            "reduce the number of tokens in the input messages or the completion to fit "
            f"within the limit.{_limit_hint(info)}"
        )
    return min(wanted, room)


def _limit_hint(info: ModelInfo) -> str:
    if info.context_len <= info.max_total_num_tokens:
        return ""
    return (
        f" (The model's own context is {info.context_len} tokens, but the KV pool holds "
        f"{info.max_total_num_tokens}: restart with a larger --mem-fraction-static or "
        "--max-total-tokens.)"
    )
