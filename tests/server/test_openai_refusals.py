"""What /v1/completions and /v1/chat/completions refuse, and with which words."""

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM

from jaxserve.errors import InvalidRequestError, OverloadedError

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
COMPLETE = {"prompt": "a b", "max_tokens": 3}
TEXT = " Paris is the"


async def post_v1(client: TestClient, path: str, body: object, status: int = 200) -> dict:
    response = await client.post(f"/v1/{path}", json=body)
    answer = await response.json()
    assert response.status == status, answer
    return answer


REFUSED = [
    ("chat/completions", {"messages": []}, "Messages cannot be empty."),
    ("chat/completions", {}, "Messages cannot be empty."),
    (
        "chat/completions",
        {"messages": [{"role": "king", "content": "a"}]},
        "messages[0].role must be one of system, developer, user, assistant, tool, function, "
        "got 'king'.",
    ),
    ("chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content is missing."),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": 3}]},
        "messages[0].content must be a string or a list of parts, got int.",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": ["a"]}]},
        "messages[0].content[0] must be an object with a type, such as text.",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text must be a string.",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "`messages[0].content[0]` of type 'image_url' is not supported: the model takes text only.",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "assistant", "tool_calls": ["a"]}]},
        'messages[0].tool_calls must be a list of calls such as {"id": …, "type": "function", '
        '"function": {"name": …, "arguments": …}}.',
    ),
    (
        "chat/completions",
        {"input_ids": [2**53, 1]},
        f"input_ids contains out-of-vocabulary token id {2**53}; valid range is [0, 1000).",
    ),
    (
        "chat/completions",
        CHAT | {"top_logprobs": 2},
        "top_logprobs=2 needs logprobs=true; send both or neither.",
    ),
    (
        "chat/completions",
        CHAT | {"modalities": ["text", "audio"]},
        "modalities must be [\"text\"], got ['text', 'audio']: the model writes text only.",
    ),
    (
        "chat/completions",
        CHAT | {"max_tokens": 513},
        "max_completion_tokens is too large: 513.This model supports at most 512 completion "
        "tokens.",
    ),
    ("completions", COMPLETE | {"prompt": ""}, "Prompt cannot be empty"),
    ("completions", COMPLETE | {"prompt": []}, "Prompt cannot be empty"),
    (
        "completions",
        COMPLETE | {"prompt": ["a"] * 65, "n": 1024, "best_of": 1},
        "65 prompts with n=1024 are 66560 sequences, a request may have 65536; send them in "
        "several requests.",
    ),
    (
        "completions",
        COMPLETE | {"suffix": "x"},
        "`suffix` is not supported: the model does not fill in the middle. Leave it away or send "
        "null.",
    ),
    (
        "completions",
        COMPLETE | {"temperature": "nan"},
        "temperature must be a non-negative finite number, got nan.",
    ),
    ("completions", COMPLETE | {"top_p": 1.5}, "top_p must be in (0, 1], got 1.5."),
    ("completions", COMPLETE | {"top_k": 0}, "top_k must be -1 (disable) or at least 1, got 0."),
    (
        "completions",
        COMPLETE | {"logit_bias": {"x": 1}},
        "logit_bias maps token ids to numbers; 'x' is not a token id",
    ),
]


@pytest.mark.parametrize(("path", "body", "message"), REFUSED)
async def test_refused_values(client: TestClient, path: str, body: dict, message: str) -> None:
    for streamed in (False, True):
        answer = await post_v1(client, path, body | {"stream": streamed}, 400)
        assert answer == {
            "object": "error", "message": message, "type": "BadRequestError", "param": None,
            "code": 400,
        }  # fmt: skip
    assert (await post_v1(client, "completions", COMPLETE))["choices"][0]["text"] == TEXT


@pytest.mark.parametrize(
    "name",
    ["lora_path", "custom_logit_processor", "return_routed_experts", "bootstrap_room", "watermark"],
)
async def test_unsupported_fields_are_named(client: TestClient, name: str) -> None:
    for path, body in (("chat/completions", CHAT), ("completions", COMPLETE)):
        answer = await post_v1(client, path, body | {name: "x"}, 400)
        assert answer["message"].startswith(f"`{name}` is not supported: ")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("return_sampling_mask", "the answer cannot carry it yet"),
        ("sampling_logprobs_mode", "the answer cannot carry it yet"),
        ("return_flat_raw_output_top_logprobs", "the answer cannot carry it yet"),
        ("return_input_ids_in_sglext", "send `return_token_ids`, which adds them to every choice"),
        ("return_output_ids_in_sglext", "send `return_token_ids`, which adds them to every choice"),
    ],
)
async def test_what_chat_answers_cannot_hold(client: TestClient, name: str, why: str) -> None:
    answer = await post_v1(client, "chat/completions", CHAT | {name: True}, 400)
    assert answer["message"].startswith(f"`{name}` is not supported: {why}. Leave it away")
    await post_v1(client, "chat/completions", CHAT | {name: None})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (CHAT | {"messages": "hello"}, ("list_type", "('body', 'messages')")),
        (CHAT | {"temperature": "hot"}, ("float_parsing", "('body', 'temperature')")),
        (CHAT | {"n": 0}, ("greater_than_equal", "('body', 'n')")),
        (CHAT | {"stream": [], "seed": "x"}, ("'stream'", "'seed'")),
        (CHAT | {"model": "m" * 4097}, ("string_too_long", "('body', 'model')")),
    ],
)
async def test_wrong_types_are_all_named(
    client: TestClient, body: dict, words: tuple[str, ...]
) -> None:
    answer = await post_v1(client, "chat/completions", body, 400)
    assert (answer["object"], answer["type"], answer["code"]) == ("error", "Bad Request", 400)
    assert all(word in answer["message"] for word in words)


@pytest.mark.parametrize("name", ["functions", "function_call", "audio", "web_search_options"])
async def test_unsupported_chat_fields_are_named(client: TestClient, name: str) -> None:
    answer = await post_v1(client, "chat/completions", CHAT | {name: {"a": 1}}, 400)
    assert answer["message"].startswith(f"`{name}` is not supported: ")


@pytest.mark.parametrize("name", ["return_prompt_token_ids", "return_meta_info"])
async def test_what_a_stream_cannot_carry(client: TestClient, name: str) -> None:
    answer = await post_v1(client, "chat/completions", CHAT | {name: True, "stream": True}, 400)
    assert answer["message"] == (
        f"{name} is not supported with streaming on /v1/chat/completions. Please set stream=false "
        f"when using {name}=true."
    )


async def test_a_missing_prompt_is_named(client: TestClient) -> None:
    answer = await post_v1(client, "completions", {}, 400)
    assert "'missing'" in answer["message"]
    assert "('body', 'prompt')" in answer["message"]


async def test_refusals_of_the_llm(client: TestClient, llm: FakeLLM) -> None:
    llm.refuse = InvalidRequestError("too long")
    answer = await post_v1(client, "chat/completions", CHAT | {"stream": True}, 400)
    assert (answer["message"], answer["type"]) == ("too long", "BadRequestError")
    llm.refuse = OverloadedError("The request queue is full.")
    answer = await post_v1(client, "chat/completions", CHAT, 503)
    assert (answer["message"], answer["type"]) == ("The request queue is full.", "503")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": [None] * 20_000}),
        ("completions", {"prompt": [[1, "a"]] * 20_000}),
        ("completions", {"prompt": "a", "stop": [1] * 20_000}),
        ("completions", {"prompt": "a", "stop_token_ids": ["x"] * 20_000}),
        ("completions", {"prompt": "a", "logit_bias": {str(i): "x" for i in range(20_000)}}),
        ("chat/completions", {"messages": [1] * 20_000}),
        ("chat/completions", {"input_ids": [None] * 20_000}),
    ],
)
async def test_a_long_list_of_wrong_items_makes_no_long_answer(
    client: TestClient, path: str, body: dict
) -> None:
    assert len(str(await post_v1(client, path, body, 400))) < 2000


async def test_too_many_sequences(client: TestClient) -> None:
    body = {"prompt": ["a"] * 65, "n": 1024, "max_tokens": 1}
    message = (await post_v1(client, "completions", body, 400))["message"]
    assert message == (
        "65 prompts with n=1024 are 66560 sequences, a request may have 65536; send them in "
        "several requests."
    )
