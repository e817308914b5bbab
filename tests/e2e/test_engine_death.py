"""The device is lost while a live server is full: everybody is told, and the process ends."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from e2e.live_server import LiveServer, launched

FLAGS = (
    "--max-running-requests 2 --context-length 256 --max-total-tokens 512 --dtype float32 "
    "--precompile-token-paddings 32 --precompile-bs-paddings 2 --skip-server-warmup"
)
LONG = {"max_new_tokens": 200, "ignore_eos": True}
REASON = "the engine died: RuntimeError: device lost"


@pytest.fixture
def dying_server(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[LiveServer]:
    script = Path(__file__).with_name("dying_server.py")
    flags = f"--model-path {tiny_checkpoint} {FLAGS}"
    with launched(tmp_path / "log", flags, f"{sys.executable} {script} 60") as server:
        yield server


def test_a_lost_device(dying_server: LiveServer) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 200, "ignore_eos": True}
    asked = [
        ("/generate", {"text": "a", "sampling_params": LONG}),
        ("/generate", {"text": "a", "sampling_params": LONG, "stream": True}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 200, "ignore_eos": True}),
        ("/v1/chat/completions", chat | {"stream": True}),
        ("/generate", {"text": ["a", "b"], "sampling_params": LONG | {"n": 4}}),
    ] * 2

    def ask(path_and_body: tuple[str, dict]) -> requests.Response:
        return dying_server.post(*path_and_body)

    with ThreadPoolExecutor(len(asked)) as pool:
        statuses = pool.submit(health_until_the_end, dying_server)
        answers = list(pool.map(ask, asked))
    for answer, (_, body) in zip(answers, asked, strict=True):
        assert REASON in answer.text
        assert answer.status_code == 500 or (body.get("stream") and answer.status_code == 200)
    assert dying_server.process.wait(20) == 1
    assert statuses.result() in ([200], [200, 503])
    assert "The engine has stopped; exiting." in dying_server.log


def health_until_the_end(server: LiveServer) -> list[int]:
    """The statuses of /health in their order, until nobody answers any more."""
    seen = [200]
    while server.process.poll() is None:
        try:
            status = requests.get(f"{server.url}/health", timeout=5).status_code
        except requests.ConnectionError:
            break
        if status != seen[-1]:
            seen.append(status)
        time.sleep(0.01)
    return seen
