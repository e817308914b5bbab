import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from jaxserve.native_format import AnswerFormat, GenerateState, ReasoningSpan, finish_reason_dict
from jaxserve.request import FinishReason, TextChunk, TokenLogprob, Usage


def chunk(text: str, *ids: int, done: int, finish: FinishReason | None = None) -> TextChunk:
    return TextChunk(
        rid="r",
        index=0,
        text=text,
        token_ids=ids,
        logprobs=tuple(TokenLogprob(i, -1.0, ((i, -1.0), (9, -2.0))) for i in ids),
        finish=finish,
        usage=Usage(4, done, 2),
        num_retractions=1,
    )


def state_of(**answer_format: Any) -> GenerateState:
    arrival_s = time.perf_counter()
    return GenerateState(
        "r", [5, 6, 7, 8], arrival_s, AnswerFormat(weight_version="v1", **answer_format)
    )


def meta_of(state: GenerateState) -> dict[str, Any]:
    meta = state.body()["meta_info"]
    assert isinstance(meta, dict)
    return meta


def test_finish_reasons() -> None:
    assert finish_reason_dict(None, 3) is None
    assert finish_reason_dict(FinishReason("stop", matched="x"), 3) == {
        "type": "stop",
        "matched": "x",
    }
    assert finish_reason_dict(FinishReason("length"), 3) == {"type": "length", "length": 3}
    assert finish_reason_dict(FinishReason("abort", message="m", status_code=503), 3) == {
        "type": "abort",
        "message": "m",
        "status_code": 503,
        "err_type": None,
    }


def test_bodies_are_cumulative_and_independent() -> None:
    state = state_of()
    state.add(chunk("a", 1, done=1))
    first = state.body()
    state.add(chunk("b", 2, 3, done=3, finish=FinishReason("length")))
    second = state.body()
    assert (first["text"], first["output_ids"]) == ("a", [1])
    assert (second["text"], second["output_ids"]) == ("ab", [1, 2, 3])
    meta = second["meta_info"]
    assert isinstance(meta, dict)
    assert meta.pop("e2e_latency") >= 0
    assert meta == {
        "id": "r",
        "finish_reason": {"type": "length", "length": 3},
        "prompt_tokens": 4,
        "weight_version": "v1",
        "num_retractions": 1,
        "completion_tokens": 3,
        "cached_tokens": 2,
        "reasoning_tokens": 0,
    }
    assert isinstance(first["meta_info"], dict) and "e2e_latency" not in first["meta_info"]
    assert state.finish == FinishReason("length")
    assert state.usage == Usage(4, 3, 2)


def test_logprob_lists_hold_value_id_and_text() -> None:
    state = state_of(num_logprobs=2, decode_token=str)
    state.add(chunk("a", 1, done=1))
    meta = meta_of(state)
    assert meta["output_token_logprobs"] == [[-1.0, 1, "1"]]
    assert meta["output_top_logprobs"] == [[[-1.0, 1, "1"], [-2.0, 9, "9"]]]
    assert meta["input_token_logprobs"] == meta["input_top_logprobs"] == []
    assert "output_token_ids_logprobs" not in meta
    only_chosen = state_of(num_logprobs=0)
    only_chosen.add(chunk("a", 1, done=1))
    meta = meta_of(only_chosen)
    assert "output_top_logprobs" not in meta
    assert meta["output_token_logprobs"] == [[-1.0, 1, None]]


def test_prompt_logprobs_are_null_at_position_0_only() -> None:
    state = state_of(num_logprobs=1, has_logprob_ids=True)
    items = (
        TokenLogprob(5, None),
        TokenLogprob(6, -0.5, ((6, -0.5),), ((3, -4.0), (4, -5.0))),
    )
    state.add(chunk("a", 1, done=1)._replace(prompt_logprobs=items))
    state.add(chunk("b", 2, done=2))
    meta = meta_of(state)
    assert meta["input_token_logprobs"] == [[None, 5, None], [-0.5, 6, None]]
    assert meta["input_top_logprobs"] == [None, [[-0.5, 6, None]]]
    assert meta["input_token_ids_logprobs"] == [None, [[-4.0, 3, None], [-5.0, 4, None]]]
    assert len(meta["output_token_logprobs"]) == meta["output_token_logprobs_length"] == 2


def test_an_incremental_body_holds_what_is_new() -> None:
    state = state_of(num_logprobs=0, is_incremental=True)
    state.add(chunk("a", 1, done=1))
    state.add(chunk("b", 2, done=2))
    body = state.body()
    assert (body["text"], body["output_ids"]) == ("b", [2])
    assert meta_of(state)["output_token_logprobs"] == [[-1.0, 2, None]]
    assert meta_of(state)["output_token_logprobs_length"] == 2
    assert meta_of(state)["completion_tokens"] == 2


def test_prompt_ids_are_shown_on_demand() -> None:
    state = state_of(shows_prompt_ids=True)
    assert state.body()["prompt_token_ids"] == [5, 6, 7, 8]
    assert "prompt_token_ids" not in state_of().body()


def test_reasoning_tokens_count_to_the_end_of_the_reasoning() -> None:
    state = state_of(reasoning=ReasoningSpan((3, 4)))
    for done, ids in enumerate(((1, 3), (3,), (4, 7), (3, 4)), start=1):
        state.add(chunk("a", *ids, done=done))
    assert meta_of(state)["reasoning_tokens"] == 4
    counts = {(): 3, (1,): 3, (2,): 0, (1, 3): 0, (1, 2): 3, (1, 2, 5): 0}
    for start_ids, count in counts.items():
        endless = state_of(reasoning=ReasoningSpan((9,), start_ids))
        endless.add(chunk("a", 1, 2, done=2))
        endless.add(chunk("a", 2, done=3))
        assert meta_of(endless)["reasoning_tokens"] == count


def test_the_end_of_the_reasoning_may_be_cut_otherwise() -> None:
    texts = {1: "hm <", 2: "</th", 3: "in", 4: "k>\n", 5: "42"}
    span = ReasoningSpan((9,), (), "</think>", texts.__getitem__)
    for cuts in ([[1, 2, 3, 4, 5, 5]], [[1], [2, 3], [4], [5]]):
        state = state_of(reasoning=span)
        for done, ids in enumerate(cuts):
            state.add(chunk("a", *ids, done=done))
        assert meta_of(state)["reasoning_tokens"] == 4


def test_times_come_at_the_end() -> None:
    state = state_of(has_times=True)
    state.add(chunk("a", 1, done=1))
    assert "request_received_ts" not in meta_of(state)
    last = chunk("b", 2, done=2, finish=FinishReason("length"))
    state.add(last._replace(queue_s=1e-7, first_token_s=2e-7))
    meta = meta_of(state)
    assert meta["queue_time"] == 1e-7
    assert meta["forward_entry_time"] == meta["request_received_ts"] + 1e-7
    assert meta["first_token_latency"] == 2e-7 <= meta["e2e_latency"]
    assert meta["decode_throughput"] > 0
    assert (
        meta["request_received_ts"]
        <= meta["prefill_finished_time"]
        <= meta["request_finished_ts"]
        <= meta["response_sent_to_client_ts"] + 1e-3
    )
    assert meta["response_sent_to_client_ts"] == pytest.approx(time.time(), abs=60)


def test_hidden_states_are_cut_where_the_prompt_ends() -> None:
    """The prompt's come in pieces of their own size, and may end inside one."""

    def hidden(*positions: float) -> TextChunk:
        states = (np.array([[p] for p in positions], np.float32),) if positions else ()
        return chunk("", done=0)._replace(hidden_states=states)

    every, last = state_of(hidden_states="all"), state_of(hidden_states="last")
    assert meta_of(every)["hidden_states"] == []
    assert "hidden_states" not in meta_of(last)
    for state in (every, last):
        state.add(hidden(0, 1, 2))
        state.add(hidden())
        state.add(hidden(3, 4, 5))
    assert meta_of(every)["hidden_states"] == [[[0.0], [1.0], [2.0], [3.0]], [4.0], [5.0]]
    assert meta_of(last)["hidden_states"] == [5.0]


def test_the_last_hidden_state_alone_is_kept() -> None:
    """An answer of any length holds one of them, in a stream too."""
    state = state_of(hidden_states="last")
    tracemalloc.start()
    try:
        for i in range(1000):
            states = (np.full((1, 64), i, dtype=np.float32),)
            state.add(chunk("", done=i)._replace(hidden_states=states))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert meta_of(state)["hidden_states"] == [999.0] * 64
    assert held < 500_000  # all of them are 2.5 MB
