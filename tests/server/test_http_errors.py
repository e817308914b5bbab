"""The shapes of errors, one dialect after the other, as clients of each parse them."""

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM

from jaxserve.config import ServerConfig
from jaxserve.errors import InvalidRequestError, JaxserveError, OverloadedError
from jaxserve.native_fields import SamplingFieldError
from jaxserve.server.http_errors import (
    BodyError,
    BodyTooLargeError,
    Dialect,
    NotImplementedHereError,
    error_object,
)


def flat(kind: str, code: int) -> dict:
    return {"object": "error", "message": "m", "type": kind, "param": None, "code": code}


def nested(kind: str, code: int) -> dict:
    return {"error": {"message": "m", "type": kind, "param": None, "code": code}}


def anthropic(kind: str) -> dict:
    return {"type": "error", "error": {"type": kind, "message": "m"}}


NATIVE, OPENAI, RESPONSES, MESSAGES_API = (
    Dialect.NATIVE,
    Dialect.OPENAI,
    Dialect.RESPONSES,
    Dialect.MESSAGES,
)


@pytest.mark.parametrize(
    ("error", "dialect", "expected"),
    [
        (InvalidRequestError, NATIVE, {"error": {"message": "m"}}),
        (SamplingFieldError, NATIVE, {"error": "m"}),
        (BodyError, NATIVE, flat("Bad Request", 400)),
        (BodyTooLargeError, NATIVE, flat("Request Entity Too Large", 413)),
        (OverloadedError, NATIVE, flat("503", 503)),
        (JaxserveError, NATIVE, flat("500", 500)),
        (NotImplementedHereError, NATIVE, flat("501", 501)),
        (InvalidRequestError, OPENAI, flat("BadRequestError", 400)),
        (BodyError, OPENAI, flat("Bad Request", 400)),
        (BodyTooLargeError, OPENAI, flat("Request Entity Too Large", 413)),
        (OverloadedError, OPENAI, flat("503", 503)),
        (JaxserveError, OPENAI, flat("InternalServerError", 500)),
        (NotImplementedHereError, OPENAI, flat("NotImplementedError", 501)),
        (InvalidRequestError, RESPONSES, nested("invalid_request_error", 400)),
        (BodyError, RESPONSES, nested("invalid_request_error", 400)),
        (JaxserveError, RESPONSES, nested("server_error", 500)),
        (InvalidRequestError, MESSAGES_API, anthropic("invalid_request_error")),
        (BodyError, MESSAGES_API, anthropic("invalid_request_error")),
        (BodyTooLargeError, MESSAGES_API, anthropic("request_too_large")),
        (OverloadedError, MESSAGES_API, anthropic("overloaded_error")),
        (JaxserveError, MESSAGES_API, anthropic("api_error")),
        (InvalidRequestError, Dialect.OLLAMA, {"error": "m"}),
        (JaxserveError, Dialect.OLLAMA, {"error": "m"}),
    ],
)
def test_every_error_in_every_dialect(
    error: type[JaxserveError], dialect: Dialect, expected: dict
) -> None:
    assert error_object(error("m"), dialect) == expected


MESSAGES = [{"role": "user", "content": "a"}]
BODIES = {
    "/generate": {"text": "a"},
    "/v1/completions": {"prompt": "a"},
    "/invocations": {"messages": MESSAGES},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"model": "m", "messages": MESSAGES, "max_tokens": 5},
    "/api/chat": {"model": "m", "messages": MESSAGES, "stream": False},
}
PATHS = {
    "/generate": NATIVE,
    "/v1/completions": OPENAI,
    "/invocations": OPENAI,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES_API,
    "/api/chat": Dialect.OLLAMA,
}


@pytest.mark.parametrize("config", [ServerConfig(max_body_bytes=100)])
@pytest.mark.parametrize("path", PATHS)
async def test_what_the_server_itself_refuses_speaks_the_dialect(
    client: TestClient, path: str
) -> None:
    response = await client.post(path, json={"text": "a" * 100})
    assert response.status == 413
    message = "The request body is longer than the limit of 100 bytes (--max-body-bytes)."
    assert await response.json() == error_object(BodyTooLargeError(message), PATHS[path])


@pytest.mark.parametrize("path", PATHS)
async def test_what_nobody_foresaw_speaks_the_dialect(
    client: TestClient, llm: FakeLLM, path: str
) -> None:
    async def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    llm.submit = llm.render_chat = llm.encode = fail
    response = await client.post(path, json=BODIES[path])
    assert response.status == 500
    internal = JaxserveError("Internal server error; see the server's log.")
    assert await response.json() == error_object(internal, PATHS[path])


async def test_a_header_that_is_too_long(client: TestClient) -> None:
    response = await client.get("/health", headers={"X-Long": "a" * 9000})
    assert response.status == 400
    assert (await client.get("/health")).status == 200
