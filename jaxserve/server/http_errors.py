"""Every shape in which an error leaves the server, and which error gets which.

The APIs answer errors differently, and clients parse them: a route names its ``Dialect``.
"""

from enum import Enum
from http import HTTPStatus

import orjson
from aiohttp import web

from jaxserve.errors import InvalidRequestError, JaxserveError, OverloadedError
from jaxserve.native_fields import SamplingFieldError

CLIENT_CLOSED_REQUEST = 499  # nginx's code; only ever seen in metrics and the access log


class Dialect(Enum):
    """Whose shape of an error an endpoint answers with."""

    NATIVE = "SGLang's native API"
    OPENAI = "OpenAI's API, flat as SGLang sends it"
    RESPONSES = "OpenAI's responses API"
    MESSAGES = "Anthropic's messages API"
    OLLAMA = "Ollama's API"


class BodyError(InvalidRequestError):
    """The body is not what the endpoint takes at all: no JSON, a wrong type, a missing field."""


class BodyTooLargeError(InvalidRequestError):
    """The body is longer than ``--max-body-bytes``."""

    status = 413


class NotServingError(OverloadedError):
    """The model is still loading, or the server is shutting down."""


class NotImplementedHereError(JaxserveError):
    """A whole endpoint whose capability is not built."""

    status = 501


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


_OPENAI_KINDS = {
    400: "BadRequestError",
    404: "NotFoundError",
    413: "Request Entity Too Large",
    500: "InternalServerError",
    501: "NotImplementedError",
}


def openai_error(message: str, status: int) -> dict[str, object]:
    """The object of OpenAI's endpoints for one status."""
    return flat_error(message, _OPENAI_KINDS.get(status, str(status)), status)


def responses_error(message: str, status: int) -> dict[str, object]:
    """The object of /v1/responses for one status."""
    is_clients = status < HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "invalid_request_error" if is_clients else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


_MESSAGES_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}


def messages_error(message: str, status: int) -> dict[str, object]:
    """The object of /v1/messages for one status."""
    kind = _MESSAGES_KINDS.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def ollama_error(message: str) -> dict[str, object]:
    """The object of Ollama's endpoints."""
    return {"error": message}


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


def error_response(error: JaxserveError, dialect: Dialect) -> web.Response:
    """The response of ``error`` on an endpoint that speaks ``dialect``."""
    return json_response(error_object(error, dialect), error.status)


def error_object(error: JaxserveError, dialect: Dialect) -> dict[str, object]:
    """What ``error`` is in JSON on an endpoint that speaks ``dialect``."""
    status, message = error.status, str(error)
    match dialect:
        case Dialect.RESPONSES:
            return responses_error(message, status)
        case Dialect.MESSAGES:
            return messages_error(message, status)
        case Dialect.OLLAMA:
            return ollama_error(message)
    if isinstance(error, BodyError):
        return flat_error(message, "Bad Request", status)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return flat_error(message, str(status), status)
    return openai_error(message, status) if dialect is Dialect.OPENAI else _native(error, message)


def _native(error: JaxserveError, message: str) -> dict[str, object]:
    if isinstance(error, SamplingFieldError):
        return {"error": message}
    if isinstance(error, BodyTooLargeError):
        return openai_error(message, error.status)
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return flat_error(message, str(error.status), error.status)
    return {"error": {"message": message}}
