"""Request bodies: bytes → a JSON object, or the right refusal."""

import asyncio
from collections.abc import Mapping
from typing import TypeVar

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from jaxserve.errors import UnsupportedFeatureError
from jaxserve.native_fields import asks_for_something
from jaxserve.server.http_errors import BodyError
from jaxserve.server.limits import MAX_NESTING, is_too_deep

JsonObject = dict[str, object]
Body = TypeVar("Body", bound=BaseModel)
LONG_BODY_BYTES = 2**20  # longer ones are decoded in a thread: the event loop goes on


async def read_object(request: web.Request) -> JsonObject:
    """The body as a JSON object.

    Raises:
        BodyError: it is not JSON (NaN and Infinity are not), not an object, badly encoded or nested
            too deep.
        web.HTTPRequestEntityTooLarge: it is longer than ``max_body_bytes``.
    """
    raw = await _read(request)
    long = len(raw) > LONG_BODY_BYTES
    body = await asyncio.to_thread(_decode, raw) if long else _decode(raw)
    if not isinstance(body, dict):
        raise BodyError(
            str([{"type": "model_attributes_type", "loc": ("body",), "msg": "Expected an object"}])
        )
    return body


async def read_optional_object(request: web.Request) -> JsonObject:
    """As ``read_object``, where nothing, or JSON's null, is the same as ``{}``.

    Raises:
        BodyError: as ``read_object``.
    """
    if (await _read(request)).strip() in (b"", b"null"):
        return {}
    return await read_object(request)


async def _read(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.RequestPayloadError:
        raise BodyError(
            "The body cannot be read: it is not what its Content-Encoding or Transfer-Encoding "
            "says; send it as it is, without them, or encoded so"
        ) from None


def _decode(raw: bytes) -> object:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        detail = [{"type": "json_invalid", "loc": ("body", error.pos), "msg": f"JSON: {error.msg}"}]
        raise BodyError(str(detail)) from None
    if is_too_deep(raw):
        raise BodyError(
            f"The body is nested too deep: at most {MAX_NESTING} levels of objects and arrays"
        )
    return body


async def read_v1_object(request: web.Request) -> JsonObject:
    """As ``read_object``, for /v1 endpoints: the media type must say JSON.

    Raises:
        BodyError: also if Content-Type is not application/json.
    """
    if request.content_type != "application/json":
        raise BodyError("Unsupported Media Type: Only 'application/json' is allowed")
    return await read_object(request)


def parse(model: type[Body], body: Mapping[str, object]) -> Body:
    """Validate ``body``; a null is the same as an absent field.

    Raises:
        BodyError: fields that are missing or of the wrong type, all of them in one message.
    """
    return _validate(model, {k: v for k, v in body.items() if v is not None}, "body")


def parse_query(model: type[Body], request: web.Request) -> Body:
    """Validate what stands behind the ``?`` of ``request``.

    Raises:
        BodyError: as ``parse``.
    """
    return _validate(model, dict(request.query), "query")


def _validate(model: type[Body], fields: Mapping[str, object], where: str) -> Body:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise BodyError(str([{**e, "loc": (where, *e["loc"])} for e in details])) from None


def refuse_unsupported(body: Mapping[str, object], unsupported: Mapping[str, str]) -> None:
    """Refuse known fields whose value asks for something that is not built.

    Args:
        unsupported: field name → what it would need.

    Raises:
        UnsupportedFeatureError: names the field.
    """
    for name in unsupported.keys() & body.keys():
        if asks_for_something(body[name]):
            raise UnsupportedFeatureError(
                f"`{name}` is not supported: {unsupported[name]}. Leave it away or send null."
            )
