"""/v1/loads and /get_load: the numbers of the engine's last step."""

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM

from jaxserve.metrics import EngineStats

STATS = EngineStats(
    num_running=3, num_waiting=2, num_used_tokens=320, max_total_num_tokens=1600, max_running=6,
    num_waiting_tokens=50, sum_seq_lens=300, gen_throughput=12.345, cache_hit_rate=0.25,
    weight_bytes=2**31, kv_cache_bytes=2**29, num_retracted=1, num_grammar_queue=4, page_size=16,
    num_prefill_tokens_total=900, num_cached_tokens_total=300, device_name="fake device",
)  # fmt: skip
CORE = {
    "dp_rank": 0, "num_running_reqs": 3, "num_waiting_reqs": 2, "num_waiting_uncached_tokens": 50,
    "num_used_tokens": 320, "num_total_tokens": 370, "num_active_tokens": 300,
    "max_total_num_tokens": 1600, "max_running_requests": 6, "token_usage": 0.2,
    "gen_throughput": 12.35, "cache_hit_rate": 0.25, "utilization": 0.5,
    "total_prefill_tokens": 900, "total_prefill_cached_tokens": 300,
}  # fmt: skip
OPTIONAL = {
    "memory": {"weight_gb": 2.0, "kv_cache_gb": 0.5, "graph_gb": 0.0, "token_capacity": 1600},
    "speculative": None,
    "lora": None,
    "disaggregation": None,
    "queues": {"waiting": 2, "grammar": 4, "paused": 0, "retracted": 1, "prealloc_ready": 0},
}


@pytest.fixture
def llm() -> FakeLLM:
    llm = FakeLLM()
    llm.stats = lambda: STATS
    return llm


@pytest.mark.parametrize(
    ("query", "sections"),
    [
        ("", OPTIONAL),
        ("?include=all", OPTIONAL),
        ("?include=core", ()),
        ("?include=core,memory,queues&dp_rank=0", ("memory", "queues")),
        ("?include=spec,lora,disagg", ("speculative", "lora", "disaggregation")),
    ],
)
async def test_loads(client: TestClient, query: str, sections: tuple[str, ...]) -> None:
    response = await client.get(f"/v1/loads{query}")
    assert response.status == 200
    answer = await response.json()
    (load,) = answer.pop("loads")
    assert load.pop("timestamp") > 0
    assert load == CORE | {name: OPTIONAL[name] for name in sections}
    assert answer.keys() == {"timestamp", "version", "accelerator", "num_accelerators"}
    assert (answer["accelerator"], answer["num_accelerators"]) == ("fake device", 1)


async def test_another_rank_has_no_load(client: TestClient) -> None:
    assert (await (await client.get("/v1/loads?dp_rank=1")).json())["loads"] == []


async def test_loads_for_prometheus(client: TestClient) -> None:
    response = await client.get("/v1/loads?format=prometheus&include=core,queues")
    assert response.headers["Content-Type"].startswith("text/plain")
    text = await response.text()
    assert 'sglang:num_running_reqs{dp_rank="0"} 3.0' in text
    assert 'sglang:queues_grammar{dp_rank="0"} 4.0' in text
    assert "memory" not in text


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("include=core,cpu", "'loc': ('query', 'include')"),
        ("format=xml", "Input should be 'json' or 'prometheus'"),
        ("dp_rank=-1", "Input should be greater than or equal to 0"),
    ],
)
async def test_wrong_queries(client: TestClient, query: str, message: str) -> None:
    response = await client.get(f"/v1/loads?{query}")
    assert response.status == 400
    assert message in (await response.json())["message"]


async def test_get_load(client: TestClient) -> None:
    answer = await (await client.get("/get_load")).json()
    assert answer == [{"dp_rank": 0, "num_reqs": 5, "num_waiting_reqs": 2, "num_tokens": 370}]
