"""A short run of the fuzzer; ``scripts/fuzz`` is the long one."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.live_server import LiveServer, launched
from fuzz.bodies import SEEDS, make_request
from fuzz.fuzzer import FLAGS, NO_CACHE, fuzz

NUM_REQUESTS = 1000


@pytest.fixture(scope="module", params=["", NO_CACHE], ids=["cache", "no cache"])
def flags(request: pytest.FixtureRequest) -> str:
    return f"{FLAGS} {request.param}"


@pytest.fixture(scope="module")
def server(
    flags: str, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    log_path = tmp_path_factory.mktemp("fuzzed-server") / "log"
    with launched(log_path, f"--model-path {tiny_checkpoint} {flags}") as running:
        yield running


async def test_bent_requests_cost_nobody_anything(server: LiveServer) -> None:
    report = await fuzz(server.url, num_requests=NUM_REQUESTS, seed=0)
    assert not report.problems, "\n".join(report.problems[:10])
    assert report.num_requests == NUM_REQUESTS
    # neither all refused nor all taken: the fuzzer reaches what lies behind the checks
    assert 0.1 < report.statuses[200] / NUM_REQUESTS < 0.9, report.statuses
    assert "Traceback" not in server.log, server.log[-4000:]


@pytest.mark.parametrize("path", SEEDS)
def test_valid_requests_are_answered(server: LiveServer, flags: str, path: str) -> None:
    for body in SEEDS[path]:
        answer = server.post(path, body)
        refusable = path in ("/encode", "/v1/embeddings", "/close_session")
        refusable |= "input_embeds" in body and NO_CACHE not in flags
        assert answer.status_code == 200 or (refusable and answer.status_code == 400), answer.text


def test_a_seed_says_what_is_sent() -> None:
    first, second = ([make_request(random.Random(f"1/{i}")) for i in range(50)] for _ in range(2))
    assert first == second
