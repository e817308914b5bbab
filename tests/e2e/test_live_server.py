"""What a live server does when its clients or its keeper go away."""

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from e2e.live_server import SMALL, LiveServer, launched

from jaxserve.utils import launch_server_cmd, terminate_process

LONG = {"max_new_tokens": 200, "ignore_eos": True, "temperature": 0}


def test_a_client_that_goes_away_frees_its_pages(tiny_server: LiveServer) -> None:
    # far more rows than the server runs at once: seconds of work, however fast the machine
    body = {"text": "Hello there", "sampling_params": LONG | {"n": 64}, "stream": True}
    for streamed in (True, False):
        with ThreadPoolExecutor() as pool:
            if streamed:
                response = requests.post(
                    f"{tiny_server.url}/generate", json=body, stream=True, timeout=60
                )
                lines = response.iter_lines()  # kept: dropping it closes the connection early
                next(lines)
                tiny_server.wait_until(lambda state: state["num_running_reqs"] > 0)
                response.close()
            else:
                pool.submit(give_up, tiny_server, body | {"stream": False})
        state = tiny_server.wait_until(
            lambda state: state["num_running_reqs"] + state["num_waiting_reqs"] == 0
        )
        assert state["num_used_tokens"] == 0
    assert "sglang:num_aborted_requests_total" in tiny_server.get("/metrics").text


def give_up(server: LiveServer, body: dict) -> None:
    try:
        requests.post(f"{server.url}/generate", json=body, timeout=0.05)
    except requests.Timeout:
        return


def test_abort_by_rid_prefix_keeps_the_partial_text(tiny_server: LiveServer) -> None:
    body = {"text": ["a", "b"], "rid": "mine", "sampling_params": LONG, "stream": True}
    with requests.post(f"{tiny_server.url}/generate", json=body, stream=True, timeout=60) as stream:
        lines = (line for line in stream.iter_lines() if line)
        next(lines)
        assert tiny_server.post("/abort_request", {"rid": "min"}).status_code == 200
        *events, done = lines
    assert done == b"data: [DONE]"
    reasons = [json.loads(event[6:])["meta_info"]["finish_reason"] for event in events]
    assert [reason["type"] for reason in reasons if reason] == ["abort", "abort"]


def test_crowds_are_answered_as_each_alone(tiny_server: LiveServer) -> None:
    def ask(i: int) -> list[int]:
        params = {"max_new_tokens": 12, "temperature": 0.8, "sampling_seed": i}
        return tiny_server.generate(text=f"prompt {i}", sampling_params=params)["output_ids"]

    alone = [ask(i) for i in range(24)]
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, range(24))) == alone


def test_a_repeated_prompt_is_cached_until_the_cache_is_flushed(tiny_server: LiveServer) -> None:
    text = "The same words again and again, in the same order. " * 2

    def num_cached() -> int:
        answer = tiny_server.generate(text=text, sampling_params={"max_new_tokens": 1})
        return answer["meta_info"]["cached_tokens"]

    tiny_server.post("/flush_cache", None)
    assert num_cached() == 0
    assert num_cached() >= len(text) // 16 * 16 - 16
    assert tiny_server.post("/flush_cache", None).status_code == 200
    assert num_cached() == 0


def test_sigterm_drains_and_exits_0(tiny_checkpoint: Path, tmp_path: Path) -> None:
    flags = (
        f"--model-path {tiny_checkpoint} {SMALL} --max-total-tokens 256 --api-compat 0.3 "
        "--api-key secret"
    )
    with launched(tmp_path / "log", flags) as server:
        headers = {"Authorization": "Bearer secret"}
        assert server.get("/get_model_info").status_code == 401
        info = requests.get(f"{server.url}/get_model_info", headers=headers, timeout=10).json()
        assert info.keys() == {"model_path", "is_generation"}
        body = {"text": "a", "sampling_params": LONG, "stream": True}
        with requests.post(
            f"{server.url}/generate", json=body, headers=headers, stream=True, timeout=60
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line]
        assert events[-1] == b"data: [DONE]"
        last = json.loads(events[-2][6:])["meta_info"]
        assert last["finish_reason"] == {"type": "length", "length": 200}
        assert server.process.wait(30) == 0
    assert "Drained." in server.log


def test_sigterm_while_starting_exits_0_at_once(tiny_checkpoint: Path) -> None:
    process, port = launch_server_cmd(
        f"python3 -m jaxserve.launch --model-path {tiny_checkpoint} {SMALL}"
    )
    try:
        while True:
            try:
                status = requests.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code
                break
            except requests.ConnectionError:
                time.sleep(0.02)
        assert status == 503
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        terminate_process(process)


def test_a_slow_reader_does_not_hold_up_the_others(tiny_server: LiveServer) -> None:
    body = {"text": "a", "sampling_params": LONG, "stream": True}
    with requests.post(f"{tiny_server.url}/generate", json=body, stream=True, timeout=60) as slow:
        start_s = time.monotonic()
        threads = [
            threading.Thread(target=tiny_server.generate, kwargs={"text": f"{i}"}) for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - start_s < 30
        assert slow.text.endswith("data: [DONE]\n\n")
