"""Logging, profiles and the rest of what changes a server while it runs."""

import gc
import json
import logging
from collections.abc import Iterator

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM

from jaxserve.config import ServerConfig

BODY = {"text": "my secret", "rid": "r", "sampling_params": {"max_new_tokens": 2, "top_p": 0.5}}


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    own = logging.getLogger("jaxserve")
    level = own.level
    yield
    own.setLevel(level)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "jaxserve.requests"]


async def message_of(client: TestClient, path: str, body: object) -> str:
    response = await client.post(path, json=body)
    assert response.status == 400
    answer = await response.json()
    return answer["message"] if "message" in answer else answer["error"]["message"]


# --- logging ---


async def test_nothing_is_logged_unless_asked_for(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await client.post("/generate", json=BODY)
    assert lines(caplog) == []
    assert "secret" not in caplog.text


@pytest.mark.parametrize("level", [0, 1, 2, 3])
async def test_levels_of_the_request_log(
    client: TestClient, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    caplog.set_level(logging.INFO)
    body = {"log_requests": True, "log_requests_level": level}
    response = await client.post("/configure_logging", json=body)
    assert (response.status, await response.read()) == (200, b"")
    headers = {"Authorization": "Bearer hidden-key"}
    await client.post("/generate", json=BODY | {"text": "my secret" * 999}, headers=headers)
    received, finished = lines(caplog)
    assert received.startswith("Receive: rid='r'") and finished.startswith("Finish: rid='r'")
    assert ("'top_p': 0.5" in received) == (level >= 1)
    assert ("secret" in received) == ("Paris" in finished) == (level >= 2)
    assert ("secret" * 1 in received and "in all)" not in received) == (level == 3)
    assert "completion_tokens=2" in finished and "finish_reason='length'" in finished
    assert "hidden-key" not in caplog.text


@pytest.mark.parametrize("beam_width", [1, 2])
async def test_a_request_that_is_not_to_be_logged(
    client: TestClient, caplog: pytest.LogCaptureFixture, beam_width: int
) -> None:
    await client.post("/configure_logging", json={"log_requests": True, "log_requests_level": 3})
    with caplog.at_level("INFO", "jaxserve.requests"):
        sampling = {"max_new_tokens": 1, "beam_width": beam_width}
        body = {"text": "a secret", "rid": "quiet", "sampling_params": sampling}
        assert (await client.post("/generate", json={**body, "no_logs": True})).status == 200
        assert not caplog.records
        assert (await client.post("/generate", json=body)).status == 200
    assert [record.message.partition(":")[0] for record in caplog.records] == ["Receive", "Finish"]


async def test_the_request_log_as_json_and_off_again(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await client.post(
        "/configure_logging", json={"log_requests": True, "log_requests_format": "json"}
    )
    async with client.post("/generate", json=BODY | {"stream": True}) as response:
        await response.read()
    received, finished = map(json.loads, lines(caplog))
    assert (received["event"], received["text"]) == ("request.receive", "my secret")
    assert finished.keys() >= {"timestamp", "rid", "e2e_latency", "cached_tokens", "text"}
    await client.post("/configure_logging", json={"log_requests": False})
    await client.post("/generate", json=BODY)
    assert len(lines(caplog)) == 2


@pytest.mark.parametrize("config", [ServerConfig(log_requests=True, log_requests_level=1)])
async def test_a_request_that_is_given_up_ends_in_the_log(
    client: TestClient, llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def fail() -> None:
        raise ZeroDivisionError

    llm.wait = fail
    await client.post("/generate", json=BODY)
    assert "finish_reason='abort'" in lines(caplog)[1]


async def test_the_log_level(client: TestClient) -> None:
    assert (await client.post("/configure_logging", json={"log_level": "error"})).status == 200
    assert logging.getLogger("jaxserve").level == logging.ERROR
    assert (await client.post("/configure_logging", json={"log_level": "INFO"})).status == 200
    assert (await client.get("/configure_logging")).status == 200


async def test_what_cannot_be_logged(client: TestClient) -> None:
    path = "/configure_logging"
    message = await message_of(client, path, {"dump_requests_folder": "/tmp/x"})
    assert "`dump_requests_folder` is not supported: requests are not dumped" in message
    assert "log_requests_level" in await message_of(client, path, {"log_requests_level": 4})


# --- profiles ---


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", (None, None, None)),
        (b"null", (None, None, None)),
        (b'{"output_dir": "/x", "num_steps": "5", "start_step": 2}', ("/x", 5, 2)),
        (b'{"output_dir": "/x", "profile_prefix": "a", "profile_id": "b"}', ("/x/a-b", None, None)),
        (b'{"activities": ["CPU", "GPU"], "with_stack": true}', (None, None, None)),
    ],
)
async def test_profile(client: TestClient, llm: FakeLLM, data: bytes, expected: tuple) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    response = await client.post("/start_profile", data=data, headers=headers)
    assert (response.status, await response.text()) == (200, "Start profiling.\n")
    response = await client.get("/stop_profile")
    assert response.status == 200
    assert await response.text() == "Stop profiling. This will take some time.\n"
    assert llm.profiles == [expected, "stop"]


@pytest.mark.parametrize("config", [ServerConfig(profile_dir="/traces")])
async def test_where_profiles_go_by_default(client: TestClient, llm: FakeLLM) -> None:
    assert (await client.get("/start_profile")).status == 200
    assert llm.profiles == [("/traces", None, None)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"merge_profiles": True}, "`merge_profiles` is not supported: a trace is one file"),
        ({"activities": ["MEM"]}, "activities"),
        ({"num_steps": 0}, "num_steps"),
        ({"profile_id": "a"}, "name a subfolder of output_dir: no slashes"),
        ({"output_dir": "/x", "profile_id": "../a"}, "name a subfolder of output_dir"),
    ],
)
async def test_wrong_profiles(client: TestClient, llm: FakeLLM, body: dict, message: str) -> None:
    assert message in await message_of(client, "/start_profile", body)
    assert llm.profiles == []


# --- the rest ---


async def test_freeze_gc(client: TestClient) -> None:
    try:
        response = await client.post("/freeze_gc")
        assert (response.status, await response.text()) == (200, "Garbage collection frozen.\n")
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


async def test_set_internal_state(client: TestClient) -> None:
    path = "/set_internal_state"
    assert await (await client.post(path, json={"server_args": {}})).json() == [True]
    message = await message_of(
        client, path, {"server_args": {"speculative_accept_threshold_acc": 0.5}}
    )
    assert message == (
        "`speculative_accept_threshold_acc` cannot be set: there is no speculative decoding."
    )
    message = await message_of(client, path, {"server_args": {"port": 1}})
    assert message == "`port` cannot be set: it cannot be changed while the server runs."
