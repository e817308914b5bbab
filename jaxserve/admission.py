"""What a prompt and its parameters must be for this model, and what they leave open."""

import asyncio
import operator
import random
import reprlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from jaxserve.config import EngineConfig
from jaxserve.errors import ContextLengthError, InvalidRequestError, UnsupportedFeatureError
from jaxserve.model_parts import ModelInfo
from jaxserve.request import InputEmbeds, SamplingParams, SessionParams, check_in_vocabulary

Encode = Callable[[str], Awaitable[tuple[int, ...]]]

PLACEHOLDER_ID = 0  # where there is an embedding instead of a token
MAX_COUNTED_CHARS = 2**20  # of a text that is no prompt: about a second and 200 MB
MAX_ABS_LOGIT_BIAS = 3.0e38  # what a float32 holds


async def read_prompt(
    prompt: str | Sequence[int] | InputEmbeds, encode: Encode, info: ModelInfo
) -> tuple[tuple[int, ...], np.ndarray | None]:
    """The token ids of a prompt; or placeholders, and the embeddings f32[n, D] that it is.

    Args:
        encode: makes token ids of a text.

    Raises:
        InvalidRequestError: what ``checked_ids`` and ``checked_embeds`` refuse.
    """
    if isinstance(prompt, InputEmbeds):
        embeds = await asyncio.to_thread(checked_embeds, prompt, info.hidden_size)
        return (PLACEHOLDER_ID,) * len(embeds), embeds
    token_ids = await encode(prompt) if isinstance(prompt, str) else prompt
    return checked_ids(token_ids, info.vocab_size), None


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


def check_allowed(
    prompt: object, params: SamplingParams, session: SessionParams | None, config: EngineConfig
) -> None:
    """Refuse what the flags do not allow, and what a prompt without token ids cannot have.

    Raises:
        UnsupportedFeatureError: names the field, and the flag if there is one.
    """
    if params.hidden_states is not None and not config.enable_return_hidden_states:
        raise UnsupportedFeatureError(
            "The server is not configured to return hidden states. Please set "
            "`--enable-return-hidden-states` to enable this feature."
        )
    if not isinstance(prompt, InputEmbeds):
        return
    if not config.disable_radix_cache:
        raise UnsupportedFeatureError(
            "input_embeds is provided while disable_radix_cache is False. Please add "
            "`--disable-radix-cache` when you launch the server if you want to use input_embeds "
            "as inputs."
        )
    if session is not None:
        raise UnsupportedFeatureError(
            "session_params cannot be combined with input_embeds: a session continues token ids. "
            "Leave one of them away."
        )
    if params.prompt_logprobs_start is not None:
        raise UnsupportedFeatureError(
            "input_embeds have no token ids, so there are no logprobs of the prompt; send "
            "logprob_start_len -1."
        )


def checked_embeds(prompt: InputEmbeds, width: int) -> np.ndarray:
    """``prompt`` as f32[n, width], n > 0.  Takes long for long ones: call it in a thread.

    Raises:
        InvalidRequestError: no rows, or one that is not ``width`` finite numbers.
    """
    if not len(prompt.rows):
        raise InvalidRequestError("input_embeds cannot be empty.")
    return np.stack([_embedding(i, row, width) for i, row in enumerate(prompt.rows)])


def _embedding(index: int, row: object, width: int) -> np.ndarray:
    wanted = f"send rows of {width} numbers, the model's hidden_size"
    try:
        values = np.asarray(row)
    except ValueError:  # nested lists of different lengths
        values = np.asarray(None)
    if values.ndim != 1 or (len(values) and values.dtype.kind not in "iuf"):
        raise InvalidRequestError(f"input_embeds[{index}] is no list of numbers; {wanted}.")
    if len(values) != width:
        raise InvalidRequestError(f"input_embeds[{index}] has {len(values)} numbers; {wanted}.")
    with np.errstate(over="ignore"):  # what overflows is found at once
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        raise InvalidRequestError(
            f"input_embeds[{index}] has a number that is not finite in 32 bits; {wanted}."
        )
    return single


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
