"""The rows of OpenAI's responses API."""

from typing import Literal

from pydantic import BaseModel, Field

from jaxserve.server import responses
from jaxserve.server.foreign_answers import (
    DeletedResponse,
    InputItemList,
    InputTokenCount,
    ResponseObject,
)
from jaxserve.server.http_errors import Dialect
from jaxserve.server.responses_types import RESPONSES_UNSUPPORTED, ResponsesBody
from jaxserve.server.route import EVENTS, Route, Status

_STORED = "Needs `--enable-response-store`: the last 10 000 responses (at most 256 MiB) are kept."


class _GetQuery(BaseModel):
    stream: Literal[False] = Field(False, description="Events are not kept.")


class _ListQuery(BaseModel):
    limit: int = Field(
        responses.DEFAULT_LISTED_ITEMS,
        ge=1,
        le=responses.MAX_LISTED_ITEMS,
        description="Items of one page.",
    )
    order: Literal["asc", "desc"] = "desc"
    after: str | None = Field(None, description="The id of the item before the page.")


ROUTES = (
    Route(
        methods=("POST",), path="/v1/responses", handler=responses.create_response,
        dialect=Dialect.RESPONSES, starts_work=True, body=ResponsesBody,
        refuses=RESPONSES_UNSUPPORTED,
        answer=ResponseObject, summary="Answer a conversation, in OpenAI's newer API.",
        media_types=("application/json", EVENTS), status=Status.DIFFERS,
        why="A stream ends with its last event, as OpenAI's does, without `[DONE]`. Tools are "
        "functions only. `background` needs `--enable-response-store` and cannot stream. Reasoning "
        "is in the reasoning items' `content`; `encrypted_content` is the same text in base64. "
        "`text.verbosity` and summaries other than `auto` are a 400.",
    ),
    Route(
        methods=("POST",), path="/v1/responses/input_tokens",
        handler=responses.count_input_tokens, dialect=Dialect.RESPONSES, body=ResponsesBody,
        refuses=RESPONSES_UNSUPPORTED,
        answer=InputTokenCount, summary="How many tokens the prompt of such a request has.",
        status=Status.ADDED,
    ),
    Route(
        methods=("GET",), path="/v1/responses/{id}", handler=responses.get_response,
        dialect=Dialect.RESPONSES, answer=ResponseObject, summary="A stored response.",
        status=Status.DIFFERS,
        why=f"{_STORED} `stream` is a 400.", query=_GetQuery,
    ),
    Route(
        methods=("DELETE",), path="/v1/responses/{id}", handler=responses.delete_response,
        dialect=Dialect.RESPONSES, answer=DeletedResponse, summary="Forget a stored response.",
        status=Status.ADDED,
    ),
    Route(
        methods=("POST",), path="/v1/responses/{id}/cancel", handler=responses.cancel_response,
        dialect=Dialect.RESPONSES, answer=ResponseObject, summary="End a background response.",
        status=Status.DIFFERS,
        why="Ends the generation itself, at once.",
    ),
    Route(
        methods=("GET",), path="/v1/responses/{id}/input_items",
        handler=responses.list_input_items, dialect=Dialect.RESPONSES, answer=InputItemList,
        summary="The input of a stored response.", status=Status.ADDED,
        query=_ListQuery,
    ),
)  # fmt: skip
