"""/generate with beam_width, over a fake LLM whose likeliest tokens are always 0, 1, 2 (EOS), …."""

import asyncio
import gc

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM
from server.native_calls import generate, stream

from jaxserve.errors import OverloadedError
from jaxserve.request import FinishReason, TextChunk

BEAMS = {"beam_width": 2, "max_new_tokens": 3, "n": 2}
REPEATED = " Paris Paris Paris"
LAST = " Paris Paris is"


async def test_the_best_beam_and_all_of_them(client: TestClient, llm: FakeLLM) -> None:
    """Token i has the logprob -i everywhere."""
    body = {"text": "a b", "rid": "r", "sampling_params": BEAMS, "priority": 3, "extra_key": "k"}
    answer = await generate(client, body)
    meta = answer["meta_info"]
    assert (answer["text"], answer["output_ids"]) == (REPEATED, [0, 0, 0])
    assert (meta["id"], meta["prompt_tokens"], meta["completion_tokens"]) == ("r", 3, 6)
    assert meta["finish_reason"] == {"type": "length", "length": 3}
    assert meta["sequence_score"] == 0.0
    first, second = meta.pop("beam_results")
    assert first == answer
    assert second["output_ids"] in ([0, 0, 1], [0, 1, 0], [1, 0, 0])
    assert second["meta_info"] == {
        "finish_reason": {"type": "length", "length": 3},
        "sequence_score": pytest.approx(-1 / 3),
    }
    assert [len(s.prompt) for s in llm.submitted] == [3, 4, 4, 5, 5]
    for submission in llm.submitted:
        assert (submission.params.max_new_tokens, submission.params.num_logprobs) == (1, 4)
        assert submission.params.temperature == 1.0
        assert (submission.priority, submission.cache_namespace) == (
            3,
            llm.submitted[0].cache_namespace,
        )
    assert llm.submitted[0].cache_namespace and not llm.open


async def test_stop_tokens_end_beams(client: TestClient, llm: FakeLLM) -> None:
    sampling = BEAMS | {"stop_token_ids": [0]}
    answer = await generate(client, {"text": "a", "sampling_params": sampling})
    first, second = answer["meta_info"]["beam_results"]
    assert (first["text"], first["output_ids"]) == ("", [0])
    assert first["meta_info"]["finish_reason"] == {"type": "stop", "matched": 0}
    assert (second["text"], second["output_ids"]) == ("", [1, 0])  # 1 is a special token
    sampling |= {"no_stop_trim": True, "n": 1}
    answer = await generate(client, {"text": "a", "sampling_params": sampling})
    assert answer["text"] == " Paris" and len(answer["meta_info"]["beam_results"]) == 1
    sampling = BEAMS | {"beam_width": 3, "n": 3, "max_new_tokens": 2}
    for ignores in (False, True):
        given = sampling | {"ignore_eos": ignores}
        answer = await generate(client, {"text": "a", "sampling_params": given})
        reasons = [
            b["meta_info"]["finish_reason"]["type"] for b in answer["meta_info"]["beam_results"]
        ]
        assert reasons == ["length"] * 3


async def test_a_batch_and_a_stream(client: TestClient) -> None:
    body = {"input_ids": [[4], [5, 6]], "sampling_params": BEAMS, "return_prompt_token_ids": True}
    answers = await generate(client, body)
    assert [a["prompt_token_ids"] for a in answers] == [[4], [5, 6]]
    events = await stream(client, body)
    assert [event["index"] for event in events] == [0, 1]
    assert [event["output_ids"] for event in events] == [[0, 0, 0]] * 2
    (event,) = await stream(client, {"text": "a", "sampling_params": BEAMS})
    assert event["text"] == REPEATED and "index" not in event


async def test_the_context_ends_a_search(client: TestClient, llm: FakeLLM) -> None:
    sampling = BEAMS | {"max_new_tokens": None}
    body = {"input_ids": [4] * 508, "sampling_params": sampling}
    assert len((await generate(client, body))["output_ids"]) == 4


async def test_a_long_search_holds_one_step(client: TestClient, llm: FakeLLM) -> None:
    held = []

    async def count() -> None:
        held.append(sum(type(each) is TextChunk for each in gc.get_objects()))

    llm.wait = count
    await generate(client, {"input_ids": [4], "sampling_params": BEAMS | {"max_new_tokens": 20}})
    assert len(held) >= 20 and max(held) - held[0] < 10


async def test_errors_and_aborts(client: TestClient, llm: FakeLLM) -> None:
    llm.refuse = OverloadedError("The request queue is full.")
    assert (await generate(client, {"text": "a", "sampling_params": BEAMS}, 503))["message"]
    (event,) = await stream(client, {"text": "a", "sampling_params": BEAMS})
    assert event["error"]["message"] == "The request queue is full."
    llm.refuse = None
    llm.abort_at = {0: FinishReason("abort", message="Aborted")}
    answer = await generate(client, {"text": "a", "sampling_params": BEAMS})
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert answer["output_ids"] == []


async def test_a_client_that_goes_away_ends_the_search(client: TestClient, llm: FakeLLM) -> None:
    reached = asyncio.Event()

    async def wait() -> None:
        if len(llm.submitted) >= 3:
            reached.set()
            await asyncio.Event().wait()

    llm.wait = wait
    request = asyncio.create_task(
        client.post("/generate", json={"text": "a", "sampling_params": BEAMS})
    )
    await reached.wait()
    request.cancel()
    async with asyncio.timeout(5):
        while llm.open:
            await asyncio.sleep(0.01)
    assert len(llm.submitted) == 3


REFUSED = [
    ({"beam_width": 0}, {}, "beam_width must be at least 1, got 0."),
    (
        {"beam_width": 11},
        {},
        "beam_width must be in [1, 10], got 11: a step looks at twice as many",
    ),
    ({"beam_width": 5000}, {}, "beam_width must be in [1, 10], got 5000: a step looks at twice as"),
    (
        {"max_new_tokens": 600},
        {},
        "max_new_tokens=600 does not fit: the prompt has 2 tokens, and both together may have 512. "
        "Lower it to 510, or leave it away.",
    ),
    ({"n": 3}, {}, "n (3) cannot exceed beam_width (2): it is how many are returned."),
    ({"max_new_tokens": 0}, {}, "Beam search needs at least 1 generated token; raise max_new_"),
    ({}, {"session_params": {"id": "s"}}, "Beam search is not supported for session requests. L"),
    ({}, {"return_logprob": True}, "Beam search does not support return_logprob. Leave it away, o"),
    (
        {},
        {"text": None, "input_embeds": [[0.5]]},
        "Beam search does not support input_embeds. Leave it away, or beam_width.",
    ),
    ({}, {"return_hidden_states": True}, "Beam search does not support return_hidden_states. Lea"),
    ({"regex": "a"}, {}, "Beam search is not supported with constrained decoding. Leave it away"),
    ({"stop": "a"}, {}, "Beam search does not support stop strings/regex yet; use stop_token_ids."),
    ({"stop_regex": "a"}, {}, "Beam search does not support stop strings/regex yet; use stop_tok"),
    ({"min_new_tokens": 1}, {}, "Beam search does not support min_new_tokens yet. Leave it away"),
    ({}, {"require_reasoning": True}, "Beam search does not support require_reasoning. Leave it"),
    ({"logit_bias": {"1": 1}}, {}, "Beam search does not support logit_bias. Leave it away, or b"),
    ({"presence_penalty": 1}, {}, "Beam search does not support penalties. Leave it away, or bea"),
    ({"repetition_penalty": 2}, {}, "Beam search does not support penalties. Leave it away, or b"),
]


@pytest.mark.parametrize(("sampling", "fields", "message"), REFUSED)
async def test_refusals(client: TestClient, sampling: dict, fields: dict, message: str) -> None:
    body = {"text": "a", "sampling_params": BEAMS | sampling} | fields
    assert (await generate(client, body, 400))["error"]["message"].startswith(message)


async def test_one_width_for_all_prompts(client: TestClient) -> None:
    body = {"text": ["a", "b"], "sampling_params": [BEAMS, {}]}
    answer = await generate(client, body, 400)
    assert answer["error"]["message"] == (
        "The beam_width should be the same for all samples in sample params."
    )
    plain = {"text": "a", "sampling_params": {"beam_width": 1, "max_new_tokens": 3}}
    assert "beam_results" not in (await generate(client, plain))["meta_info"]


class TestASmallVocabulary:
    @pytest.fixture
    def llm(self) -> FakeLLM:
        return FakeLLM(vocab_size=3)

    async def test_refused(self, client: TestClient) -> None:
        answer = await generate(client, {"text": "a", "sampling_params": BEAMS}, 400)
        message = "beam_width (2) is too large for the vocabulary, of 3 tokens."
        assert answer["error"]["message"] == message
