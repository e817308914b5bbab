"""Every shape in which an error leaves the server, and which error gets which.

SGLang's native and OpenAI endpoints answer errors differently; clients parse both.
"""

from http import HTTPStatus

import orjson
from aiohttp import web

from jaxserve.errors import InvalidRequestError, JaxserveError, OverloadedError
from jaxserve.sampling_dict import SamplingFieldError

CLIENT_CLOSED_REQUEST = 499  # nginx's code; only ever seen in metrics and the access log


class BodyError(InvalidRequestError):
    """The body is not what the endpoint takes at all: no JSON, a wrong type, a missing field."""


class FieldError(SamplingFieldError):
    """A native request with a field that cannot be decoded; reported as a bare string."""


class NotServingError(OverloadedError):
    """The model is still loading, or the server is shutting down."""


class AbortedError(JaxserveError):
    """The engine ended a sequence with an HTTP status of its own."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def json_response(payload: object, status: int = 200) -> web.Response:
    """``payload`` as JSON; NaN becomes null."""
    return web.Response(
        body=orjson.dumps(payload, option=orjson.OPT_NON_STR_KEYS),
        status=status,
        content_type="application/json",
    )


def flat_error(message: str, kind: str, code: int) -> dict[str, object]:
    """The OpenAI-style object, not wrapped in ``error``, as SGLang sends it."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


def openai_error(message: str, status: int) -> dict[str, object]:
    """The object of the /v1 endpoints for one status."""
    kinds = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}
    return flat_error(message, kinds.get(status, str(status)), status)


def native_stream_error(message: str, status: int) -> dict[str, object]:
    """The event that a native stream sends instead of tokens."""
    is_clients = status < HTTPStatus.INTERNAL_SERVER_ERROR
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error" if is_clients else "server_error",
            "code": status,
            "retryable": status == HTTPStatus.SERVICE_UNAVAILABLE,
        }
    }


def error_response(error: JaxserveError, *, is_openai: bool) -> web.Response:
    """The response of ``error`` on an OpenAI or a native endpoint."""
    status, message = error.status, str(error)
    if isinstance(error, BodyError):
        return json_response(flat_error(message, "Bad Request", status), status)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return json_response(flat_error(message, str(status), status), status)
    if is_openai:
        return json_response(openai_error(message, status), status)
    if isinstance(error, SamplingFieldError):
        return json_response({"error": message}, status)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return json_response(flat_error(message, str(status), status), status)
    return json_response({"error": {"message": message}}, status)
