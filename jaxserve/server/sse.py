"""Server-sent events."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import orjson
from aiohttp import ClientConnectionResetError, web

from jaxserve.errors import JaxserveError

DONE = b"data: [DONE]\n\n"


def event(payload: object) -> bytes:
    """One event whose data is ``payload`` as JSON."""
    return b"data: %b\n\n" % orjson.dumps(payload)


async def send_events(
    request: web.Request,
    events: AsyncGenerator[bytes, None],
    error_event: Callable[[JaxserveError], bytes],
    *,
    end: bytes = DONE,
    media_type: str = "text/event-stream; charset=utf-8",
) -> web.StreamResponse:
    """Answer 200 and write each item of ``events``, whole events, in one write, then ``end``.

    An error of ours in ``events`` becomes the last event, ``error_event`` of it.
    ``events`` is closed in every case.  A client that has gone ends it early and quietly.
    """
    response = web.StreamResponse(headers={"Content-Type": media_type, "Cache-Control": "no-cache"})
    async with aclosing(events):
        try:
            await response.prepare(request)
            try:
                async for data in events:
                    await response.write(data)
            except JaxserveError as error:
                await response.write(error_event(error))
            if end:
                await response.write(end)
            await response.write_eof()
        except ClientConnectionResetError:
            return response
    return response
