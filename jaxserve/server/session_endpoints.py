"""Sessions, pausing, and what SGLang's frontend calls beside /generate."""

from aiohttp import web
from pydantic import BaseModel, Field

from jaxserve.request import MAX_RID_CHARS, PAUSE_MODES
from jaxserve.server.http_errors import BodyError, json_response
from jaxserve.server.json_body import JsonObject, parse, read_optional_object
from jaxserve.server.state import STATE


class OpenSessionBody(BaseModel):
    """GET or POST /open_session."""

    capacity_of_str_len: int = Field(
        description="The most tokens that a prompt of the session may have, those it continues "
        "included; SGLang takes the number and does not look at it."
    )
    session_id: str | None = Field(default=None, max_length=MAX_RID_CHARS)
    streaming: bool = Field(
        default=False,
        description="Every prompt goes on from the last request that was answered, one at a time. "
        "Its prefixes stay in the prefix cache as long as there is room, as any session's.",
    )
    timeout: float | None = Field(
        default=None, description="The session closes after so many seconds without a request."
    )


class CloseSessionBody(BaseModel):
    """GET or POST /close_session; unknown ids are ignored."""

    session_id: str


class PauseBody(BaseModel):
    """POST /pause_generation."""

    mode: str = Field(
        default="abort",
        description="abort ends everything; retract puts what runs back into the queue and frees "
        "its KV; in_place freezes it. New requests are taken and wait.",
    )


async def open_session(request: web.Request) -> web.Response:
    """GET or POST /open_session: the session's id, a bare JSON string."""
    body = parse(OpenSessionBody, await _fields(request))
    session_id = request.app[STATE].llm.open_session(
        body.capacity_of_str_len,
        session_id=body.session_id,
        timeout_s=body.timeout,
        is_streaming=body.streaming,
    )
    return json_response(session_id)


async def close_session(request: web.Request) -> web.Response:
    """GET or POST /close_session: 200, empty, whether there was one or not."""
    body = parse(CloseSessionBody, await _fields(request))
    request.app[STATE].llm.close_session(body.session_id)
    return web.Response()


async def pause_generation(request: web.Request) -> web.Response:
    """POST /pause_generation."""
    mode = parse(PauseBody, await _fields(request)).mode
    if mode not in PAUSE_MODES:
        raise BodyError(f"mode must be one of {', '.join(PAUSE_MODES)}; got {mode!r}")
    await request.app[STATE].llm.pause(mode)
    return json_response({"message": "Generation paused successfully.", "status": "ok"})


async def continue_generation(request: web.Request) -> web.Response:
    """POST /continue_generation; torch_empty_cache has nothing to empty here."""
    await _fields(request)
    await request.app[STATE].llm.resume()
    return json_response({"message": "Generation continued successfully.", "status": "ok"})


async def concate_and_append_request(request: web.Request) -> web.Response:
    """POST /concate_and_append_request: 200, empty.

    SGLang's frontend posts it when forks are joined, to no server's knowledge; the joined text
    comes with its next /generate, whose prefixes the cache has.
    """
    await _fields(request)
    return web.Response()


async def _fields(request: web.Request) -> JsonObject:
    """The body, which clients of these endpoints leave away or put into the query."""
    return await read_optional_object(request) or dict(request.query)
