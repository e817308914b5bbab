"""A crowd of rude clients at a small live server; in f32, so that answers do not depend on it."""

import asyncio
import json
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from e2e.live_server import SMALL, LiveServer, launched

MAX_QUEUED = 64


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    flags = (
        f"--model-path {tiny_checkpoint} {SMALL} --dtype float32 --max-total-tokens 256 "
        f"--max-queued-requests {MAX_QUEUED} --precompile-token-paddings 32 "
        "--precompile-bs-paddings 8"
    )
    with launched(tmp_path_factory.mktemp("storms") / "log", flags) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left_over(server: LiveServer) -> Iterator[None]:
    body = {"text": "The same as ever", "sampling_params": {"max_new_tokens": 24, "temperature": 0}}
    before = server.generate(**body)["output_ids"]
    yield
    state = server.wait_until(lambda s: s["num_running_reqs"] + s["num_waiting_reqs"] == 0)
    assert state["num_used_tokens"] == 0
    assert server.generate(**body)["output_ids"] == before
    assert "Traceback" not in server.log


# --- clients that go away ---


async def leave_early(server: LiveServer, rng: random.Random, path: str, body: object) -> None:
    """Send a request, or part of one; close at a random moment, whatever has been answered."""
    url = urlsplit(server.url)
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: "
    request = f"{head}application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    is_cut = rng.random() < 0.1
    writer.write(request[: rng.randrange(1, len(request))] if is_cut else request)
    patience_s = rng.random() ** 3 * 0.3
    with suppress(TimeoutError, ConnectionError):
        await asyncio.wait_for(reader.read(2**20), patience_s)
    if rng.random() < 0.5:
        writer.transport.abort()
    writer.close()


def rude_request(i: int, rng: random.Random) -> tuple[str, object]:
    params = {"max_new_tokens": rng.randrange(40), "ignore_eos": True}
    text = "a shared prefix, " * rng.randrange(3) + f"and {i}"
    is_stream = rng.random() < 0.5
    chat = [{"role": "user", "content": f"{i}"}]
    return rng.choice(
        [
            ("/generate", {"text": text, "sampling_params": params, "stream": is_stream}),
            ("/generate", {"text": [text] * 5, "sampling_params": params, "stream": is_stream}),
            ("/generate", {"text": text, "sampling_params": params | {"n": 4}}),
            ("/v1/completions", {"prompt": ["a", text], "stop": ["no"], "stream": is_stream}),
            ("/v1/chat/completions", {"messages": chat, "max_tokens": 30, "stream": is_stream}),
            ("/flush_cache?timeout=5", None),
            ("/health_generate", None),
        ]
    )


def test_five_hundred_clients_that_leave_at_any_moment(server: LiveServer) -> None:
    rng = random.Random(7)

    async def storm() -> None:
        crowd = asyncio.Semaphore(40)

        async def one(i: int) -> None:
            async with crowd:
                await leave_early(server, rng, *rude_request(i, rng))

        await asyncio.gather(*(one(i) for i in range(500)))

    asyncio.run(storm())
    deadline_s = time.monotonic() + 20
    while (sums := totals(server))["http_requests_active"] > 1:  # this one itself
        assert time.monotonic() < deadline_s
    assert sums["http_requests"] == sums["http_responses"] + 1


# --- aborts ---


def test_abort_by_prefix_at_any_moment(server: LiveServer) -> None:
    messages = set()

    def ask(rid: str) -> dict:
        params = {"max_new_tokens": 100, "temperature": 0, "ignore_eos": True}
        return server.generate(text=f"{rid} " * 9, rid=rid, sampling_params=params)

    with ThreadPoolExecutor(24) as pool:
        for turn in range(6):
            answers = [pool.submit(ask, f"mine-{turn}-{i}") for i in range(20)]
            kept = pool.submit(ask, f"other-{turn}")
            if turn % 2:
                server.wait_until(lambda state: state["num_running_reqs"] > 0)
            while not all(answer.done() for answer in answers):
                assert server.post("/abort_request", {"rid": "mine-"}).content == b""
            for answer in answers:
                meta = answer.result()["meta_info"]
                assert meta["completion_tokens"] == len(answer.result()["output_ids"])
                messages.add(meta["finish_reason"].get("message"))
            assert kept.result()["meta_info"]["finish_reason"]["type"] == "length"
    assert messages >= {"Aborted", "Abort in waiting queue"}


# --- more than fits ---


def test_a_pool_too_small_for_the_crowd_changes_no_answer(server: LiveServer) -> None:
    def ask(i: int) -> tuple[list[int], str, dict]:
        rng = random.Random(i)
        params = {"max_new_tokens": rng.choice([1, 30, 100]), "ignore_eos": True}
        params |= {"temperature": 0} if i % 2 else {"sampling_seed": i, "presence_penalty": 0.5}
        text = (f"{i % 5}-" * 80)[: rng.choice([1, 16, 17, 100, 150])]
        answer = server.generate(text=text, sampling_params=params)
        return answer["output_ids"], answer["text"], answer["meta_info"]["finish_reason"]

    alone = [ask(i) for i in range(48)]
    retractions = server.state()["num_retractions"]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(48))) == alone
    assert server.state()["num_retractions"] > retractions


def test_a_full_queue_is_told_and_soon_free_again(server: LiveServer) -> None:
    params = {"max_new_tokens": 200, "ignore_eos": True, "n": MAX_QUEUED}
    few = {"text": ["a"] * 20, "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
    full = {
        "object": "error", "message": "The request queue is full.", "type": "503", "param": None,
        "code": 503,
    }  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        crowd = pool.submit(server.generate, text="a", rid="crowd", sampling_params=params)
        server.wait_until(lambda state: state["num_waiting_reqs"] > MAX_QUEUED - 12)
        for path, body in (
            ("/generate", few),
            ("/v1/completions", {"prompt": few["text"], "stream": True}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 20}),
        ):
            response = server.post(path, body)
            assert (response.status_code, response.json()) == (503, full)
        body = few | {"stream": True}
        with requests.post(f"{server.url}/generate", json=body, stream=True, timeout=60) as stream:
            server.post("/abort_request", {"rid": "crowd"})
            events = stream.text.split("\n\n")
        assert len(crowd.result()) == MAX_QUEUED
    assert events[-2:] == ["data: [DONE]", ""]
    metas = [json.loads(event[6:])["meta_info"] for event in events[:-2]]
    reasons = [meta["finish_reason"] for meta in metas if meta["finish_reason"]]
    assert len(reasons) == len(few["text"])
    assert ("abort", 503) in {(reason["type"], reason.get("status_code")) for reason in reasons}
    assert len(server.generate(**few)) == len(few["text"])


# --- numbers ---


def test_the_metrics_add_up_after_a_mixed_load(server: LiveServer) -> None:
    before = totals(server)

    def ask(i: int) -> list[dict]:
        params = {"max_new_tokens": i % 7, "n": 1 + i % 3, "sampling_seed": i}
        answers = server.generate(text=f"the same start of {i % 4}", sampling_params=params)
        return answers if isinstance(answers, list) else [answers]

    with ThreadPoolExecutor(16) as pool:
        metas = [a["meta_info"] for answers in pool.map(ask, range(40)) for a in answers]
    after = totals(server)
    for name, counted in (
        ("num_requests", len(metas)),
        ("num_aborted_requests", 0),
        ("prompt_tokens", sum(meta["prompt_tokens"] for meta in metas)),
        ("generation_tokens", sum(meta["completion_tokens"] for meta in metas)),
        ("cached_tokens", sum(meta["cached_tokens"] for meta in metas)),
        ("e2e_request_latency_seconds_count", len(metas)),
        ("time_to_first_token_seconds_count", sum(m["completion_tokens"] > 0 for m in metas)),
    ):
        assert after[name] - before.get(name, 0) == counted, name


def totals(server: LiveServer) -> dict[str, float]:
    """Counter or count → its sum over all labels."""
    sums: dict[str, float] = {}
    line = re.compile(r"^sglang:(\w+?)(?:_total)?\{.*\} (\S+)$", re.MULTILINE)
    for name, value in line.findall(server.get("/metrics").text):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums
