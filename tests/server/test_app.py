"""What every request passes through: bodies, errors, keys, phases, CORS, the access log."""

import asyncio
import logging

import pytest
from aiohttp import ClientPayloadError
from aiohttp.test_utils import TestClient, TestServer
from server.fake_llm import FakeLLM

from jaxserve.config import ServerConfig
from jaxserve.request import SamplingParams
from jaxserve.server.app import AccessLogger, make_app
from jaxserve.server.state import STATE

GOOD = {"text": "a", "sampling_params": {"max_new_tokens": 1}}


async def post_raw(client: TestClient, path: str, data: bytes) -> tuple[int, dict]:
    response = await client.post(path, data=data, headers={"Content-Type": "application/json"})
    return response.status, await response.json()


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "json_invalid"),
        (b"{", "json_invalid"),
        (b'{"text": "a", "sampling_params": {"temperature": NaN}}', "json_invalid"),
        (b'{"text": Infinity}', "json_invalid"),
        (b'{"text": "\xff\xfe"}', "json_invalid"),
        (b"[" * 100_000, "json_invalid"),
        (b"[1]", "Expected an object"),
        (b'"a"', "Expected an object"),
        (b"null", "Expected an object"),
    ],
)
async def test_a_malformed_body(client: TestClient, path: str, data: bytes, word: str) -> None:
    status, answer = await post_raw(client, path, data)
    assert status == 400
    assert word in answer.pop("message")
    assert answer == {"object": "error", "type": "Bad Request", "param": None, "code": 400}
    assert (await client.post("/generate", json=GOOD)).status == 200


async def test_the_header_of_a_rank_that_is_not_there(client: TestClient, llm: FakeLLM) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    for path, body in (("/generate", GOOD), ("/v1/chat/completions", chat)):
        for rank, status in (("0", 200), ("1", 400), ("x", 400)):
            headers = {"x-data-parallel-rank": rank}
            response = await client.post(path, json=body, headers=headers)
            assert response.status == status
        assert "there is one engine, of rank 0" in await response.text()
    assert len(llm.submitted) == 2


@pytest.mark.parametrize("config", [ServerConfig(max_body_bytes=1000)])
async def test_a_body_over_the_limit(client: TestClient) -> None:
    for path in ("/generate", "/v1/completions"):
        status, answer = await post_raw(client, path, b'{"text": "%b"}' % (b"a" * 1000))
        assert status == 413
        assert answer == {
            "object": "error",
            "message": "The request body is longer than the limit of 1000 bytes "
            "(--max-body-bytes).",
            "type": "Request Entity Too Large",
            "param": None,
            "code": 413,
        }
    assert (await client.post("/generate", json=GOOD)).status == 200


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
async def test_a_body_that_is_not_what_its_encoding_says(client: TestClient, path: str) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    response = await client.post(path, data=b"not gzip", headers=headers)
    assert response.status == 400
    assert "not what its Content-Encoding" in (await response.json())["message"]


async def test_v1_takes_only_json(client: TestClient) -> None:
    body = b'{"prompt": "a"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = await client.post("/v1/completions", data=body, headers={"Content-Type": kind})
        assert response.status == 400
        message = (await response.json())["message"]
        assert "Unsupported Media Type: Only 'application/json' is allowed" in message
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert (await client.post("/v1/completions", data=body, headers=headers)).status == 200
    native = await client.post("/generate", data=b'{"text": "a"}')
    assert native.status == 200


async def test_unknown_paths_and_methods(client: TestClient) -> None:
    response = await client.get("/no/such/path")
    assert (response.status, await response.json()) == (404, {"detail": "Not Found"})
    response = await client.delete("/generate")
    assert (response.status, await response.json()) == (405, {"detail": "Method Not Allowed"})
    assert response.headers["Allow"] == "POST, PUT"


async def test_any_origin_may_ask(client: TestClient) -> None:
    response = await client.options("/v1/chat/completions")
    assert response.status == 200
    assert response.headers["Access-Control-Allow-Headers"] == "*"
    for path in ("/health", "/no/such/path"):
        assert (await client.get(path)).headers["Access-Control-Allow-Origin"] == "*"
    streamed = await client.post("/generate", json=GOOD | {"stream": True})
    assert streamed.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("config", [ServerConfig(api_key="clé")])
async def test_a_key_is_asked_for_where_it_matters(client: TestClient) -> None:
    for given in ({}, {"Authorization": "Bearer x"}, {"Authorization": "clé"}):
        response = await client.post("/generate", json=GOOD, headers=given)
        assert response.status == 401
        assert await response.json() == {"error": "Unauthorized"}
        assert (await client.get("/v1/models", headers=given)).status == 401
        assert (await client.get("/no/such/path", headers=given)).status == 401
    right = {"Authorization": "Bearer clé"}
    assert (await client.post("/generate", json=GOOD, headers=right)).status == 200
    for path in ("/health", "/ready", "/health_generate", "/metrics"):
        assert (await client.get(path)).status == 200
    assert (await client.options("/generate")).status == 200


async def test_an_unexpected_error_is_logged_once_and_survived(
    client: TestClient, llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("secret detail")

    llm.submit = fail
    response = await client.post("/generate", json=GOOD)
    answer = await response.json()
    assert (response.status, answer["code"]) == (500, 500)
    assert answer["message"] == "Internal server error; see the server's log."
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == "POST /generate failed"
    assert (await client.get("/health")).status == 200


async def test_an_unexpected_error_in_a_stream_ends_the_connection(
    client: TestClient, llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        if llm.open["r"]._num_tokens == 2:
            raise ZeroDivisionError

    llm.wait = fail
    response = await client.post("/generate", json={"text": "a", "rid": "r", "stream": True})
    with pytest.raises(ClientPayloadError):
        await response.read()
    assert llm.closed == ["r"]
    assert "POST /generate failed" in caplog.text


# --- phases ---


async def test_while_the_model_loads_everything_is_503(llm: FakeLLM) -> None:
    app = make_app(None, ServerConfig())
    async with TestClient(TestServer(app)) as client:
        for path in ("/health", "/ready", "/ping", "/health_generate"):
            assert (await client.get(path)).status == 503
        for path in ("/v1/models", "/model_info", "/server_info", "/metrics"):
            response = await client.get(path)
            assert response.status == 503
        assert (await response.json())["message"] == (
            "The server is starting and its model is not loaded yet; try again when GET /health "
            "answers 200."
        )
        for path in ("/generate", "/v1/completions"):
            assert (await client.post(path, json=GOOD)).status == 503
        assert (await client.get("/no/such/path")).status == 404
        app[STATE].ready(llm)
        assert (await client.get("/health")).status == 200
        assert (await client.post("/generate", json=GOOD)).status == 200


async def test_a_draining_server_finishes_and_takes_nothing_new(llm: FakeLLM) -> None:
    app = make_app(llm, ServerConfig())
    async with TestClient(TestServer(app)) as client:
        go = asyncio.Event()
        llm.wait = go.wait
        running = asyncio.create_task(client.post("/generate", json=GOOD))
        while not llm.open:
            await asyncio.sleep(0)
        app[STATE].drain()
        response = await client.post("/generate", json=GOOD)
        assert response.status == 503
        assert (await response.json())["message"] == (
            "The server is shutting down; send the request to another one."
        )
        assert (await client.get("/health")).status == 503
        assert (await client.get("/metrics")).status == 200
        go.set()
        assert (await (await running).json())["text"] == " Paris"


async def test_the_access_log(llm: FakeLLM, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "jaxserve.access")
    server = TestServer(make_app(llm, ServerConfig()))
    await server.start_server(access_log_class=AccessLogger)
    async with TestClient(server) as client:
        await client.get("/v1/models?a=b")
        await client.get("/no/such/path")
        await client.get("/health")
    lines = [r.getMessage() for r in caplog.records if r.name == "jaxserve.access"]
    assert [line.split(" - ")[1] for line in lines] == [
        '"GET /v1/models?a=b HTTP/1.1" 200 OK',
        '"GET /no/such/path HTTP/1.1" 404 Not Found',
    ]
    assert lines[0].startswith("INFO:     127.0.0.1:")


async def test_a_stream_read_by_two_readers_is_not_shared(client: TestClient, llm: FakeLLM) -> None:
    """The same rid twice at once is refused by the LLM, and the first one is not disturbed."""
    first = await llm.submit("a", SamplingParams(max_new_tokens=1), rid="same")
    response = await client.post("/generate", json=GOOD | {"rid": "same"})
    assert response.status == 400
    message = (await response.json())["error"]["message"]
    assert message == "Duplicate request ID detected: same"
    assert (await first[0].result()).text == " Paris"
