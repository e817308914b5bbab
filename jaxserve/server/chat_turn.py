"""One turn of a conversation, in no API's dialect: a ``ChatBody`` in, its answer in deltas out.

Chat completions, responses, Anthropic's messages and Ollama's chat are all written on top of it::

    with OpenStreams() as opened:
        turn = await open_turn(state, body, opened)
        async for delta in turn.deltas(interval): ...     # or: await turn.answers()
"""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from jaxserve.request import SamplingParams, check_in_vocabulary
from jaxserve.server.chat_delta import ChatAnswer, Delta
from jaxserve.server.chat_messages import is_continued, template_messages
from jaxserve.server.chat_reader import ChoiceReader
from jaxserve.server.chat_reasoning import ReasoningUse, reasoning_of_prompt, template_kwargs
from jaxserve.server.chat_tools import ToolUse, tool_use
from jaxserve.server.chat_types import ChatBody
from jaxserve.server.json_body import JsonObject
from jaxserve.server.openai_types import sampling_defaults
from jaxserve.server.state import OpenStreams, ServerState
from jaxserve.server.streams import check_not_failed, merge, results


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn that is being generated; read it once, by ``deltas`` or by ``answers``."""

    body: ChatBody
    rid: str
    created: int  # seconds since 1970
    opened: OpenStreams
    reasoning: ReasoningUse
    tools: ToolUse

    @property
    def num_choices(self) -> int:
        return len(self.opened.streams)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.opened.streams[0].prompt_ids

    async def deltas(self, interval: int = 1) -> AsyncGenerator[Delta, None]:
        """What is new, per choice, as it comes; the last of a choice has a ``finish``.

        Args:
            interval: tokens per delta.

        Raises:
            JaxserveError: the engine gave a sequence up.
        """
        readers = [self._reader(i) for i in range(self.num_choices)]
        if len(readers) == 1 and interval == 1:  # one generator less per token
            push = readers[0].push
            async for chunk in self.opened.streams[0]:
                if chunk.finish is not None:
                    check_not_failed(chunk.finish)
                yield push(chunk)
            return
        chunks = merge(self.opened.streams, interval)
        async with aclosing(chunks):
            async for i, chunk in chunks:
                check_not_failed(chunk.finish)
                yield readers[i].push(chunk)

    async def answers(self) -> list[ChatAnswer]:
        """All choices, whole.

        Raises:
            JaxserveError: the engine gave a sequence up.
        """
        return [
            ChatAnswer.of(self._reader(i).push(chunk))
            async for i, chunk in results(self.opened.streams)
        ]

    def _reader(self, choice: int) -> ChoiceReader:
        return ChoiceReader(choice, self.reasoning, self.tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    """A rendered body."""

    ids: tuple[int, ...]
    kwargs: JsonObject
    tools: ToolUse


async def open_turn(
    state: ServerState, body: ChatBody, opened: OpenStreams, *, clamps: bool = False
) -> Turn:
    """Check ``body`` and start to generate; ``opened`` owns the streams.

    Args:
        clamps: shorten the token limit to what fits instead of refusing it.

    Raises:
        InvalidRequestError: the body cannot be answered; the message names the field.
        OverloadedError: the queue is full.
    """
    llm = state.llm
    is_strict = state.config.enable_strict_thinking
    body.check(llm.info.context_len, clamps=clamps, is_strict=is_strict)
    defaults = sampling_defaults(state.config.sampling_defaults, llm.info.generation_defaults)
    params = body.sampling_params(body.max_new_tokens, body.num_logprobs, defaults)
    prompt = await _render(state, body)
    reasoning = replace(
        await reasoning_of_prompt(
            llm,
            prompt.ids,
            prompt.kwargs,
            _continued(body),
            is_strict=is_strict,
            budget=body.thinking_budget,
        ),
        is_separate=body.separate_reasoning,
        is_streamed=body.stream_reasoning,
        ends_at_tool_call=prompt.tools.is_read,
    )
    rid = body.rid or uuid.uuid4().hex
    await opened.add(
        llm.submit(
            prompt.ids,
            _constrained(params, prompt.tools, reasoning),
            rid=rid,
            n=body.n,
            priority=body.priority,
            clamp_max_new_tokens=clamps,
            cache_namespace=body.cache_namespace,
            session=body.session,
        )
    )
    return Turn(
        body=body, rid=rid, created=int(time.time()), opened=opened, reasoning=reasoning,
        tools=prompt.tools,
    )  # fmt: skip


async def render_only(
    state: ServerState, body: ChatBody, *, is_prompt: bool = False
) -> tuple[int, ...]:
    """The prompt that ``body`` would be answered with.

    Args:
        is_prompt: what is too long for that need not be read; else it is.

    Raises:
        InvalidRequestError: the messages cannot be rendered.
        ContextLengthError: they are so long that they need not be read.
    """
    return (await _render(state, body, is_prompt=is_prompt)).ids


async def _render(state: ServerState, body: ChatBody, *, is_prompt: bool = True) -> _Prompt:
    tools = tool_use(
        body.tools,
        body.tool_choice,
        parallel=body.parallel_tool_calls,
        parser=state.llm.info.tool_call_parser,
        messages=body.messages,
    )
    kwargs = template_kwargs(
        state.config.default_chat_template_kwargs or {},
        effort=body.effort,
        wants_reasoning=body.wants_reasoning,
        own=body.chat_template_kwargs,
    )
    if body.input_ids:  # here already: their end is decoded, to see how the answer begins
        check_in_vocabulary(body.input_ids, state.llm.info.vocab_size)
    ids = tuple(body.input_ids) or await state.llm.render_chat(
        template_messages(body.messages),
        tools=list(tools.tools) or None,
        chat_template_kwargs=kwargs,
        continue_final_message=is_continued(body.messages, body.continue_final_message),
        is_prompt=is_prompt,
    )
    return _Prompt(ids=ids, kwargs=kwargs, tools=tools)


def _continued(body: ChatBody) -> str | None:
    """The text of the message that is to be continued."""
    if not is_continued(body.messages, body.continue_final_message):
        return None
    content = body.messages[-1].get("content")
    return content if isinstance(content, str) else ""


def _constrained(params: SamplingParams, tools: ToolUse, reasoning: ReasoningUse) -> SamplingParams:
    """With the one grammar there is, from the end of the reasoning on."""
    keeps_special = reasoning.needs_special_tokens or tools.needs_special_tokens
    grammar = params.grammar or tools.grammar
    thought = reasoning.thought
    if grammar is None and not (thought is not None and thought.is_limited):
        thought = None  # anything may come in it, and after it
    if grammar is None and thought is None and not keeps_special:
        return params  # a copy costs a validation
    if params.grammar is not None and tools.is_read:
        grammar = tools.or_calls(params.grammar)
    return replace(
        params,
        grammar=grammar,
        thought=thought,
        skip_special_tokens=params.skip_special_tokens and not keeps_special,
    )
