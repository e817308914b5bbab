"""/generate and the liveness endpoints over a fake LLM."""

import asyncio

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM
from server.native_calls import SHORT, TEXT, events, generate, stream

from jaxserve.config import ServerConfig
from jaxserve.errors import OverloadedError
from jaxserve.request import FinishReason, Grammar, Thought
from jaxserve.server.state import STATE

# With metrics on, which is the default.
TIMES = {
    "queue_time", "forward_entry_time", "prefill_finished_time", "request_received_ts",
    "first_token_latency", "decode_throughput", "response_sent_to_client_ts",
    "request_finished_ts",
}  # fmt: skip


async def test_text_alone_uses_the_defaults(client: TestClient, llm: FakeLLM) -> None:
    answer = await generate(client, {"text": "What is the capital of France?"})
    assert answer["text"].startswith(" Paris is the capital of France")
    meta = answer["meta_info"]
    assert meta.pop("e2e_latency") >= 0
    assert meta.keys() >= TIMES
    assert {name: value for name, value in meta.items() if name not in TIMES} == {
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


@pytest.mark.parametrize("config", [ServerConfig(stream_interval=2)])
async def test_each_prompt_may_have_its_own_interval(client: TestClient) -> None:
    sampling = [{"max_new_tokens": 9, "stream_interval": 4}, {"max_new_tokens": 5}]
    got = await stream(client, {"text": ["a", "b"], "sampling_params": sampling})
    counts = [[e["meta_info"]["completion_tokens"] for e in got if e["index"] == i] for i in (0, 1)]
    assert counts == [[1, 5, 9], [1, 3, 5]]


@pytest.mark.parametrize("config", [ServerConfig(incremental_streaming_output=True)])
async def test_incremental_events_hold_what_is_new(client: TestClient) -> None:
    got = await stream(client, {"text": "a", "sampling_params": SHORT})
    assert [event["text"] for event in got] == [" Paris", " is", " the"]
    assert [event["output_ids"] for event in got] == [[0], [1], [2]]
    assert (await generate(client, {"text": "a", "sampling_params": SHORT}))["text"] == TEXT


async def test_what_a_prompt_is_cached_under(client: TestClient, llm: FakeLLM) -> None:
    for fields in (
        {}, {"extra_key": "a"}, {"cache_salt": "a"}, {"extra_key": "b", "cache_salt": "a"},
        {"extra_key": "", "cache_salt": "ab"}, {"extra_key": ["x"], "cache_salt": None},
        {"extra_key": "x" * 10_000}, {"extra_key": "x" * 9_999}, {"cache_salt": "x" * 10_000},
    ):  # fmt: skip
        await generate(client, {"text": "a"} | fields)
    names = [submission.cache_namespace for submission in llm.submitted]
    assert names[0] == ""
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 256  # each is kept with the prefixes


async def test_prompt_ids_come_back_on_demand(client: TestClient) -> None:
    body = {"input_ids": [[4, 5], [6]], "return_prompt_token_ids": True, "sampling_params": SHORT}
    assert [a["prompt_token_ids"] for a in await generate(client, body)] == [[4, 5], [6]]


async def test_sampling_reaches_the_llm(client: TestClient, llm: FakeLLM) -> None:
    sampling = SHORT | {"regex": "a|b", "stop_regex": ["x+"], "min_new_tokens": 1}
    await generate(client, {"text": "a", "sampling_params": sampling, "priority": 7})
    (submission,) = llm.submitted
    assert submission.params.grammar == Grammar("regex", "a|b")
    assert submission.params.stop_regex == ("x+",)
    assert submission.priority == 7


async def test_a_grammar_may_begin_after_the_reasoning(client: TestClient) -> None:
    llm = FakeLLM(reasoning_parser="qwen3")
    client.app[STATE].ready(llm)
    for prompt, start_ids, count in (("a <think>\n", (), 3), ("a", (900,), 0)):
        body = {"text": prompt, "require_reasoning": True}
        sampling = SHORT | {"regex": "a"}
        answer = await generate(client, body | {"sampling_params": sampling})
        params = llm.submitted[-1].params
        assert params.grammar == Grammar("regex", "a")
        assert params.thought == Thought(end_ids=(901,), start_ids=start_ids)
        assert answer["meta_info"]["reasoning_tokens"] == count


@pytest.mark.parametrize("token_id", [-1, 2**40])
async def test_reasoning_after_what_is_no_token(client: TestClient, token_id: int) -> None:
    """A tokenizer cannot decode it, to see how the reasoning begins."""
    client.app[STATE].ready(FakeLLM(reasoning_parser="qwen3"))
    answer = await generate(client, {"input_ids": [4, token_id], "require_reasoning": True}, 400)
    message = f"input_ids contains out-of-vocabulary token id {token_id}; valid range is [0, "
    assert answer["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    "config", [ServerConfig(preferred_sampling_params={"top_k": 7, "max_new_tokens": 3})]
)
async def test_preferred_sampling_params_are_the_defaults(client: TestClient, llm: FakeLLM) -> None:
    await generate(client, {"text": "a"})
    await generate(client, {"text": "a", "sampling_params": {"top_k": 9, "max_new_tokens": 4}})
    found = [(s.params.top_k, s.params.max_new_tokens, s.clamps) for s in llm.submitted]
    assert found == [(7, 3, True), (9, 4, False)]
    info = await (await client.get("/model_info")).json()
    assert info["preferred_sampling_params"] == {"top_k": 7, "max_new_tokens": 3}


# --- /vertex_generate ---


async def test_vertex_generate(client: TestClient, llm: FakeLLM) -> None:
    async def post(body: object) -> object:
        return await (await client.post("/vertex_generate", json=body)).json()

    instances = [{"text": "a"}, {"text": "b"}]
    for parameters in ({"sampling_params": SHORT}, SHORT):
        answer = await post({"instances": instances, "parameters": parameters})
        assert [each["text"] for each in answer["predictions"]] == [TEXT, TEXT]
    answer = await post({"instances": [{"input_ids": [4, 5]}]})
    assert answer["predictions"][0]["meta_info"]["prompt_tokens"] == 2
    assert await post({"instances": []}) == {"predictions": []}
    for wrong, message in (
        ({}, "vertex_generate takes {'instances': [object], 'parameters': object}"),
        (
            {"instances": [3]},
            "every instance must be an object with `text`, `input_ids` or `input_embeds`",
        ),
    ):
        assert (await post(wrong))["message"] == message
    response = await client.post(
        "/vertex_generate", json={"instances": instances, "parameters": {"stream": True} | SHORT}
    )
    assert len(events(await response.text())) == 6


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


async def test_embeddings_as_prompts(client: TestClient, llm: FakeLLM) -> None:
    rows = [[0.5, 1], [2.0, -1.0], [0.0, 0.0]]
    answer = await generate(client, {"input_embeds": rows, "sampling_params": SHORT})
    assert answer["meta_info"]["prompt_tokens"] == 3
    answers = await generate(client, {"input_embeds": [rows, rows[:1]], "sampling_params": SHORT})
    assert [each["meta_info"]["prompt_tokens"] for each in answers] == [3, 1]
    assert [each.prompt.rows for each in llm.submitted] == [rows, rows, rows[:1]]
    instances = [{"input_embeds": rows}]
    response = await client.post("/vertex_generate", json={"instances": instances})
    (prediction,) = (await response.json())["predictions"]
    assert prediction["meta_info"]["prompt_tokens"] == 3
