"""Server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson
from aiohttp import ClientConnectionResetError, web

DONE = b"data: [DONE]\n\n"


def event(payload: object) -> bytes:
    """One event whose data is ``payload`` as JSON."""
    return b"data: %b\n\n" % orjson.dumps(payload)


async def send_events(
    request: web.Request, events: AsyncGenerator[bytes, None]
) -> web.StreamResponse:
    """Answer 200 and write each item of ``events``, whole events, in one write, then ``DONE``.

    ``events`` is closed in every case.  A client that has gone ends it early and quietly.
    """
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    async with aclosing(events):
        try:
            await response.prepare(request)
            async for data in events:
                await response.write(data)
            await response.write(DONE)
            await response.write_eof()
        except ClientConnectionResetError:
            return response
    return response
