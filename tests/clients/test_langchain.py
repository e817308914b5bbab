"""LangChain's ChatOpenAI: invoke, stream, async, tools, structured output, logprobs."""

from clients.client_env import run_program
from e2e.live_server import LiveServer


def test_chat_openai(server: LiveServer) -> None:
    assert "langchain ok" in run_program("langchain_chat", server.url)
