"""Logprobs in the answers of /generate, in all their forms."""

from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM
from server.native_calls import generate, stream

BODY: dict[str, Any] = {
    "input_ids": [4, 5, 6], "sampling_params": {"max_new_tokens": 2}, "return_logprob": True,
}  # fmt: skip


async def meta_of(client: TestClient, **fields: Any) -> dict[str, Any]:
    return (await generate(client, BODY | fields))["meta_info"]


async def test_output_logprobs(client: TestClient) -> None:
    meta = await meta_of(client, top_logprobs_num=2, return_text_in_logprobs=True)
    assert [entry[1:] for entry in meta["output_token_logprobs"]] == [[0, " Paris"], [1, " is"]]
    assert meta["output_top_logprobs"][0] == [[0.0, 0, " Paris"], [-1.0, 1, " is"]]
    assert meta["input_token_logprobs"] == meta["input_top_logprobs"] == []
    assert meta["output_token_logprobs_length"] == 2
    plain = await meta_of(client)
    assert plain["output_token_logprobs"][0][2] is None
    assert "output_top_logprobs" not in plain


async def test_nothing_without_return_logprob(client: TestClient, llm: FakeLLM) -> None:
    fields = {"logprob_start_len": 0, "top_logprobs_num": 3, "token_ids_logprob": [1]}
    meta = await meta_of(client, return_logprob=False, **fields)
    assert not [name for name in meta if "logprob" in name]
    assert llm.submitted[0].params.num_logprobs is None
    assert llm.submitted[0].params.prompt_logprobs_start is None


@pytest.mark.parametrize(
    ("start", "chosen"),
    [
        (0, [[None, 4, None], [-1.0, 5, None], [-2.0, 6, None]]),
        (1, [[-1.0, 5, None], [-2.0, 6, None]]),
        (3, []),
        (-1, []),
        (None, []),
    ],
)
async def test_only_position_0_is_null(
    client: TestClient, start: int | None, chosen: list[Any]
) -> None:
    meta = await meta_of(client, logprob_start_len=start, top_logprobs_num=1)
    assert meta["input_token_logprobs"] == chosen
    top = [None if entry[0] is None else [[0.0, 0, None]] for entry in chosen]
    assert meta["input_top_logprobs"] == top
    assert len(meta["output_token_logprobs"]) == 2


async def test_a_request_for_no_tokens_has_all_of_its_prompts(client: TestClient) -> None:
    nothing = {"max_new_tokens": 0}
    meta = await meta_of(client, sampling_params=nothing)
    assert [entry[0] for entry in meta["input_token_logprobs"]] == [None, -1.0, -2.0]
    assert meta["output_token_logprobs"] == []
    assert meta["finish_reason"] == {"type": "length", "length": 0}
    for start, count in ((-1, 0), (2, 1)):
        meta = await meta_of(client, sampling_params=nothing, logprob_start_len=start)
        assert len(meta["input_token_logprobs"]) == count


async def test_logprobs_of_given_ids(client: TestClient, llm: FakeLLM) -> None:
    meta = await meta_of(client, token_ids_logprob=[7, 8], logprob_start_len=0)
    given = [[-0.7, 7, None], [-0.8, 8, None]]
    assert meta["input_token_ids_logprobs"] == [None, given, given]
    assert meta["output_token_ids_logprobs"] == [given, given]
    batch = BODY | {"input_ids": [[4], [5]]}
    for ids, wanted in (([7], [(7,), (7,)]), ([[7], [8, 9]], [(7,), (8, 9)]), (None, [(), ()])):
        llm.submitted.clear()
        await generate(client, batch | {"token_ids_logprob": ids})
        assert [each.params.logprob_token_ids for each in llm.submitted] == wanted


async def test_every_prompt_has_its_own(client: TestClient) -> None:
    body = BODY | {
        "input_ids": [[4, 5], [6]],
        "return_logprob": [True, False],
        "logprob_start_len": [1, -1],
        "top_logprobs_num": [2, 0],
    }
    first, second = await generate(client, body)
    assert first["meta_info"]["input_token_logprobs"] == [[-1.0, 5, None]]
    assert len(first["meta_info"]["output_top_logprobs"][0]) == 2
    assert "output_token_logprobs" not in second["meta_info"]


async def test_a_stream_repeats_them_with_every_event(client: TestClient) -> None:
    got = await stream(client, BODY | {"logprob_start_len": 0})
    lengths = [
        (len(e["meta_info"]["input_token_logprobs"]), len(e["meta_info"]["output_token_logprobs"]))
        for e in got
    ]
    assert lengths == [(3, 1), (3, 2)]
