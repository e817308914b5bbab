"""Ollama's API over a fake LLM."""

import json

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import WORDS, FakeLLM

from jaxserve.request import FinishReason
from jaxserve.server.foreign_answers import OllamaChatAnswer, OllamaGenerateAnswer
from jaxserve.server.state import VERSION

TEXT = " Paris is the"
HELLO = [{"role": "user", "content": "What is the capital of France?"}]
LIMIT = {"options": {"num_predict": 3}}
CHAT = {"model": "m", "messages": HELLO, **LIMIT}
GENERATE = {"model": "m", "prompt": "What is the capital of France?", **LIMIT}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
WHOLE = {"stream": False}
ANSWERS = {"chat": OllamaChatAnswer, "generate": OllamaGenerateAnswer}


async def post(client: TestClient, path: str, body: object, status: int = 200) -> dict:
    response = await client.post(f"/api/{path}", json=body)
    answer = await response.json()
    assert response.status == status, answer
    if path in ANSWERS and status == 200:
        ANSWERS[path].model_validate(answer)
    return answer


async def lines_of(client: TestClient, path: str, body: dict) -> list[dict]:
    response = await client.post(f"/api/{path}", data=json.dumps(body))
    raw = await response.text()
    assert response.status == 200, raw
    assert response.headers["Content-Type"] == "application/x-ndjson"
    *lines, end = raw.split("\n")
    assert end == ""
    for line in lines:
        if "error" not in json.loads(line):
            ANSWERS[path].model_validate_json(line)
    return [json.loads(line) for line in lines]


def without_times(line: dict) -> dict:
    assert line.pop("created_at").endswith("Z")
    total, load, prompt, output = (
        line.pop(f"{name}_duration", 0) for name in ("total", "load", "prompt_eval", "eval")
    )
    assert load == 0
    assert 0 <= prompt + output <= total
    return line


END = {"done": True, "done_reason": "length", "prompt_eval_count": 1, "eval_count": 3}


async def test_chat(client: TestClient, llm: FakeLLM) -> None:
    said = {"role": "assistant", "content": TEXT}
    answer = without_times(await post(client, "chat", CHAT | WHOLE))
    assert answer == {"model": "m", "message": said, **END}
    assert llm.messages == HELLO
    assert llm.submitted[0].clamps is True
    lines = [without_times(line) for line in await lines_of(client, "chat", CHAT)]
    assert lines == [
        *({"model": "m", "message": said | {"content": word}, "done": False} for word in WORDS[:3]),
        {"model": "m", "message": said | {"content": ""}, **END},
    ]


async def test_generate(client: TestClient, llm: FakeLLM) -> None:
    body = GENERATE | {"system": "Be brief."}
    answer = without_times(await post(client, "generate", body | WHOLE))
    assert answer == {"model": "m", "response": TEXT, **END, "prompt_eval_count": 2}
    assert llm.messages == [{"role": "system", "content": "Be brief."}, *HELLO]
    lines = [without_times(line) for line in await lines_of(client, "generate", body)]
    assert lines[0] == {"model": "m", "response": " Paris", "done": False}
    assert lines[-1] == {"model": "m", "response": "", **END, "prompt_eval_count": 2}


async def test_a_raw_prompt_goes_as_it_is(client: TestClient, llm: FakeLLM) -> None:
    await post(client, "generate", GENERATE | WHOLE | {"raw": True, "prompt": "a b"})
    assert llm.submitted[0].prompt == (1, 10, 11)
    assert not llm.messages


async def test_options_arrive(client: TestClient, llm: FakeLLM) -> None:
    options = {
        "temperature": 0.25, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "seed": 7, "stop": ["X"],
        "repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "num_predict": 4, "num_ctx": 4096, "num_gpu": 1, "mirostat": 0, "tfs_z": 1,
        "typical_p": None, "repeat_last_n": -1,
    }  # fmt: skip
    await post(client, "chat", CHAT | WHOLE | {"options": options, "keep_alive": "5m"})
    params = llm.submitted[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.25, 0.5, 5, 0.1)
    assert (params.seed, params.stop, params.max_new_tokens) == (7, ("X",), 4)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (
        1.5, 0.5, 0.25,
    )  # fmt: skip
    for num_predict, limit in ((None, 2048), (-1, None), (-2, None)):
        await post(client, "chat", CHAT | WHOLE | {"options": {"num_predict": num_predict}})
        assert llm.submitted[-1].params.max_new_tokens == limit


async def test_without_a_prompt_the_model_is_loaded(client: TestClient, llm: FakeLLM) -> None:
    answer = without_times(await post(client, "generate", {"model": "m"}))
    assert answer == {"model": "m", "response": "", "done": True, "done_reason": "load"}
    answer = without_times(await post(client, "chat", {"model": "m", "keep_alive": 0}))
    assert answer["done_reason"] == "unload"
    assert not llm.submitted


async def test_logprobs(client: TestClient) -> None:
    body = CHAT | {"logprobs": True, "top_logprobs": 2}
    answer = await post(client, "chat", body | WHOLE)
    assert [item["token"] for item in answer["logprobs"]] == list(WORDS[:3])
    assert {len(item["top_logprobs"]) for item in answer["logprobs"]} == {2}
    lines = await lines_of(client, "chat", body)
    assert [item for line in lines for item in line.get("logprobs", ())] == answer["logprobs"]


async def test_thinking_and_calls(client: TestClient, thinker: FakeLLM) -> None:
    body = {"model": "m", "messages": HELLO, "tools": [WEATHER], "think": True}
    answer = await post(client, "chat", body | WHOLE)
    calls = [{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]
    assert answer["message"]["thinking"] == "Hm."
    assert answer["message"]["content"].strip() == "Well,"
    assert answer["message"]["tool_calls"] == calls
    assert answer["done_reason"] == "stop"
    assert thinker.template_kwargs["enable_thinking"] is True
    said = [line["message"] for line in await lines_of(client, "chat", body)]
    assert "".join(message.get("thinking", "") for message in said) == "Hm."
    assert "".join(message["content"] for message in said) == answer["message"]["content"]
    assert [call for message in said for call in message.get("tool_calls", ())] == calls
    await post(client, "chat", body | WHOLE | {"think": "low"})
    assert thinker.template_kwargs["reasoning_effort"] == "low"
    await post(client, "generate", GENERATE | WHOLE | {"think": False})
    assert thinker.template_kwargs["enable_thinking"] is False


async def test_calls_get_ids_and_their_answers_too(client: TestClient, llm: FakeLLM) -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    messages = [
        *HELLO,
        {"role": "assistant", "thinking": "Hm", "tool_calls": [call, call]},
        {"role": "tool", "tool_name": "f", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    await post(client, "chat", CHAT | WHOLE | {"messages": messages})
    assistant, first, second = llm.messages[1:]
    assert assistant["reasoning_content"] == "Hm"
    assert [call["id"] for call in assistant["tool_calls"]] == ["call00000", "call00001"]
    assert (first["tool_call_id"], first["name"]) == ("call00000", "f")
    assert second["tool_call_id"] == "call00001"


@pytest.mark.parametrize("given", ["json", {"type": "object"}])
async def test_formats_become_grammars(client: TestClient, llm: FakeLLM, given: object) -> None:
    await post(client, "chat", CHAT | WHOLE | {"format": given})
    assert json.loads(llm.submitted[0].params.grammar.source) == {"type": "object"}


REFUSED = [
    ("chat", {"options": {"mirostat": 1}}, "mirostat"),
    ("chat", {"options": {"foo": 1}}, "foo"),
    ("chat", {"options": {"repeat_last_n": 64}}, "repeat_last_n"),
    ("chat", {"options": {"tfs_z": 0.5}}, "`options.tfs_z` 0.5 is not supported: there is no such"),
    ("chat", {"options": {"top_p": 2}}, "top_p must be in (0, 1], got 2"),
    ("chat", {"format": "xml"}, "format must be \"json\" or a JSON schema, got 'xml'."),
    ("chat", {"messages": [HELLO[0] | {"images": ["x"]}]}, "`images` is not supported: the model"),
    ("chat", {"messages": [{"content": "x"}]}, "role"),
    (
        "chat",
        {"messages": [{"role": "assistant", "tool_calls": "x"}]},
        "messages[0].tool_calls must be a list of calls.",
    ),
    (
        "chat",
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]},
        "messages[0].tool_calls[0] must be an object with a function that has a name",
    ),
    ("chat", {"images": ["x"]}, "`images` is not supported"),
    ("generate", {"images": ["x"]}, "`images` is not supported"),
    ("generate", {"suffix": "x"}, "`suffix` is not supported"),
    ("generate", {"template": "x"}, "`template` is not supported"),
    ("generate", {"context": [0]}, "`context` is not supported: send the conversation to"),
]


@pytest.mark.parametrize(("path", "change", "message"), REFUSED, ids=lambda x: str(x)[:30])
async def test_refusals_name_the_field(
    client: TestClient, path: str, change: dict, message: str
) -> None:
    body = (CHAT if path == "chat" else GENERATE) | change
    answer = await post(client, path, body, 400)
    assert list(answer) == ["error"]
    assert message in answer["error"]


async def test_a_dead_engine_is_a_line(client: TestClient, llm: FakeLLM) -> None:
    llm.abort_at[2] = FinishReason("abort", message="It is dead.", status_code=500)
    assert (await lines_of(client, "chat", CHAT))[-1] == {"error": "It is dead."}
    assert await post(client, "chat", CHAT | WHOLE, 500) == {"error": "It is dead."}


async def test_an_abort_ends_the_answer(client: TestClient, llm: FakeLLM) -> None:
    llm.abort_at[2] = FinishReason("abort", message="Aborted")
    answer = await post(client, "chat", CHAT | WHOLE)
    assert (answer["message"]["content"], answer["done_reason"]) == (" Paris is", "abort")


# --- what tells of the model ---


async def test_the_model_is_listed(client: TestClient) -> None:
    (model,) = (await (await client.get("/api/tags")).json())["models"]
    assert model["name"] == model["model"] == "fake/model"
    assert len(model["digest"]) == 64
    assert model["details"]["family"] == "llama"
    (running,) = (await (await client.get("/api/ps")).json())["models"]
    assert running["context_length"] == 512
    assert running.items() >= model.items()
    assert await (await client.get("/api/version")).json() == {"version": VERSION}


async def test_the_model_is_shown(client: TestClient, llm: FakeLLM) -> None:
    object.__setattr__(llm.info, "chat_template", "{{ messages }}")
    llm.info.generation_defaults["temperature"] = 0.5
    answer = await post(client, "show", {"model": "m"})
    assert answer["template"] == "{{ messages }}"
    assert answer["parameters"] == "temperature 0.5"
    assert answer["model_info"]["llama.context_length"] == 512
    assert answer["capabilities"] == ["completion"]
    object.__setattr__(llm.info, "reasoning_parser", "qwen3")
    object.__setattr__(llm.info, "tool_call_parser", "qwen25")
    answer = await post(client, "show", {"model": "m"})
    assert answer["capabilities"] == ["completion", "tools", "thinking"]


async def test_the_root_answers(client: TestClient) -> None:
    assert (await client.head("/")).status == 200
    assert (await client.post("/api/embed", json={})).status == 501


async def test_invocations_are_chat_completions(client: TestClient) -> None:
    response = await client.post("/invocations", json={"messages": HELLO, "max_tokens": 3})
    answer = await response.json()
    assert answer["choices"][0]["message"]["content"] == TEXT
    response = await client.post("/invocations", json={"messages": []})
    assert (await response.json())["type"] == "BadRequestError"
