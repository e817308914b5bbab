"""Whether an answer begins with reasoning, and the reader that takes it out of the text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxserve.parsers import ReasoningFormat, ReasoningParser, reasoning_format
from jaxserve.request import TextChunk, Thought
from jaxserve.server.json_body import JsonObject
from jaxserve.server.service import TextService
from jaxserve.server.thoughts import thought_of

TAIL_TOKENS = 40  # of the prompt: what a chat template ends it with is shorter


def template_kwargs(
    defaults: Mapping[str, object],
    *,
    effort: str | None,
    wants_reasoning: bool | None,
    own: Mapping[str, object],
) -> JsonObject:
    """What the chat template is given beside the messages; the later wins.

    Args:
        defaults: the server's --default-chat-template-kwargs.
        effort: how much to reason.
        wants_reasoning: whether to; templates call it by one of two names.
        own: the request's chat_template_kwargs.
    """
    kwargs = dict(defaults)
    if effort is not None:
        kwargs["reasoning_effort"] = effort
    if wants_reasoning is not None:
        kwargs["enable_thinking"] = kwargs["thinking"] = wants_reasoning
    return kwargs | dict(own)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningUse:
    """How the reasoning of one request's answers is read.

    ``format`` None: an answer has none.  ``end_ids`` are the tokens that end it and ``call_id`` is
    the one that begins a tool call, which may end it too.  ``thought`` is what a grammar for the
    answer waits for the end of; None: for nothing.
    """

    format: str | None = None
    starts_inside: bool = False
    end_ids: tuple[int, ...] = ()
    call_id: int | None = None
    thought: Thought | None = None
    is_separate: bool = True  # else it stays in the content, between its markers
    is_streamed: bool = True  # else it comes in one piece, at its end
    ends_at_tool_call: bool = False

    @property
    def needs_special_tokens(self) -> bool:
        """The markers are special tokens, which must stay in the text."""
        return self.format is not None and reasoning_format(self.format).needs_special_tokens


async def reasoning_of_prompt(
    llm: TextService,
    prompt_ids: Sequence[int],
    kwargs: Mapping[str, object],
    continued: str | None,
    *,
    is_strict: bool = False,
    budget: int | None = None,
) -> ReasoningUse:
    """How the answer to a prompt begins.

    Args:
        prompt_ids: the rendered prompt; what it ends with tells what comes next.
        kwargs: what the chat template was given.
        continued: the text of the message that the answer continues, if it does.
        is_strict: see ``Thought``, as for ``budget``.
    """
    name = llm.info.reasoning_parser
    if name is None:
        return ReasoningUse()
    format = reasoning_format(name)
    effort = kwargs.get("reasoning_effort")
    is_enabled = format.is_enabled(kwargs, effort if isinstance(effort, str) else None)
    if not is_enabled and kwargs.get(format.toggle or "") is not None:
        return ReasoningUse()  # turned off; one that is off by itself may still be written
    tail = llm.decode(prompt_ids[-TAIL_TOKENS:])
    is_open = None if continued is None else _is_open(format, continued)
    if is_open is False or (is_open is None and tail.rstrip().endswith(format.think_end)):
        return ReasoningUse()
    starts_inside = is_open or format.starts_inside(tail)
    thought = await thought_of(
        llm, name, is_inside=starts_inside, is_strict=is_strict, budget=budget
    )
    return ReasoningUse(
        format=name,
        starts_inside=starts_inside,
        end_ids=thought.end_ids,
        call_id=thought.call_id,
        thought=thought if is_enabled else None,
    )


def _is_open(format: ReasoningFormat, text: str) -> bool | None:
    """Whether the reasoning is still going on at the end of ``text``; None if it has not begun."""
    if format.think_end in text:
        return False
    if format.think_start in text:
        return True
    return False if text.strip() else None


class ReasoningPiece(NamedTuple):
    """What one chunk brought, and the reasoning tokens so far.

    ``marked`` is the reasoning as it stood in the text, between its markers.
    """

    reasoning: str
    marked: str
    content: str
    num_tokens: int


class ReasoningReader:
    """Takes the reasoning of one answer out of its text, and counts its tokens."""

    def __init__(self, use: ReasoningUse, format: str) -> None:
        self._parser = ReasoningParser(
            format, starts_inside=use.starts_inside, ends_at_tool_call=use.ends_at_tool_call
        )
        self._end_ids = use.end_ids
        self._call_id = use.call_id if use.ends_at_tool_call else None
        self._is_streamed = use.is_streamed
        self._head = ""  # the text up to where a start marker would end
        self._held = ""  # reasoning, where it comes in one piece
        self._is_marked = use.starts_inside  # the prompt has the start marker already
        self._num_tokens = 0
        self._num_undecided = 0  # tokens before it is clear whether they are reasoning
        self._has_ended = False

    def push(self, chunk: TextChunk) -> ReasoningPiece:
        """The next piece of the answer."""
        is_last = chunk.finish is not None
        was_open = self._parser.is_reasoning
        reasoning, content = self._parser.push(chunk.text, is_last)
        is_open = self._parser.is_reasoning
        begins = self._begins(chunk.text)
        is_reasoning = begins or was_open or is_open or bool(reasoning)
        self._count(chunk.token_ids, is_reasoning, is_open)
        marked = self._with_markers(reasoning, is_open) if is_reasoning else ""
        if not self._is_streamed:
            reasoning, self._held = self._held + reasoning, ""
            if is_open and not is_last:
                reasoning, self._held = "", reasoning
        return ReasoningPiece(reasoning, marked, content, self._num_tokens)

    def _begins(self, text: str) -> bool:
        """Whether reasoning begins with this piece, though it may be empty."""
        start = self._parser.format.think_start
        if len(self._head) >= len(start):
            return False  # that was decided by an earlier piece
        self._head = (self._head + text).lstrip()
        return self._head.startswith(start)

    def _count(self, token_ids: Sequence[int], is_reasoning: bool, is_open: bool) -> None:
        if self._has_ended:
            return
        end = self._end_in(token_ids)
        self._num_undecided += len(token_ids) if end is None else end
        if is_reasoning:
            self._num_tokens += self._num_undecided
            self._num_undecided = 0
        self._has_ended = end is not None or (is_reasoning and not is_open)

    def _end_in(self, token_ids: Sequence[int]) -> int | None:
        """How many tokens are reasoning, if it ends among these: up to the end marker, or to what
        begins a tool call."""
        length = len(self._end_ids)
        for i, token_id in enumerate(token_ids):
            if token_id == self._call_id:
                return i
            if length and tuple(token_ids[max(0, i + 1 - length) : i + 1]) == self._end_ids:
                return i + 1
        return None

    def _with_markers(self, reasoning: str, is_open: bool) -> str:
        format = self._parser.format
        start = "" if self._is_marked else format.think_start
        self._is_marked = True
        return f"{start}{reasoning}{'' if is_open else format.think_end}"
