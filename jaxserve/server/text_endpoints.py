"""Text without generating: tokenize, detokenize, and the parsers of tool calls and reasoning."""

import asyncio
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, Field

from jaxserve.errors import InvalidRequestError
from jaxserve.parsers import ReasoningParser, ToolCallParser
from jaxserve.request import check_in_vocabulary
from jaxserve.server.chat_messages import is_continued, template_messages
from jaxserve.server.chat_reasoning import template_kwargs
from jaxserve.server.chat_types import NO_EFFORT
from jaxserve.server.http_errors import json_response
from jaxserve.server.json_body import JsonObject, parse, read_object, read_v1_object
from jaxserve.server.state import STATE, ServerState

INLINE_TOKENS = 4096  # more are decoded off the event loop
AUTO = "auto"


class TokenizeBody(BaseModel):
    """POST /tokenize, /v1/tokenize: exactly one of `prompt` and `messages`."""

    model: str = "default"
    prompt: str | list[str] | None = None
    messages: list[JsonObject] | None = None
    add_special_tokens: Annotated[
        bool, Field(description="Of a prompt; a chat template writes its own.")
    ] = True
    tools: list[JsonObject] | None = None
    tool_choice: str | JsonObject = "auto"
    reasoning_effort: str | None = None
    chat_template_kwargs: JsonObject = {}
    continue_final_message: bool = False
    add_generation_prompt: bool = True


class TokenizeAnswer(BaseModel):
    """A list of prompts has a list of lists, and a list of counts."""

    tokens: list[int] | list[list[int]]
    count: int | list[int]
    max_model_len: int


class DetokenizeBody(BaseModel):
    """POST /detokenize, /v1/detokenize."""

    model: str = "default"
    tokens: list[int] | list[list[int]]
    skip_special_tokens: bool = True


class DetokenizeAnswer(BaseModel):
    """A list of token lists has a list of texts."""

    text: str | list[str]


class FunctionCallBody(BaseModel):
    """POST /parse_function_call."""

    text: str
    tools: list[JsonObject] = []
    tool_call_parser: Annotated[
        str | None, Field(description="auto or none: what the server was launched with.")
    ] = None


class SeparateReasoningBody(BaseModel):
    """POST /separate_reasoning."""

    text: str
    reasoning_parser: Annotated[
        str | None, Field(description="auto or none: what the server was launched with.")
    ] = None
    return_blocks: Annotated[
        bool, Field(description="Adds the reasoning and the text as lists of blocks.")
    ] = False


async def tokenize(request: web.Request) -> web.Response:
    """POST /tokenize, /v1/tokenize."""
    state = request.app[STATE]
    body = parse(TokenizeBody, await _object(request))
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("Exactly one of 'prompt' or 'messages' must be provided.")
    tokens = await _tokens(state, body)
    counts = [len(token_ids) for token_ids in tokens]
    is_list = isinstance(body.prompt, list)
    return json_response(
        {
            "tokens": tokens if is_list else tokens[0],
            "count": counts if is_list else counts[0],
            "max_model_len": state.llm.info.context_len,
        }
    )


async def _tokens(state: ServerState, body: TokenizeBody) -> list[list[int]]:
    llm = state.llm
    if body.prompt is not None:
        texts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        special = body.add_special_tokens
        return [
            list(await llm.encode(text, add_special_tokens=special, is_prompt=False))
            for text in texts
        ]
    effort = None if body.reasoning_effort is None else body.reasoning_effort.lower()
    kwargs = template_kwargs(
        state.config.default_chat_template_kwargs or {},
        effort=effort,
        wants_reasoning=False if effort == NO_EFFORT else None,
        own=body.chat_template_kwargs,
    )
    messages = body.messages or []
    token_ids = await llm.render_chat(
        template_messages(messages),
        tools=None if body.tool_choice == "none" else body.tools,
        chat_template_kwargs=kwargs,
        continue_final_message=is_continued(messages, body.continue_final_message),
        add_generation_prompt=body.add_generation_prompt,
        is_prompt=False,
    )
    return [list(token_ids)]


async def detokenize(request: web.Request) -> web.Response:
    """POST /detokenize, /v1/detokenize."""
    llm = request.app[STATE].llm
    body = parse(DetokenizeBody, await _object(request))
    is_list = bool(body.tokens) and isinstance(body.tokens[0], list)
    lists = [item if isinstance(item, list) else [item] for item in body.tokens]
    each = lists if is_list else [[token for item in lists for token in item]]
    for token_ids in each:
        check_in_vocabulary(token_ids, llm.info.vocab_size, field="tokens")

    def decode() -> list[str]:
        skip = body.skip_special_tokens
        return [llm.decode(token_ids, skip_special_tokens=skip) for token_ids in each]

    is_long = sum(map(len, each)) > INLINE_TOKENS
    texts = await asyncio.to_thread(decode) if is_long else decode()
    return json_response({"text": texts if is_list else texts[0]})


async def parse_function_call(request: web.Request) -> web.Response:
    """POST /parse_function_call: the calls in a text, and the text outside them."""
    body = parse(FunctionCallBody, await read_object(request))
    of_server = request.app[STATE].llm.info.tool_call_parser
    name = _named("tool_call_parser", body.tool_call_parser, of_server)
    parsed = ToolCallParser(name, body.tools).parse(body.text)
    calls = [
        {"tool_index": call.tool_index, "name": call.name, "parameters": call.arguments}
        for call in parsed.calls
    ]
    return json_response({"normal_text": parsed.content, "calls": calls})


async def separate_reasoning(request: web.Request) -> web.Response:
    """POST /separate_reasoning: the reasoning in a text, and the rest."""
    body = parse(SeparateReasoningBody, await read_object(request))
    of_server = request.app[STATE].llm.info.reasoning_parser
    name = _named("reasoning_parser", body.reasoning_parser, of_server)
    reasoning, text = ReasoningParser(name).push(body.text, is_last=True)
    answer: JsonObject = {"reasoning_text": reasoning, "text": text}
    if body.return_blocks:
        blocks = [{"type": "reasoning", "text": reasoning}, {"type": "text", "text": text}]
        answer |= {
            "reasoning_blocks": [reasoning] if reasoning else [],
            "text_blocks": [text] if text else [],
            "blocks": [block for block in blocks if block["text"]],
        }
    return json_response(answer)


def _named(field: str, name: str | None, of_server: str | None) -> str:
    if name is not None and name != AUTO:
        return name
    if of_server is None:
        raise InvalidRequestError(
            f"{field} is missing, and the server was launched without "
            f"--{field.replace('_', '-')}; name one."
        )
    return of_server


async def _object(request: web.Request) -> JsonObject:
    is_v1 = request.path.startswith("/v1/")
    return await (read_v1_object(request) if is_v1 else read_object(request))
