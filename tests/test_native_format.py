import time

from jaxserve.native_format import GenerateState, finish_reason_dict
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
    state = GenerateState("r", 4, time.perf_counter(), weight_version="v1")
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
    assert state.text == "ab" and state.finish == FinishReason("length")
    assert state.usage == Usage(4, 3, 2)


def test_logprob_lists_hold_value_id_and_text() -> None:
    state = GenerateState("r", 4, 0.0, weight_version="v", num_logprobs=2, decode_token=str)
    state.add(chunk("a", 1, done=1))
    meta = state.body()["meta_info"]
    assert isinstance(meta, dict)
    assert meta["output_token_logprobs"] == [[-1.0, 1, "1"]]
    assert meta["output_top_logprobs"] == [[[-1.0, 1, "1"], [-2.0, 9, "9"]]]
    only_chosen = GenerateState("r", 4, 0.0, weight_version="v", num_logprobs=0)
    only_chosen.add(chunk("a", 1, done=1))
    meta = only_chosen.body()["meta_info"]
    assert isinstance(meta, dict) and "output_top_logprobs" not in meta
    assert meta["output_token_logprobs"] == [[-1.0, 1, None]]
