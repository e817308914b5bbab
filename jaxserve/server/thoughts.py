"""Where the reasoning of an answer begins and ends, in the model's own tokens."""

from jaxserve.parsers import reasoning_format
from jaxserve.request import Thought
from jaxserve.server.service import TextService

NEEDS_STRICT_THINKING = (
    "{name} requires the server to be launched with --enable-strict-thinking; "
    "without it nothing ends a model's reasoning but the model and the token limit."
)


async def thought_of(
    llm: TextService,
    format_name: str,
    *,
    is_inside: bool,
    is_strict: bool = False,
    budget: int | None = None,
) -> Thought:
    """The reasoning of a format of ``parsers``.

    Args:
        is_inside: the prompt has begun it already.
        is_strict: the output may not end inside it, nor a tool call begin.
        budget: its longest, in tokens.
    """
    format = reasoning_format(format_name)
    return Thought(
        end_ids=await mark_ids(llm, format.think_end),
        start_ids=() if is_inside else await mark_ids(llm, format.think_start),
        answer_pattern=format.answer_pattern,
        budget=budget,
        is_strict=is_strict,
        call_id=None if format.tool_start is None else llm.token_id(format.tool_start),
    )


async def mark_ids(llm: TextService, marker: str) -> tuple[int, ...]:
    """The tokens of a marker: the one that is written so, where there is one."""
    token_id = llm.token_id(marker)
    if token_id is not None:
        return (token_id,)
    return await llm.encode(marker, add_special_tokens=False)
