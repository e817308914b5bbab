"""What /generate refuses, and in which words."""

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM
from server.native_calls import SHORT, TEXT, generate, stream

from jaxserve.errors import ContextLengthError, EngineDeadError, OverloadedError
from jaxserve.native_refusals import UNSUPPORTED

EXACTLY_ONE = "Either text, input_ids or input_embeds should be provided."
REFUSED = [
    ({}, EXACTLY_ONE),
    ({"text": None}, EXACTLY_ONE),
    (
        {"text": "a", "input_ids": [1]},
        EXACTLY_ONE + " text, input_ids were given; send one of them.",
    ),
    (
        {"text": "a", "input_embeds": [[0.5]]},
        EXACTLY_ONE + " text, input_embeds were given; send one of them.",
    ),
    ({"input_embeds": []}, "input_embeds cannot be empty."),
    ({"input_embeds": [[[0.5]], []]}, "input_embeds cannot be empty."),
    (
        {"input_embeds": [[0.5]], "return_prompt_token_ids": True},
        "`return_prompt_token_ids` is not supported with input_embeds: they have no token ids. "
        "Leave it away or send false.",
    ),
    (
        {"input_embeds": [[0.5]], "require_reasoning": True},
        "`require_reasoning` is not supported with input_embeds: they have no token ids. "
        "Leave it away or send false.",
    ),
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
        {"text": ["a", "b"], "rid": "x" * 1025},
        "a rid has at most 1024 characters, one of 1025 was given; shorten it, or leave it away to "
        "have one made up.",
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
        {"text": "a", "return_logprob": True, "logprob_start_len": -2},
        "logprob_start_len must be -1 (no logprobs of the prompt) or at least 0, got -2.",
    ),
    (
        {"text": "a", "return_logprob": True, "token_ids_logprob": list(range(65))},
        "token_ids_logprob takes at most 64 token ids, got 65.",
    ),
    (
        {"text": "a", "session_id": "s", "session_params": {"id": "s"}},
        "session_id and session_params cannot both be set.",
    ),
    (
        {"text": "a", "session_params": {"rid": "r"}},
        "session_params needs the `id` of an open session; open one with /open_session.",
    ),
    (
        {"text": "a", "require_reasoning": True},
        "`require_reasoning` is not supported: the server has no --reasoning-parser, so it does "
        "not know where reasoning ends. Leave it away or send false.",
    ),
    (
        {"text": "a", "max_thinking_tokens": 0},
        "max_thinking_tokens requires the server to be launched with --enable-strict-thinking; "
        "without it nothing ends a model's reasoning but the model and the token limit.",
    ),
    (
        {"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}},
        "Only one of json_schema, regex, ebnf, or structural_tag can be set.",
    ),
    (
        {"text": "a", "return_logprob": True, "return_flat_raw_top_logprobs": True},
        "`return_flat_raw_top_logprobs` is not supported: the answer cannot carry it yet. Leave it "
        "away or send null.",
    ),
    (
        {"text": "a", "lora_path": "x"},
        "`lora_path` is not supported: there are no LoRA adapters. Leave it away or send null.",
    ),
    (
        {"text": ["a", "b"], "return_hidden_states": [True, "first"]},
        "return_hidden_states must be a boolean or the string literal 'last', got 'first'.",
    ),
    (
        {"text": "a", "custom_logit_processor": "x"},
        "The server is not configured to enable custom logit processor. They are pickled Python "
        "code, which this server never executes; use logit_bias or a grammar.",
    ),
]


@pytest.mark.parametrize(("body", "message"), REFUSED)
async def test_refused_values(client: TestClient, body: dict, message: str) -> None:
    assert await generate(client, body, 400) == {"error": {"message": message}}
    assert (await generate(client, {"text": "a", "sampling_params": SHORT}))["text"] == TEXT


@pytest.mark.parametrize(
    "name",
    [name for name in UNSUPPORTED if name not in {"data_parallel_rank", "routed_dp_rank"}],
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
        ({"input_embeds": 1}, "input_embeds: invalid type: integer `1`, expected a sequence"),
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
        (
            {"text": "a", "session_params": {"id": 3}},
            "session_params.id: invalid type: integer `3`, expected a string",
        ),
        (
            {"text": "a", "session_params": "s"},
            'session_params: invalid type: string "s", expected a map',
        ),
        (
            {"text": "a", "priority": 2**63},
            "priority: invalid value: integer `9223372036854775808`, expected i64",
        ),
        (
            {"text": "a", "token_ids_logprob": ["x"]},
            'token_ids_logprob: invalid type: string "x", expected i64',
        ),
        ({"text": "a", "cache_salt": 3}, None),
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


async def test_replica_0_is_the_only_one(client: TestClient) -> None:
    body = {"text": "a", "sampling_params": SHORT}
    for name in ("data_parallel_rank", "routed_dp_rank"):
        assert (await generate(client, body | {name: 0}))["text"] == TEXT
        answer = await generate(client, body | {name: 1}, 400)
        assert answer["error"]["message"].startswith(f"`{name}` is not supported: there is one")
