"""/v1/score over a fake LLM, whose token i has the logprob -i / 10."""

import math

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM
from server.openai_calls import post

from jaxserve.request import FinishReason

BODY = {"query": "is it", "items": ["red hot", "blue"], "label_token_ids": [1, 2], "model": "m"}


def likely(*token_ids: int) -> list[float]:
    return [pytest.approx(math.exp(-i / 10)) for i in token_ids]


async def test_probabilities(client: TestClient, llm: FakeLLM) -> None:
    assert await post(client, "score", BODY) == {
        "object": "scoring",
        "model": "m",
        "scores": [likely(1, 2)] * 2,
        "token_logprobs": None,
        "pooled_hidden_states": None,
        "usage": {
            "prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0,
            "prompt_tokens_details": None, "reasoning_tokens": 0,
            "completion_tokens_details": None,
        },
    }  # fmt: skip
    assert [s.prompt for s in llm.submitted] == ["is itred hot", "is itblue"]


async def test_softmax(client: TestClient) -> None:
    for scores in (await post(client, "score", BODY | {"apply_softmax": True}))["scores"]:
        assert sum(scores) == pytest.approx(1.0)
        assert scores[0] / scores[1] == pytest.approx(math.exp(0.1))


async def test_item_first_and_token_ids(client: TestClient, llm: FakeLLM) -> None:
    await post(client, "score", BODY | {"item_first": True, "items": "red "})
    await post(client, "score", BODY | {"query": [5], "items": [[6, 7]]})
    await post(client, "score", BODY | {"query": [5], "items": [[6, 7]], "item_first": True})
    prompts = [s.prompt for s in llm.submitted]
    assert prompts == ["red is it", (5, 6, 7), (6, 7, 5)]


async def test_no_items(client: TestClient) -> None:
    answer = await post(client, "score", BODY | {"items": []})
    assert (answer["scores"], answer["usage"]["total_tokens"]) == ([], 0)


async def test_more_labels_than_a_sequence_may_have(client: TestClient, llm: FakeLLM) -> None:
    labels = [i % 7 for i in range(150)]
    answer = await post(client, "score", BODY | {"label_token_ids": labels})
    assert answer["scores"] == [likely(*labels)] * 2
    assert answer["usage"]["prompt_tokens"] == 5
    assert [len(s.params.logprob_token_ids) for s in llm.submitted] == [64, 64, 22] * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_token_ids": []}, "label_token_ids cannot be empty."),
        (
            {"temperature": 0.0},
            "temperature must be above 0 where tokens are scored, got 0.0.",
        ),
        (
            {"label_token_ids": [5, 1000]},
            "Token ID 1000 is out of vocabulary (vocab size: 1000); label_token_ids are ids of "
            "tokens.",
        ),
        (
            {"items": [[1, 2]]},
            "query and items must be of one kind, texts or lists of token ids: query is a text, "
            "items[0] is a list of token ids.",
        ),
        (
            {"items": ["a"] * 40_000, "label_token_ids": list(range(100))},
            "40000 items with 100 labels are 80000 sequences, a request may have 65536; send them "
            "in several requests.",
        ),
        (
            {"return_pooled_hidden_states": True},
            "`return_pooled_hidden_states` is not supported: the model generates; it has no pooled "
            "hidden states. Leave it away or send null.",
        ),
    ],
)
async def test_refusals(client: TestClient, fields: dict, message: str) -> None:
    assert (await post(client, "score", BODY | fields, 400))["message"] == message


async def test_missing_fields_are_named(client: TestClient) -> None:
    message = (await post(client, "score", {"query": "a"}, 400))["message"]
    assert "('body', 'items')" in message
    assert "('body', 'label_token_ids')" in message


async def test_an_aborted_score_is_none(client: TestClient, llm: FakeLLM) -> None:
    llm.abort_at = {0: FinishReason("abort", message="Aborted")}
    answer = await post(client, "score", BODY, 503)
    assert answer["message"] == "The request was aborted before it was scored."
