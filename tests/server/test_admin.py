"""Information, cache, abort and metrics endpoints over a fake LLM."""

import asyncio
import re

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM

from jaxserve.config import ServerConfig

MODEL_INFO_KEYS = {
    "model_path", "served_model_name", "tokenizer_path", "is_generation",
    "preferred_sampling_params", "weight_version", "load_format", "reasoning_parser",
    "tool_call_parser", "disaggregation_mode", "has_image_understanding",
    "has_audio_understanding", "model_type", "architectures",
}  # fmt: skip


async def get(client: TestClient, path: str) -> dict:
    response = await client.get(path)
    assert response.status == 200
    return await response.json()


async def held_open(client: TestClient, llm: FakeLLM) -> tuple[asyncio.Task, asyncio.Event]:
    """A request that runs until the event is set."""
    go = asyncio.Event()
    llm.wait = go.wait
    task = asyncio.create_task(client.post("/generate", json={"text": "a", "rid": "abc"}))
    while not llm.open:
        await asyncio.sleep(0)
    return task, go


async def test_root(client: TestClient) -> None:
    assert await (await client.get("/")).text() == "jaxserve is running"
    assert (await client.head("/")).status == 200


async def test_model_info(client: TestClient) -> None:
    info = await get(client, "/model_info")
    assert info.keys() == MODEL_INFO_KEYS
    assert info == await get(client, "/get_model_info")
    assert (info["model_path"], info["is_generation"]) == ("fake/model", True)


@pytest.mark.parametrize("config", [ServerConfig(api_compat="0.3")])
async def test_get_model_info_of_0_3_has_two_keys(client: TestClient) -> None:
    expected = {"model_path": "fake/model", "is_generation": True}
    assert await get(client, "/get_model_info") == expected
    assert (await get(client, "/model_info")).keys() == MODEL_INFO_KEYS


@pytest.mark.parametrize("config", [ServerConfig(served_model_name="pet")])
async def test_models(client: TestClient) -> None:
    (card,) = (await get(client, "/v1/models"))["data"]
    card.pop("created")
    assert card == {
        "id": "pet", "object": "model", "owned_by": "jaxserve", "root": "pet", "parent": None,
        "max_model_len": 512,
    }  # fmt: skip
    assert (await get(client, "/v1/models/pet"))["id"] == "pet"
    response = await client.get("/v1/models/org/other")
    assert response.status == 404
    assert await response.json() == {
        "error": {
            "message": "The model 'org/other' does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


async def test_server_info(client: TestClient) -> None:
    info = await get(client, "/server_info")
    assert info == await get(client, "/get_server_info")
    assert info["max_total_num_tokens"] == 4096
    assert info["scheduler_info"]["max_req_input_len"] == 511
    assert info["internal_states"][0]["last_gen_throughput"] == 12.5
    assert isinstance(info["version"], str)
    for key in ("page_size", "tp_size", "dp_size", "disable_radix_cache", "schedule_policy"):
        assert key in info


@pytest.mark.parametrize("config", [ServerConfig(api_key="secret")])
async def test_server_args_keep_the_key(client: TestClient) -> None:
    headers = {"Authorization": "Bearer secret"}
    response = await client.get("/get_server_args", headers=headers)
    text = await response.text()
    assert "secret" not in text
    assert (await response.json())["api_key"] == "***"


async def test_memory_pool_size_is_a_bare_integer(client: TestClient) -> None:
    for response in (
        await client.get("/get_memory_pool_size"),
        await client.post("/get_memory_pool_size"),
    ):
        assert await response.text() == "4096"


FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. (When there are running or "
    "waiting requests, the operation will not be performed.)\n"
)


async def test_flush_cache(client: TestClient, llm: FakeLLM) -> None:
    response = await client.post("/flush_cache")
    assert (response.status, await response.text()) == (200, FLUSHED)
    task, go = await held_open(client, llm)
    response = await client.get("/flush_cache")
    assert (response.status, await response.text()) == (400, FLUSHED)
    patient = asyncio.create_task(client.post("/flush_cache?timeout=5"))
    await asyncio.sleep(0.1)
    assert not patient.done()
    go.set()
    assert (await patient).status == 200
    assert (await task).status == 200


async def test_flush_cache_with_a_wrong_timeout(client: TestClient) -> None:
    for given in ("soon", "nan", "-1", "1e9"):
        response = await client.post(f"/flush_cache?timeout={given}")
        assert response.status == 400
        assert "('query', 'timeout')" in (await response.json())["message"]


@pytest.mark.parametrize(
    "body", [{"rid": "ab"}, {"abort_all": True}, {"rid": None, "abort_all": 1}]
)
async def test_abort_request(client: TestClient, llm: FakeLLM, body: dict) -> None:
    task, go = await held_open(client, llm)
    for harmless in ({"rid": "unknown"}, {"rid": ""}, {"rid": "", "abort_all": False}):
        response = await client.post("/abort_request", json=harmless)
        assert (response.status, await response.read()) == (200, b"")
    for wrong in ({"rid": 1}, {"abort_all": "soon"}):
        response = await client.post("/abort_request", json=wrong)
        assert response.status == 400
        assert f"('body', '{next(iter(wrong))}')" in (await response.json())["message"]
    assert not llm.open["abc"].is_aborted
    response = await client.post("/abort_request", json=body)
    assert (response.status, await response.read()) == (200, b"")
    go.set()
    answer = await (await task).json()
    assert answer["meta_info"]["finish_reason"]["message"] == "Aborted"


async def test_metrics(client: TestClient, llm: FakeLLM) -> None:
    await client.post("/generate", json={"text": "a"})
    await client.get("/no/such/path")
    response = await client.get("/metrics")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = await response.text()
    assert re.search(r'sglang:max_total_num_tokens{[^}]*model_name="fake"[^}]*} 4096.0', text)
    labels = 'endpoint="/generate",method="POST",model_name="fake",status_code="200"'
    assert f"sglang:http_responses_total{{{labels}}} 1.0" in text
    assert 'endpoint="unknown",method="GET",model_name="fake",status_code="404"' in text
    assert 'sglang:http_requests_active{model_name="fake"} 1.0' in text


@pytest.mark.parametrize("config", [ServerConfig(enable_metrics=False)])
async def test_metrics_can_be_off(client: TestClient) -> None:
    assert (await client.get("/metrics")).status == 404
