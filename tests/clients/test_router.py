"""sglang-router in front of two servers: registration, routing by prefix, forwarding."""

import functools
import json
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
from clients.client_env import client_python, environment
from e2e.live_server import LiveServer

from jaxserve.utils import terminate_process, wait_for_server

PREFIX_CHARS = 320  # tokens too: the tiny model's tokenizer has one per byte
GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def router(
    workers: tuple[LiveServer, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The router's address."""
    ports = [_free_port() for _ in range(2)]
    command = [
        str(client_python()), "-m", "sglang_router.launch_router",
        "--worker-urls", *(worker.url for worker in workers), "--policy", "cache_aware",
        "--host", "127.0.0.1", "--port", str(ports[0]), "--prometheus-port", str(ports[1]),
        "--balance-abs-threshold", "1000",
    ]  # fmt: skip
    log_path = tmp_path_factory.mktemp("router") / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment(), start_new_session=True
        )
    url = f"http://127.0.0.1:{ports[0]}"
    try:
        wait_for_server(url, 60, process)
        yield url
    finally:
        terminate_process(process)


def test_a_shared_prefix_lands_on_one_worker(router: str, workers: tuple[LiveServer, ...]) -> None:
    for letter in "ab":
        before = [_prompt_tokens(worker) for worker in workers]
        cached = []
        for i in range(6):
            answer = _post(router, {"text": letter * PREFIX_CHARS + f" {i}"})
            cached.append(answer["meta_info"]["cached_tokens"])
        grown = [_prompt_tokens(w) - b for w, b in zip(workers, before, strict=True)]
        assert min(grown) == 0 and max(grown) > 6 * PREFIX_CHARS, grown
        assert all(tokens >= PREFIX_CHARS - 16 for tokens in cached[1:]), cached


def test_other_prefixes_go_where_less_runs(router: str, workers: tuple[LiveServer, ...]) -> None:
    before = [_prompt_tokens(worker) for worker in workers]
    texts = [{"text": letter * PREFIX_CHARS} for letter in "cdefghij"]
    with ThreadPoolExecutor(len(texts)) as pool:
        list(pool.map(functools.partial(_post, router, num_tokens=64), texts))
    grown = [_prompt_tokens(w) - b for w, b in zip(workers, before, strict=True)]
    assert min(grown) > 0, grown


def test_forwards_openai_calls(router: str) -> None:
    with openai.Client(base_url=f"{router}/v1", api_key="None") as client:
        asked = {
            "model": "default", "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0, "max_tokens": 6,
        }  # fmt: skip
        whole = client.chat.completions.create(**asked).choices[0].message.content
        stream = client.chat.completions.create(**asked, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == whole
        done = client.completions.create(model="default", prompt="hello", max_tokens=5)
        assert done.usage.completion_tokens <= 5


def test_forwards_a_native_stream(router: str) -> None:
    sampling = GREEDY | {"max_new_tokens": 4}
    body = {"text": "hello", "sampling_params": sampling, "stream": True}
    lines = [
        line.decode()
        for line in requests.post(f"{router}/generate", json=body, timeout=60).iter_lines()
        if line
    ]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2][5:])["meta_info"]["completion_tokens"] == 4


def test_asks_the_workers_for_their_load(router: str) -> None:
    loads = requests.get(f"{router}/get_loads", timeout=30)
    assert loads.status_code == 200, loads.text
    assert len(loads.json()["workers"]) == 2, loads.text


def test_flushes_the_workers_caches(router: str) -> None:
    assert requests.post(f"{router}/flush_cache", timeout=60).status_code == 200


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _post(url: str, body: dict[str, object], num_tokens: int = 4) -> dict:
    body = body | {"sampling_params": GREEDY | {"max_new_tokens": num_tokens}}
    answer = requests.post(f"{url}/generate", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _prompt_tokens(worker: LiveServer) -> float:
    lines = worker.get("/metrics").text.splitlines()
    counts = (line for line in lines if line.startswith("sglang:prompt_tokens_total"))
    return sum(float(line.rsplit(" ", 1)[1]) for line in counts)
