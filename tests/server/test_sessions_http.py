"""Sessions, pausing and what the frontend posts, over a fake LLM."""

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM
from server.native_calls import generate

from jaxserve.request import SessionParams


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_open_and_close(client: TestClient, llm: FakeLLM, method: str) -> None:
    body = {"capacity_of_str_len": 100, "session_id": "mine", "timeout": 2.5}
    response = await client.request(method, "/open_session", json=body)
    assert (response.status, await response.text()) == (200, '"mine"')
    assert llm.sessions == {"mine": (100, 2.5)}
    again = await client.request(method, "/open_session", json=body)
    assert again.status == 400
    assert (await again.json()) == {"error": {"message": "Session 'mine' is open already."}}
    for _ in range(2):
        response = await client.request(method, "/close_session", json={"session_id": "mine"})
        assert (response.status, await response.read()) == (200, b"")
    assert llm.sessions == {}


async def test_the_query_may_take_the_place_of_the_body(client: TestClient, llm: FakeLLM) -> None:
    response = await client.get("/open_session?capacity_of_str_len=7")
    assert llm.sessions == {await response.json(): (7, None)}


async def test_sessions_that_cannot_be_opened(client: TestClient) -> None:
    missing = await client.post("/open_session", json={})
    assert missing.status == 400
    long = {"capacity_of_str_len": 100, "session_id": "x" * 1025}
    assert (await client.post("/open_session", json=long)).status == 400
    assert "capacity_of_str_len" in (await missing.json())["message"]


async def test_a_streaming_session(client: TestClient, llm: FakeLLM) -> None:
    for streaming in (True, False):
        body = {"capacity_of_str_len": 7, "session_id": str(streaming), "streaming": streaming}
        assert (await client.post("/open_session", json=body)).status == 200
    assert llm.streaming_sessions == {"True"} and len(llm.sessions) == 2


async def test_session_params_reach_the_llm(client: TestClient, llm: FakeLLM) -> None:
    given = {"id": "s", "rid": "r", "offset": -1, "replace": True, "drop_previous_output": True}
    await generate(client, {"text": "a", "session_params": given})
    await generate(client, {"text": "a", "session_params": {"id": "s", "rid": None}})
    sessions = [submission.session for submission in llm.submitted]
    assert sessions[0] == SessionParams(**given)
    assert sessions[1] == SessionParams(id="s", offset=0)


@pytest.mark.parametrize("mode", ["abort", "retract", "in_place", None])
async def test_pause_and_continue(client: TestClient, llm: FakeLLM, mode: str | None) -> None:
    given = {} if mode is None else {"json": {"mode": mode}}
    response = await client.post("/pause_generation", **given)
    assert await response.json() == {
        "message": "Generation paused successfully.",
        "status": "ok",
    }
    assert (llm.paused_in, llm.is_paused) == ([mode or "abort"], True)
    response = await client.post("/continue_generation", json={"torch_empty_cache": True})
    assert await response.json() == {
        "message": "Generation continued successfully.",
        "status": "ok",
    }
    assert not llm.is_paused
    assert (await client.post("/continue_generation")).status == 200


async def test_an_unknown_pause(client: TestClient, llm: FakeLLM) -> None:
    response = await client.post("/pause_generation", json={"mode": "soft"})
    assert response.status == 400
    message = (await response.json())["message"]
    assert message == "mode must be one of abort, retract, in_place; got 'soft'"
    assert not llm.is_paused


async def test_joined_forks_need_nothing(client: TestClient, llm: FakeLLM) -> None:
    body = {"src_rids": ["a", "b"], "dst_rid": "c"}
    response = await client.post("/concate_and_append_request", json=body)
    assert (response.status, await response.read()) == (200, b"")
    assert not llm.submitted


@pytest.mark.parametrize(
    "path", ["/open_session", "/close_session", "/pause_generation", "/continue_generation"]
)
async def test_a_body_that_is_not_encoded_as_it_says(
    client: TestClient, llm: FakeLLM, path: str
) -> None:
    response = await client.post(path, data=b"{}", headers={"Content-Encoding": "gzip"})
    assert response.status == 400
    assert (await response.json())["message"].startswith("The body cannot be read: ")
    assert not (llm.sessions or llm.paused_in)
