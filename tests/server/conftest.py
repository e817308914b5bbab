"""A served fake LLM, on an event loop where blocking is an error."""

from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp.test_utils import TestClient, TestServer
from blockbuster import blockbuster_ctx
from server.fake_llm import CALL, FakeLLM

from jaxserve.config import ServerConfig
from jaxserve.server.app import make_app


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[None]:
    """A blocking call on the event loop fails the test."""
    with blockbuster_ctx("jaxserve"):
        yield


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM()


@pytest.fixture
def thinker(llm: FakeLLM) -> FakeLLM:
    """Thinks, says something and calls a tool."""
    object.__setattr__(llm.info, "reasoning_parser", "qwen3")
    object.__setattr__(llm.info, "tool_call_parser", "qwen25")
    llm.words = ("<think>", "Hm", ".", "</think>", "\n\n", "Well", ",", "\n", CALL, "", "", "")
    return llm


@pytest.fixture
def config() -> ServerConfig:
    return ServerConfig()


@pytest.fixture
async def client(llm: FakeLLM, config: ServerConfig) -> AsyncIterator[TestClient]:
    async with TestClient(TestServer(make_app(llm, config))) as client:
        yield client
