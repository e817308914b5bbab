"""Request bodies: bytes → a JSON object, or the right refusal."""

from collections.abc import Mapping
from typing import TypeVar

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from jaxserve.errors import UnsupportedFeatureError
from jaxserve.server.http_errors import BodyError

JsonObject = dict[str, object]
Body = TypeVar("Body", bound=BaseModel)


async def read_object(request: web.Request) -> JsonObject:
    """The body as a JSON object.

    Raises:
        BodyError: it is not JSON (NaN and Infinity are not), not an object, or badly encoded.
        web.HTTPRequestEntityTooLarge: it is longer than ``max_body_bytes``.
    """
    try:
        raw = await request.read()
    except web.RequestPayloadError:
        raise BodyError(
            "The body cannot be read: it is not what its Content-Encoding or Transfer-Encoding says"
        ) from None
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        detail = [{"type": "json_invalid", "loc": ("body", error.pos), "msg": f"JSON: {error.msg}"}]
        raise BodyError(str(detail)) from None
    if not isinstance(body, dict):
        raise BodyError(
            str([{"type": "model_attributes_type", "loc": ("body",), "msg": "Expected an object"}])
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
    try:
        return model.model_validate({k: v for k, v in body.items() if v is not None})
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise BodyError(str([{**e, "loc": ("body", *e["loc"])} for e in details])) from None


def refuse_unsupported(body: Mapping[str, object], unsupported: Mapping[str, str]) -> None:
    """Refuse known fields whose value asks for something that is not built.

    Args:
        unsupported: field name → what it would need.

    Raises:
        UnsupportedFeatureError: names the field.
    """
    for name in unsupported.keys() & body.keys():
        if _asks_for_something(body[name]):
            raise UnsupportedFeatureError(
                f"`{name}` is not supported: {unsupported[name]}. Leave it away or send null."
            )


def _asks_for_something(value: object) -> bool:
    if isinstance(value, list):
        return any(_asks_for_something(item) or item == 0 for item in value)  # 0: a token id
    return bool(value)
