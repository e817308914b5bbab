"""The tutorials' requests, word for word, to a live server of the demo model."""

import json
import re
import subprocess

import openai
import pytest
import requests
from e2e.live_server import LiveServer

from jaxserve.utils import print_highlight

LIST = [{"role": "user", "content": "List 3 countries and their capitals."}]
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(demo_server: LiveServer) -> openai.Client:
    with openai.Client(base_url=f"{demo_server.url}/v1", api_key="None") as client:
        yield client


# --- send a first request ---


def test_curl(demo_server: LiveServer) -> None:
    curl_command = f"""
curl -s {demo_server.url}/v1/chat/completions \
  -H "Content-Type: application/json" \
  -d '{{"model": "demo", "messages": [{{"role": "user", "content": "What is the capital of France?"}}], "temperature": 0, "max_tokens": 16}}'
"""  # noqa: E501
    response = json.loads(subprocess.check_output(curl_command, shell=True))
    print_highlight(response)
    assert "Paris" in response["choices"][0]["message"]["content"]


def test_python_requests(demo_server: LiveServer) -> None:
    url = f"{demo_server.url}/v1/chat/completions"
    data = {"model": "demo", "messages": CAPITAL, "max_tokens": 16, "temperature": 0}
    response = requests.post(url, json=data, timeout=60).json()
    assert "Paris" in response["choices"][0]["message"]["content"]
    assert response["model"] == "demo"


def test_openai_client(client: openai.Client) -> None:
    response = client.chat.completions.create(
        model="demo", messages=LIST, temperature=0, max_tokens=64
    )
    assert response.choices[0].message.content
    assert response.choices[0].message.role == "assistant"
    assert response.usage.completion_tokens <= 64


def test_openai_stream_says_the_same(client: openai.Client) -> None:
    asked = {"model": "demo", "messages": LIST, "temperature": 0, "max_tokens": 64}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    text = ""
    for chunk in client.chat.completions.create(**asked, stream=True):
        if chunk.choices[0].delta.content:
            text += chunk.choices[0].delta.content
    assert text == whole


def test_native_generate(demo_server: LiveServer) -> None:
    response = demo_server.generate(
        text="The capital of France is", sampling_params={"temperature": 0, "max_new_tokens": 32}
    )
    assert "Paris" in response["text"]
    meta = response["meta_info"]
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (5, len(response["output_ids"]))


def test_native_stream(demo_server: LiveServer) -> None:
    body = {
        "text": "The capital of France is",
        "sampling_params": {"temperature": 0, "max_new_tokens": 32},
    }
    whole = demo_server.generate(**body)["text"]
    response = requests.post(
        f"{demo_server.url}/generate", json=body | {"stream": True}, stream=True, timeout=60
    )
    prev, printed, is_done = 0, "", False
    for chunk in response.iter_lines(decode_unicode=False):
        chunk = chunk.decode("utf-8")
        if chunk and chunk.startswith("data:"):
            if chunk == "data: [DONE]":
                is_done = True
                break
            data = json.loads(chunk[5:].strip("\n"))
            output = data["text"]
            printed += output[prev:]
            prev = len(output)
    assert is_done
    assert printed == whole


# --- OpenAI APIs ---


def test_chat_parameters(client: openai.Client) -> None:
    asked = {
        "model": "demo",
        "messages": [
            {
                "role": "system",
                "content": "You are a knowledgeable historian who provides concise responses.",
            },
            {"role": "user", "content": "Tell me about ancient Rome"},
            {
                "role": "assistant",
                "content": "Ancient Rome was a civilization centered in Italy.",
            },
            {"role": "user", "content": "What were their major achievements?"},
        ],
        "temperature": 0.3,
        "max_tokens": 32,
        "top_p": 0.95,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.2,
        "n": 1,
        "seed": 42,
    }
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    assert first.choices[0].message.content
    assert first.choices[0].message.content == second.choices[0].message.content


def test_chat_template_arguments(client: openai.Client) -> None:
    response = client.chat.completions.create(
        model="demo", messages=CAPITAL, max_tokens=8,
        extra_body={
            "chat_template_kwargs": {"enable_thinking": False}, "separate_reasoning": True,
        },
    )  # fmt: skip
    assert response.choices[0].message.reasoning_content is None


def test_completions(client: openai.Client) -> None:
    response = client.completions.create(
        model="demo", prompt="List 3 countries and their capitals.", temperature=0, max_tokens=64,
        n=1, stop=None,
    )  # fmt: skip
    assert response.choices[0].text
    assert response.usage.prompt_tokens > 3


def test_completion_parameters(client: openai.Client) -> None:
    response = client.completions.create(
        model="demo",
        prompt="Write a short story about a space explorer.",
        temperature=0.7,
        max_tokens=48,
        top_p=0.9,
        stop=["\n\n", "THE END"],
        presence_penalty=0.3,
        frequency_penalty=0.3,
        n=2,
        seed=123,
        echo=True,
    )
    assert len(response.choices) == 2
    for choice in response.choices:
        assert choice.text.startswith("Write a short story about a space explorer.")
        assert "\n\n" not in choice.text
        assert choice.finish_reason in ("stop", "length")


# --- native APIs ---


def test_native_information(demo_server: LiveServer) -> None:
    answer = demo_server.generate(text="What is the capital of France?")
    assert answer["meta_info"]["completion_tokens"] <= 128
    assert demo_server.get("/get_server_args").json()["context_length"] == 512
    info = demo_server.get("/get_model_info").json()
    assert (info["model_path"], info["is_generation"]) == ("SmolLM2-135M-Instruct", True)
    for path in ("/health", "/health_generate"):
        response = demo_server.get(path)
        assert (response.status_code, response.text) == (200, "")
    assert int(demo_server.get("/get_memory_pool_size").text) <= 4096
    assert requests.post(f"{demo_server.url}/flush_cache", timeout=10).text.startswith("Cache flu")
    (model,) = demo_server.get("/v1/models").json()["data"]
    assert model["id"] == "SmolLM2-135M-Instruct"
    assert model["max_model_len"] == 512


def test_the_log_reads_as_in_the_tutorials(demo_server: LiveServer) -> None:
    demo_server.generate(text="once upon a time", sampling_params={"ignore_eos": True})
    log = demo_server.log
    stamp = r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "
    for line in (
        r"server_args=ServerArgs\(model_path=None, ",
        r"max_total_num_tokens=\d+, chunked_prefill_size=\d+, max_running_requests=8, "
        r"context_len=512$",
        r"The server is fired up and ready to roll!$",
        r"Prefill batch\. #new-seq: 1, #new-token: \d+, #cached-token: 0, ",
        r"Decode batch\. #running-req: \d+, .*gen throughput \(token/s\): ",
        r'INFO:     127\.0\.0\.1:\d+ - "POST /generate HTTP/1\.1" 200 OK$',
    ):
        assert re.search(stamp + line, log, re.MULTILINE), f"{line}\n{log}"
