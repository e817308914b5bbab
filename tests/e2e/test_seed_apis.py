"""The tutorials' calls that need a server of their own: a template that thinks, SGLang 0.3's keys.

The model is random, so it never ends a thought by itself: shapes and streams are what is looked at.
"""

from collections.abc import Iterator

import openai
import pytest
from e2e.live_server import LiveServer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(thinking_server: LiveServer) -> Iterator[openai.Client]:
    with openai.Client(base_url=f"{thinking_server.url}/v1", api_key="None") as client:
        yield client


def _ask(client: openai.Client, enable_thinking: bool, **more: object) -> object:
    extra = {
        "chat_template_kwargs": {"enable_thinking": enable_thinking},
        "separate_reasoning": True,
    }
    return client.chat.completions.create(
        model="Qwen/Qwen3-4B", messages=QUESTION, temperature=0, max_tokens=24, extra_body=extra,
        **more,
    )  # fmt: skip


def test_thinking_enabled(client: openai.Client) -> None:
    message = _ask(client, True).choices[0].message
    assert message.reasoning_content is None or isinstance(message.reasoning_content, str)
    assert (message.reasoning_content or "") + (message.content or "")


def test_thinking_disabled(client: openai.Client) -> None:
    message = _ask(client, False).choices[0].message
    assert message.reasoning_content is None
    assert message.content


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_a_stream_says_the_same(client: openai.Client, enable_thinking: bool) -> None:
    message = _ask(client, enable_thinking).choices[0].message
    reasoning, content = "", ""
    for chunk in _ask(client, enable_thinking, stream=True):
        delta = chunk.choices[0].delta
        reasoning += delta.reasoning_content or ""
        content += delta.content or ""
    assert (reasoning, content) == (message.reasoning_content or "", message.content or "")


def test_the_template_decides_what_is_asked(client: openai.Client) -> None:
    """Enabled and disabled are different prompts."""
    lens = [_ask(client, enabled).usage.prompt_tokens for enabled in (True, False)]
    assert lens[0] < lens[1]


def test_old_model_info(thinking_server: LiveServer) -> None:
    info = thinking_server.get("/get_model_info").json()
    assert info.keys() == {"model_path", "is_generation"}
    assert info["is_generation"] is True
    assert thinking_server.get("/model_info").json().keys() > info.keys()


def test_old_native_calls(thinking_server: LiveServer) -> None:
    """As the tutorial makes them: no sampling_params at all."""
    answer = thinking_server.generate(text="What is the capital of France?")
    assert answer["meta_info"]["completion_tokens"] <= 128
    assert isinstance(thinking_server.get("/get_server_args").json(), dict)
    for path in ("/health_generate", "/health"):
        assert thinking_server.get(path).text == ""
    assert thinking_server.post("/flush_cache", None).text.startswith("Cache flushed.")
    assert int(thinking_server.get("/get_memory_pool_size").text) > 0
