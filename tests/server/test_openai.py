"""/v1/completions and /v1/chat/completions over a fake LLM, and by the official client."""

import asyncio
import json

import openai
import pytest
from aiohttp.test_utils import TestClient, TestServer
from server import openai_calls
from server.fake_llm import EOS, FakeLLM
from server.openai_calls import raw_stream, stream

from jaxserve.config import ServerConfig
from jaxserve.request import FinishReason
from jaxserve.server import openai_answers
from jaxserve.server.app import make_app

HELLO = [{"role": "user", "content": "What is the capital of France?"}]
CHAT = {"messages": HELLO, "max_tokens": 3, "rid": "r", "model": "m"}
COMPLETE = {"prompt": "a b", "max_tokens": 3, "rid": "r", "model": "m"}
TEXT = " Paris is the"


async def post(client: TestClient, path: str, body: object, status: int = 200) -> dict:
    answer = await openai_calls.post(client, path, body, status)
    answer.pop("created", None)
    return answer


def usage(prompt: int, completion: int, details: object = None) -> dict:
    return {
        "prompt_tokens": prompt, "total_tokens": prompt + completion,
        "completion_tokens": completion, "prompt_tokens_details": details, "reasoning_tokens": 0,
        "completion_tokens_details": None,
    }  # fmt: skip


# --- whole answers ---


async def test_chat(client: TestClient, llm: FakeLLM) -> None:
    assert await post(client, "chat/completions", CHAT) == {
        "id": "r",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": TEXT,
                    "reasoning_content": None,
                    "tool_calls": None,
                },
                "logprobs": None,
                "finish_reason": "length",
                "matched_stop": None,
            }
        ],
        "usage": usage(1, 3),
        "metadata": {"weight_version": "v7"},
    }
    assert llm.messages == HELLO


async def test_chat_without_a_limit_goes_to_the_end(client: TestClient, llm: FakeLLM) -> None:
    answer = await post(client, "chat/completions", {"messages": HELLO})
    assert len(answer["id"]) == 32
    assert answer["model"] == "default"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["matched_stop"] == EOS
    (submission,) = llm.submitted
    assert submission.params.max_new_tokens is None


async def test_completion(client: TestClient, llm: FakeLLM) -> None:
    assert await post(client, "completions", COMPLETE) == {
        "id": "r",
        "object": "text_completion",
        "model": "m",
        "choices": [
            {
                "index": 0, "text": TEXT, "logprobs": None, "finish_reason": "length",
                "matched_stop": None,
            }
        ],
        "usage": usage(2, 3),
        "metadata": {"weight_version": "v7"},
    }  # fmt: skip
    await post(client, "completions", {"prompt": [4, 5]})
    assert llm.submitted[-1].prompt == (4, 5)
    assert llm.submitted[-1].params.max_new_tokens == 16
    assert [s.clamps for s in llm.submitted] == [False, True]


async def test_n_and_prompt_lists_are_prompt_major(client: TestClient, llm: FakeLLM) -> None:
    body = COMPLETE | {"prompt": ["a", "b c"], "n": 2, "echo": True}
    answer = await post(client, "completions", body)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["a" + TEXT] * 2 + ["b c" + TEXT] * 2
    assert answer["usage"] == usage(3, 12)
    assert [s.rid for s in llm.submitted] == ["r_0", "r_1"]


async def test_echo_of_token_ids(client: TestClient) -> None:
    body = COMPLETE | {"prompt": [[0, 1], [2]], "echo": True}
    answer = await post(client, "completions", body)
    assert [c["text"] for c in answer["choices"]] == [" Paris is" + TEXT, " the" + TEXT]


async def test_sampling_fields_arrive(client: TestClient, llm: FakeLLM) -> None:
    body = {
        "messages": HELLO, "max_completion_tokens": 9, "max_tokens": 5, "temperature": 0.5,
        "top_p": 0.9, "top_k": 7, "min_p": 0.1, "frequency_penalty": 0.2, "presence_penalty": 0.3,
        "repetition_penalty": 1.1, "stop": ["x", "y"], "stop_token_ids": [3], "seed": 42,
        "logit_bias": {"5": -1.5}, "min_tokens": 2, "ignore_eos": True, "no_stop_trim": True,
        "skip_special_tokens": False, "logprobs": True, "top_logprobs": 2, "n": 2, "priority": 4,
    }  # fmt: skip
    await post(client, "chat/completions", body)
    (submission,) = llm.submitted
    params = submission.params
    assert (submission.n, submission.priority) == (2, 4)
    assert (params.max_new_tokens, params.min_new_tokens) == (9, 2)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.1)
    assert (params.frequency_penalty, params.presence_penalty) == (0.2, 0.3)
    assert (params.repetition_penalty, params.seed) == (1.1, 42)
    assert (params.stop, params.stop_token_ids) == (("x", "y"), (3,))
    assert params.logit_bias == ((5, -1.5),)
    assert params.num_logprobs == 2
    assert (params.ignore_eos, params.no_stop_trim, params.skip_special_tokens) == (
        True, True, False,
    )  # fmt: skip


async def test_nulls_and_unknown_fields_change_nothing(client: TestClient, llm: FakeLLM) -> None:
    names = (
        "temperature", "top_p", "n", "stop", "seed", "logit_bias", "stream", "stream_options",
        "tools", "tool_choice", "response_format", "logprobs", "top_logprobs", "user", "regex",
        "lora_path", "return_hidden_states", "chat_template_kwargs", "reasoning_effort",
    )  # fmt: skip
    body = CHAT | dict.fromkeys(names) | {"top_k": -1, "no_such_field": [1], "store": True}
    await post(client, "chat/completions", body)
    params = llm.submitted[0].params
    assert (params.temperature, params.top_p, params.top_k) == (1.0, 1.0, 0)
    body |= {
        "stream_options": {"include_usage": None, "continuous_usage_stats": None},
        "response_format": {"type": None, "json_schema": None},
    }
    await post(client, "chat/completions", body)


async def test_the_models_own_sampling_is_the_default() -> None:
    defaults = {"temperature": 0.25, "top_k": 0, "top_p": 0.5}
    llm = FakeLLM(generation_defaults=defaults)
    for mode, expected in (("model", (0.25, 0.5)), ("openai", (1.0, 1.0))):
        app = make_app(llm, ServerConfig(sampling_defaults=mode))
        async with TestClient(TestServer(app)) as client:
            await post(client, "chat/completions", CHAT)
            params = llm.submitted[-1].params
            assert (params.temperature, params.top_p) == expected
            await post(client, "chat/completions", CHAT | {"temperature": 0.75})
            assert llm.submitted[-1].params.temperature == 0.75


async def test_template_arguments_and_text_parts(client: TestClient, llm: FakeLLM) -> None:
    body = CHAT | {
        "messages": [
            {"role": "SYSTEM", "content": [{"type": "text", "text": "be"},
                                           {"type": "text", "text": "kind"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "name": None},
        ],
        "chat_template_kwargs": {"enable_thinking": True},
        "reasoning_effort": "low",
        "separate_reasoning": True,
    }  # fmt: skip
    answer = await post(client, "chat/completions", body)
    assert answer["choices"][0]["message"]["reasoning_content"] is None
    assert llm.messages == [
        {"role": "system", "content": "be kind"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
    ]
    assert llm.template_kwargs == {"reasoning_effort": "low", "enable_thinking": True}


async def test_chat_takes_token_ids(client: TestClient, llm: FakeLLM) -> None:
    await post(client, "chat/completions", {"input_ids": [7, 8], "max_tokens": 1})
    assert llm.submitted[0].prompt == (7, 8)


async def test_logprobs(client: TestClient) -> None:
    body = CHAT | {"max_tokens": 1, "logprobs": True, "top_logprobs": 1}
    answer = await post(client, "chat/completions", body)
    token = {"token": " Paris", "bytes": list(b" Paris")}
    (content,) = answer["choices"][0]["logprobs"]["content"]
    assert content["top_logprobs"] == [token | {"logprob": 0.0}]
    assert content["token"] == " Paris"
    assert content["logprob"] == pytest.approx(-0.6931, abs=1e-4)
    answer = await post(client, "completions", COMPLETE | {"max_tokens": 1, "logprobs": 2})
    assert answer["choices"][0]["logprobs"] == {
        "text_offset": [-1],
        "token_logprobs": [pytest.approx(-0.6931, abs=1e-4)],
        "tokens": [" Paris"],
        "top_logprobs": [{" Paris": 0.0, " is": -1.0}],
    }


@pytest.mark.parametrize("config", [ServerConfig(enable_cache_report=True)])
async def test_cached_tokens_are_reported_on_request(client: TestClient) -> None:
    answer = await post(client, "completions", COMPLETE | {"n": 2})
    assert answer["usage"] == usage(2, 6, {"cached_tokens": 1})


# --- streams ---


async def test_chat_stream_bytes(client: TestClient) -> None:
    body = CHAT | {"stream_options": {"include_usage": True}}
    data = await raw_stream(client, "chat/completions", body)
    created = json.loads(data[0].removeprefix("data: "))["created"]
    top = f'data: {{"id":"r","object":"chat.completion.chunk","created":{created},"model":"m",'
    still_open = '"logprobs":null,"finish_reason":null,"matched_stop":null}]}'

    def delta(content: str) -> str:
        return f'{top}"choices":[{{"index":0,"delta":{{{content}}},{still_open}'

    assert data == [
        delta('"role":"assistant","content":"","reasoning_content":null'),
        delta('"content":" Paris","reasoning_content":null'),
        delta('"content":" is","reasoning_content":null'),
        delta('"content":" the","reasoning_content":null'),
        f'{top}"choices":[{{"index":0,"delta":{{"reasoning_content":null}},"logprobs":null,'
        '"finish_reason":"length","matched_stop":null}]}',
        f'{top}"choices":[],"usage":{{"prompt_tokens":1,"total_tokens":4,"completion_tokens":3,'
        '"prompt_tokens_details":null,"reasoning_tokens":0,"completion_tokens_details":null}}',
    ]


async def test_completion_stream(client: TestClient) -> None:
    body = COMPLETE | {"n": 2, "echo": True, "stream_options": {"continuous_usage_stats": True}}
    chunks = await stream(client, "completions", body)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    for index in (0, 1):
        choices = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in choices) == "a b" + TEXT
        assert [choice["finish_reason"] for choice in choices] == [None] * 3 + ["length"]
    assert chunks[-1]["usage"] == usage(2, 6)


async def test_streams_say_what_whole_answers_say(client: TestClient) -> None:
    body = {"messages": HELLO, "n": 3, "logprobs": True, "top_logprobs": 1}
    whole = (await post(client, "chat/completions", body))["choices"]
    chunks = await stream(client, "chat/completions", body)
    for expected in whole:
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == expected["index"]]
        text = "".join(choice["delta"].get("content") or "" for choice in own)
        assert text == expected["message"]["content"]
        logprobs = [e for c in own if c["logprobs"] for e in c["logprobs"]["content"]]
        assert logprobs == expected["logprobs"]["content"]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] == expected["finish_reason"] == "stop"
        assert own[-1]["matched_stop"] == EOS
        assert all("reasoning_content" in choice["delta"] for choice in own)


async def test_what_fails_before_the_first_chunk_is_an_http_error(
    client: TestClient, llm: FakeLLM
) -> None:
    llm.abort_at = {0: FinishReason("abort", message="no memory", status_code=503)}
    answer = await post(client, "chat/completions", CHAT | {"stream": True}, 503)
    assert answer["message"] == "no memory"


async def test_what_fails_later_is_an_error_event(client: TestClient, llm: FakeLLM) -> None:
    llm.abort_at = {1: FinishReason("abort", message="engine died", status_code=500)}
    for path, body in (("chat/completions", CHAT), ("completions", COMPLETE)):
        *_, last = await stream(client, path, body)
        assert last["error"] == {
            "object": "error", "message": "engine died", "type": "InternalServerError",
            "param": None, "code": 500,
        }  # fmt: skip


async def test_an_abort_by_a_client_is_a_finish_reason(client: TestClient, llm: FakeLLM) -> None:
    llm.abort_at = {1: FinishReason("abort", message="Aborted")}
    answer = await post(client, "chat/completions", CHAT)
    assert answer["choices"][0]["finish_reason"] == "abort"


async def test_a_client_that_goes_away_closes_its_streams(client: TestClient, llm: FakeLLM) -> None:
    reached = asyncio.Event()

    async def wait() -> None:
        if any(stream._num_tokens == 2 for stream in llm.open.values()):
            reached.set()
            await asyncio.Event().wait()

    llm.wait = wait
    response = await client.post("/v1/chat/completions", json=CHAT | {"stream": True, "n": 2})
    await reached.wait()
    response.close()
    async with asyncio.timeout(5):
        while len(llm.closed) < 2:
            await asyncio.sleep(0.01)


# --- the official client ---


async def test_the_official_client_reads_it_all(client: TestClient) -> None:
    base_url = str(client.make_url("/v1"))
    async with openai.AsyncOpenAI(base_url=base_url, api_key="None") as ai:
        chat = await ai.chat.completions.create(
            model="m", messages=HELLO, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2,
            extra_body={"top_k": 1, "separate_reasoning": True},
        )  # fmt: skip
        assert chat.choices[0].message.content == TEXT
        assert chat.choices[0].message.reasoning_content is None
        assert chat.choices[0].logprobs.content[0].top_logprobs[1].token == " is"
        chunks = await ai.chat.completions.create(
            model="m", messages=HELLO, max_tokens=3, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        text, total = "", None
        async for chunk in chunks:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            total = chunk.usage or total
        assert text == TEXT
        assert total.total_tokens == 4
        done = await ai.completions.create(model="m", prompt="a", max_tokens=3, logprobs=1)
        assert done.choices[0].text == TEXT
        assert [model.id async for model in ai.models.list()] == ["fake/model"]
        assert (await ai.models.retrieve("fake/model")).id == "fake/model"
        with pytest.raises(openai.BadRequestError, match="top_p must be in"):
            await ai.completions.create(model="m", prompt="a", top_p=2)
        with pytest.raises(openai.NotFoundError, match="The model 'x' does not exist"):
            await ai.models.retrieve("x")


async def test_answers_are_what_the_documents_say(client: TestClient) -> None:
    """Every key that is sent is described, and what is described is sent."""
    more = {"n": 2, "return_token_ids": True, "return_cached_tokens_details": True}
    more["return_hidden_states"] = True
    chat = CHAT | more | {"logprobs": True, "top_logprobs": 1, "return_meta_info": True}
    for described, path, body in (
        (openai_answers.ChatCompletion, "chat/completions", chat),
        (openai_answers.Completion, "completions", COMPLETE | more | {"logprobs": 1, "echo": True}),
        (openai_answers.Scores, "score", {"query": "a", "items": ["b"], "label_token_ids": [1]}),
    ):
        answer = await (await client.post(f"/v1/{path}", json=body)).json()
        assert described.model_validate(answer, strict=True).model_dump() == answer
    answer = await (await client.get("/v1/models")).json()
    assert openai_answers.ModelList.model_validate(answer).model_dump() == answer
