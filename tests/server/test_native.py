"""/generate and the liveness endpoints over a fake LLM."""

import asyncio
import json

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM

from jaxserve.config import ServerConfig
from jaxserve.errors import ContextLengthError, EngineDeadError, OverloadedError
from jaxserve.request import FinishReason

SHORT = {"max_new_tokens": 3, "temperature": 0}
TEXT = " Paris is the"


async def generate(client: TestClient, body: object, status: int = 200) -> object:
    response = await client.post("/generate", json=body)
    answer = await response.json()
    assert response.status == status, answer
    return answer


def events(raw: str) -> list[dict]:
    *data, done, end = raw.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in data]


async def stream(client: TestClient, body: dict) -> list[dict]:
    response = await client.post("/generate", json=body | {"stream": True})
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    return events(await response.text())


async def test_text_alone_uses_the_defaults(client: TestClient, llm: FakeLLM) -> None:
    answer = await generate(client, {"text": "What is the capital of France?"})
    assert answer["text"].startswith(" Paris is the capital of France")
    meta = answer["meta_info"]
    latency = meta.pop("e2e_latency")
    assert latency >= 0
    assert meta == {
        "id": "fake0",
        "finish_reason": {"type": "stop", "matched": 2},
        "prompt_tokens": 6,
        "weight_version": "v7",
        "num_retractions": 0,
        "completion_tokens": 13,
        "cached_tokens": 1,
        "reasoning_tokens": 0,
    }
    assert answer["output_ids"][-1] == 2
    (submission,) = llm.submitted
    assert submission.params.max_new_tokens == 128
    assert submission.clamps is True


async def test_put_and_input_ids(client: TestClient, llm: FakeLLM) -> None:
    body = {"input_ids": [5, 6], "sampling_params": SHORT}
    response = await client.put("/generate", json=body)
    assert (await response.json())["text"] == TEXT
    assert llm.submitted[0].prompt == (5, 6)
    assert llm.submitted[0].clamps is False


async def test_nulls_and_unknown_top_level_keys_change_nothing(client: TestClient) -> None:
    body = {
        "text": "a", "input_ids": None, "sampling_params": SHORT | {"regex": None, "stop": None},
        "rid": None, "return_logprob": None, "logprob_start_len": None, "lora_path": None,
        "image_data": None, "session_params": None, "stream": None, "model": "x",
        "stream_output": True, "no_such_key": {"a": 1}, "priority": None,
    }  # fmt: skip
    assert (await generate(client, body))["text"] == TEXT


async def test_a_batch_answers_a_list_in_order(client: TestClient, llm: FakeLLM) -> None:
    body = {
        "text": ["a", "b c"],
        "rid": "mine",
        "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 2}],
    }
    answers = await generate(client, body)
    assert [answer["text"] for answer in answers] == [" Paris", " Paris is"]
    assert [answer["meta_info"]["id"] for answer in answers] == ["mine_0", "mine_1"]
    assert [answer["meta_info"]["prompt_tokens"] for answer in answers] == [1, 2]


async def test_n_is_prompt_major(client: TestClient) -> None:
    answers = await generate(
        client, {"text": ["a", "b"], "rid": ["x", "y"], "sampling_params": SHORT | {"n": 2}}
    )
    ids = [answer["meta_info"]["id"] for answer in answers]
    assert ids == ["x_0", "x_1", "y_0", "y_1"]
    single = await generate(client, {"text": "a", "sampling_params": SHORT | {"n": 2}})
    assert len(single) == 2


async def test_logprobs_of_output_tokens(client: TestClient) -> None:
    body = {
        "text": "a", "sampling_params": {"max_new_tokens": 2}, "return_logprob": True,
        "top_logprobs_num": 2, "return_text_in_logprobs": True, "logprob_start_len": -1,
    }  # fmt: skip
    meta = (await generate(client, body))["meta_info"]
    assert [entry[1:] for entry in meta["output_token_logprobs"]] == [[0, " Paris"], [1, " is"]]
    assert meta["output_top_logprobs"][0] == [[0.0, 0, " Paris"], [-1.0, 1, " is"]]
    assert meta["input_token_logprobs"] == []
    plain = (await generate(client, body | {"return_text_in_logprobs": False}))["meta_info"]
    assert plain["output_token_logprobs"][0][2] is None


async def test_stream_is_cumulative_and_ends_with_done(client: TestClient) -> None:
    got = await stream(client, {"text": "a", "sampling_params": SHORT})
    assert [event["text"] for event in got] == [" Paris", " Paris is", TEXT]
    assert [event["output_ids"] for event in got] == [[0], [0, 1], [0, 1, 2]]
    reasons = [event["meta_info"]["finish_reason"] for event in got]
    assert reasons == [None, None, {"type": "length", "length": 3}]
    assert all("index" not in event for event in got)


async def test_stream_bytes(client: TestClient) -> None:
    response = await client.post(
        "/generate",
        json={"text": "a", "rid": "r", "sampling_params": {"max_new_tokens": 2}, "stream": True},
    )
    first, _ = (await response.read()).split(b"\n\n", 1)
    assert first == (
        b'data: {"text":" Paris","output_ids":[0],"meta_info":{"id":"r","finish_reason":null,'
        b'"prompt_tokens":1,"weight_version":"v7","num_retractions":0,"completion_tokens":1,'
        b'"cached_tokens":1,"reasoning_tokens":0}}'
    )


async def test_batch_stream_carries_the_index(client: TestClient) -> None:
    got = await stream(client, {"text": ["a", "b"], "sampling_params": SHORT})
    for index in (0, 1):
        own = [event["text"] for event in got if event["index"] == index]
        assert own == [" Paris", " Paris is", TEXT]


@pytest.mark.parametrize("config", [ServerConfig(stream_interval=4)])
async def test_stream_interval(client: TestClient) -> None:
    got = await stream(client, {"text": "a"})
    assert [event["meta_info"]["completion_tokens"] for event in got] == [1, 5, 9, 13]
    assert got[-1]["text"].startswith(TEXT)


# --- refusals ---

EXACTLY_ONE = "Either text, input_ids or input_embeds should be provided."
REFUSED = [
    ({}, EXACTLY_ONE),
    ({"text": None}, EXACTLY_ONE),
    ({"text": "a", "input_ids": [1]}, EXACTLY_ONE + " Both text and input_ids were given."),
    ({"input_ids": []}, "input_ids cannot be empty."),
    ({"text": []}, "text cannot be empty."),
    ({"text": ""}, "input_ids cannot be empty."),
    ({"text": "a", "sampling_params": {"n": 0}}, "n must be at least 1, got 0."),
    ({"text": "a", "sampling_params": {"n": 2000}}, "n must be in [1, 1024], got 2000."),
    (
        {"text": ["a"] * 65, "sampling_params": {"n": 1024}},
        "65 prompts with n=1024 are 66560 sequences, a request may have 65536; send them in "
        "several requests.",
    ),
    (
        {"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 2}]},
        "The parallel_sample_num should be the same for all samples in sample params.",
    ),
    (
        {"text": ["a", "b"], "rid": ["x", "x"]},
        "Duplicate request IDs detected within the request: x",
    ),
    (
        {"text": ["a", "b"], "rid": ["x"]},
        "rid has 1 items, the request has 2 prompts; send one item per prompt or a single value "
        "for all.",
    ),
    (
        {"text": "a", "sampling_params": {"temperature": -1}},
        "temperature must be a non-negative finite number, got -1.0.",
    ),
    ({"text": "a", "sampling_params": {"top_p": 0}}, "top_p must be in (0, 1], got 0.0."),
    (
        {"text": "a", "return_logprob": True, "top_logprobs_num": 99},
        "the number of top logprobs must be in [0, 20], got 99.",
    ),
    (
        {"text": "a", "return_logprob": True, "logprob_start_len": 0},
        "`logprob_start_len` must be -1, got 0: logprobs of prompt tokens are not supported. "
        "Leave it away for the logprobs of output tokens.",
    ),
    (
        {"text": "a", "lora_path": "x"},
        "`lora_path` is not supported: there are no LoRA adapters. Leave it away or send null.",
    ),
    (
        {"text": "a", "session_params": {"id": "s"}},
        "`session_params` is not supported: there are no sessions. Leave it away or send null.",
    ),
]


@pytest.mark.parametrize(("body", "message"), REFUSED)
async def test_refused_values(client: TestClient, body: dict, message: str) -> None:
    assert await generate(client, body, 400) == {"error": {"message": message}}
    assert (await generate(client, {"text": "a", "sampling_params": SHORT}))["text"] == TEXT


@pytest.mark.parametrize(
    "name",
    ["input_embeds", "image_data", "token_ids_logprob", "return_hidden_states", "cache_salt"],
)
async def test_unsupported_fields_are_named(client: TestClient, name: str) -> None:
    for value in ([1], [0]):
        answer = await generate(client, {"text": "a", name: value}, 400)
        assert answer["error"]["message"].startswith(f"`{name}` is not supported: ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"text": 3},
            "text: invalid type: integer `3`, expected a string or a sequence of strings",
        ),
        ({"text": ["a", None]}, "text: invalid type: null, expected a string"),
        ({"input_ids": "a"}, 'input_ids: invalid type: string "a", expected a sequence'),
        ({"input_ids": [1, 2.5]}, "input_ids: invalid type: floating point `2.5`, expected i64"),
        ({"input_ids": [True]}, "input_ids: invalid type: boolean `true`, expected i64"),
        ({"input_ids": [[1], 2]}, "input_ids: invalid type: integer `2`, expected a sequence"),
        ({"text": "a", "rid": {}}, "rid: invalid type: map, expected a string"),
        ({"text": "a", "stream": 1}, "stream: invalid type: integer `1`, expected a boolean"),
        ({"text": "a", "sampling_params": []}, None),
        (
            {"text": "a", "sampling_params": {"stop": [None]}},
            "invalid type: null, expected a string",
        ),
        ({"text": "a", "sampling_params": "x"}, None),
        ({"text": "a", "top_logprobs_num": [[]]}, None),
    ],
)
async def test_wrong_types_are_a_bare_string(
    client: TestClient, body: dict, message: str | None
) -> None:
    answer = await generate(client, body, 400)
    if message is not None:
        assert answer == {"error": message}


async def test_unknown_sampling_key_names_what_is_known(client: TestClient) -> None:
    body = {"text": "a", "sampling_params": {"foo": 1}, "stream": True}
    answer = await generate(client, body, 400)
    assert answer["error"].startswith("unknown field `foo`, expected one of `max_new_tokens`, ")


async def test_errors_of_a_stream_are_told_in_the_stream(client: TestClient, llm: FakeLLM) -> None:
    bad = {"text": "a", "sampling_params": {"top_p": 2}}
    assert await stream(client, bad) == [
        {
            "error": {
                "message": "top_p must be in (0, 1], got 2.0.",
                "type": "invalid_request_error",
                "code": 400,
                "retryable": False,
            }
        }
    ]
    llm.refuse = OverloadedError("The request queue is full.")
    (event,) = await stream(client, {"text": "a"})
    assert event["error"]["code"] == 503
    assert event["error"]["retryable"] is True


async def test_refusals_of_the_llm(client: TestClient, llm: FakeLLM) -> None:
    llm.refuse = ContextLengthError("too long")
    assert await generate(client, {"text": "a"}, 400) == {"error": {"message": "too long"}}
    llm.refuse = OverloadedError("The request queue is full.")
    assert await generate(client, {"text": "a"}, 503) == {
        "object": "error",
        "message": "The request queue is full.",
        "type": "503",
        "param": None,
        "code": 503,
    }
    llm.refuse = EngineDeadError("the engine has stopped")
    answer = await generate(client, {"text": "a"}, 500)
    assert (answer["type"], answer["code"]) == ("500", 500)


async def test_a_failing_batch_closes_what_it_had_opened(client: TestClient, llm: FakeLLM) -> None:
    body = {"text": ["a", ""], "rid": "r"}
    await generate(client, body, 400)
    assert llm.closed == ["r_0"]


# --- ends from outside ---


async def test_an_abort_keeps_the_partial_text(client: TestClient, llm: FakeLLM) -> None:
    llm.abort_at = {2: FinishReason("abort", message="Aborted")}
    answer = await generate(client, {"text": "a"})
    assert answer["text"] == " Paris is"
    assert answer["meta_info"]["finish_reason"] == {
        "type": "abort", "message": "Aborted", "status_code": None, "err_type": None,
    }  # fmt: skip


@pytest.mark.parametrize("status", [400, 500, 503])
async def test_an_abort_with_a_status_is_that_status(
    client: TestClient, llm: FakeLLM, status: int
) -> None:
    llm.abort_at = {2: FinishReason("abort", message="no", status_code=status)}
    answer = await generate(client, {"text": "a"}, status)
    assert answer == (
        {"error": {"message": "no"}}
        if status == 400
        else {"object": "error", "message": "no", "type": str(status), "param": None,
              "code": status}
    )  # fmt: skip
    last = (await stream(client, {"text": "a"}))[-1]
    assert last["meta_info"]["finish_reason"]["status_code"] == status


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_goes_away_closes_its_streams(
    client: TestClient, llm: FakeLLM, streamed: bool
) -> None:
    reached = asyncio.Event()

    async def wait() -> None:
        if llm.open["r_0"]._num_tokens == 3:
            reached.set()
            await asyncio.Event().wait()

    llm.wait = wait
    body = {"text": "a", "rid": "r", "stream": streamed, "sampling_params": {"n": 2}}
    request = asyncio.create_task(client.post("/generate", json=body))
    await reached.wait()
    if streamed:
        (await request).close()
    else:
        request.cancel()
    async with asyncio.timeout(5):
        while len(llm.closed) < 2:
            await asyncio.sleep(0.01)
    assert sorted(llm.closed) == ["r_0", "r_1"]


async def test_ten_thousand_tiny_requests(client: TestClient, llm: FakeLLM) -> None:
    async def one(i: int) -> None:
        body = {"text": "a", "rid": f"r{i}", "sampling_params": {"max_new_tokens": 1}}
        answer = await generate(client, body)
        assert (answer["text"], answer["meta_info"]["id"]) == (" Paris", f"r{i}")

    for first in range(0, 10_000, 500):
        await asyncio.gather(*(one(i) for i in range(first, first + 500)))
    assert llm.num_open == 0
    assert not llm.closed


# --- liveness ---


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping", "/health_generate"])
async def test_liveness(client: TestClient, llm: FakeLLM, path: str) -> None:
    response = await client.get(path)
    assert (response.status, await response.read()) == (200, b"")
    assert len(llm.submitted) == (path == "/health_generate")
    llm.is_healthy = False
    assert (await client.get(path)).status == 503


async def test_health_generate_fails_when_generating_does(client: TestClient, llm: FakeLLM) -> None:
    llm.refuse = OverloadedError("full")
    assert (await client.get("/health_generate")).status == 503
