"""Start, serve, drain and die, with a fake LLM in place of the model."""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable

import aiohttp
import pytest
from server.fake_llm import FakeLLM

from jaxserve import launch
from jaxserve.config import EngineConfig, ServerConfig
from jaxserve.errors import (
    ConfigError,
    DeviceHangError,
    EngineDeadError,
    InvalidRequestError,
    WeightLoadError,
)
from jaxserve.request import FinishReason

BODY = {"text": "a", "sampling_params": {"max_new_tokens": 3}}


class Launched:
    """``serve`` as a task, and a client of it."""

    def __init__(self, build: Callable[[EngineConfig], FakeLLM], **config: object) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        server_config = ServerConfig(port=port, **config)
        self.task = asyncio.create_task(launch.serve(EngineConfig(), server_config, build))

    async def __aenter__(self) -> "Launched":
        self.http = aiohttp.ClientSession(self.url)
        while not self.task.done():
            try:
                await self.status("/health")
                break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()
        if not self.task.done():
            os.kill(os.getpid(), signal.SIGTERM)
            await self.task

    async def status(self, path: str) -> int:
        async with self.http.get(path) as response:
            return response.status

    async def generate(self) -> tuple[int, dict]:
        async with self.http.post("/generate", json=BODY) as response:
            return response.status, await response.json()

    async def starts_to_generate(self, llm: FakeLLM) -> asyncio.Task[tuple[int, dict]]:
        """``generate`` as a task whose request ``llm`` has taken."""
        running = asyncio.create_task(self.generate())
        while not llm.open:
            await asyncio.sleep(0.01)
        return running

    async def ready(self) -> None:
        while await self.status("/health") != 200:
            await asyncio.sleep(0.01)


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


async def test_the_port_answers_503_until_the_model_is_ready(
    llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jaxserve")
    built = threading.Event()

    def build(_: EngineConfig) -> FakeLLM:
        built.wait(10)
        return llm

    async with Launched(build, api_key="secret") as server:
        assert await server.status("/health") == 503
        assert await server.status("/v1/models") == 401
        built.set()
        await server.ready()
    assert server.task.result() == 0
    assert llm.has_shut_down
    (warm_up,) = llm.submitted
    assert warm_up.prompt == "The capital city of France is"
    assert (warm_up.params.max_new_tokens, warm_up.params.temperature) == (8, 0)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("server_args=ServerArgs(model_path=None, ")
    assert not any("secret" in line for line in lines)
    sizes = (
        "max_total_num_tokens=4096, chunked_prefill_size=512, max_running_requests=64, "
        "context_len=512"
    )
    assert lines.index(sizes) < lines.index("The server is fired up and ready to roll!")


async def test_sigterm_drains_what_runs(llm: FakeLLM) -> None:
    async with Launched(lambda _: llm) as server:
        await server.ready()
        go = asyncio.Event()
        llm.wait = go.wait
        running = await server.starts_to_generate(llm)
        os.kill(os.getpid(), signal.SIGTERM)
        while await server.status("/health") == 200:
            await asyncio.sleep(0.01)
        assert (await server.generate())[0] == 503
        assert not server.task.done()
        go.set()
        status, answer = await running
        assert (status, answer["text"]) == (200, " Paris is the")
        assert await server.task == 0
    assert not llm.closed


async def test_a_drain_that_takes_too_long_aborts(
    llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    async with Launched(lambda _: llm, drain_timeout_s=0.1) as server:
        await server.ready()

        async def until_aborted() -> None:
            while not any(stream.is_aborted for stream in llm.open.values()):
                await asyncio.sleep(0.01)

        llm.wait = until_aborted
        running = await server.starts_to_generate(llm)
        os.kill(os.getpid(), signal.SIGTERM)
        status, answer = await running
        assert status == 200
        assert answer["meta_info"]["finish_reason"]["type"] == "abort"
        assert await server.task == 0
    assert "Aborting 1 sequences after 0 s" in caplog.text


async def test_a_second_signal_ends_at_once(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(launch.os, "_exit", statuses.append)
    async with Launched(lambda _: llm) as server:
        await server.ready()
        go = asyncio.Event()
        llm.wait = go.wait
        running = await server.starts_to_generate(llm)
        os.kill(os.getpid(), signal.SIGTERM)
        while await server.status("/health") == 200:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        while not statuses:
            await asyncio.sleep(0.01)
        go.set()
        await running
        await server.task
    assert statuses == [130]


async def test_a_dead_engine_ends_the_process(
    llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    async with Launched(lambda _: llm) as server:
        await server.ready()
        go = asyncio.Event()
        llm.wait = go.wait
        running = [asyncio.create_task(server.generate()) for _ in range(3)]
        while len(llm.open) < 3:
            await asyncio.sleep(0.01)
        llm.abort_at = {0: FinishReason("abort", message="device lost", status_code=500)}
        llm.is_healthy = False
        go.set()
        for status, answer in await asyncio.gather(*running):
            assert (status, answer["message"]) == (500, "device lost")
        assert await server.task == 1
    assert "The engine has stopped; exiting." in caplog.text


async def test_a_port_in_use_is_told_before_the_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="the port is in use; stop the program that uses it"):
            await launch.serve(EngineConfig(), ServerConfig(port=port), pytest.fail)


async def test_strict_thinking_needs_a_model_that_thinks(llm: FakeLLM) -> None:
    config = ServerConfig(port=0, reasoning_parser="auto", enable_strict_thinking=True)
    with pytest.raises(ConfigError, match="the chat template tells --reasoning-parser auto of no"):
        await launch.serve(EngineConfig(), config, lambda _: llm)
    assert llm.has_shut_down


async def test_an_address_of_another_machine_is_refused() -> None:
    config = ServerConfig(host="203.0.113.7", port=0)
    with pytest.raises(ConfigError, match="cannot listen on --host 203.0.113.7 --port 0: "):
        await launch.serve(EngineConfig(), config, pytest.fail)


async def test_a_warm_up_that_fails_is_a_start_up_error(llm: FakeLLM) -> None:
    llm.abort_at = {1: FinishReason("abort", message="nan", status_code=500)}
    with pytest.raises(EngineDeadError, match="the warm-up generation failed: nan"):
        await launch.serve(EngineConfig(), ServerConfig(port=0), lambda _: llm)
    assert llm.has_shut_down


async def test_a_context_too_short_for_the_warm_up_is_served(
    llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    llm.refuse = InvalidRequestError("too long")
    async with Launched(lambda _: llm) as server:
        await server.ready()
    assert "No warm-up generation: too long" in caplog.text


def test_a_start_up_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(*_: object, **__: object) -> FakeLLM:
        raise WeightLoadError("model.safetensors is cut short; fetch it again")

    monkeypatch.setattr(launch, "_build_llm", build)
    monkeypatch.setattr(launch, "_set_up_logging", lambda _: None)
    assert launch.main(["--port", "0"]) == 1
    assert capsys.readouterr().err == (
        "jaxserve: error: model.safetensors is cut short; fetch it again\n"
    )


def test_a_hung_device_ends_the_process_without_waiting_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(*_: object, **__: object) -> FakeLLM:
        raise DeviceHangError("the pallas attention kernels gave no answer in 120 s")

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(launch, "_build_llm", build)
    monkeypatch.setattr(launch, "_set_up_logging", lambda _: None)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit) as exit_info:
        launch.main(["--port", "0"])
    assert exit_info.value.code == 1
    assert "jaxserve: error: the pallas attention kernels gave no" in capsys.readouterr().err
