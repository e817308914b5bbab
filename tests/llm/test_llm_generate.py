"""``LLM.generate``, the blocking façade, around a fake engine."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from fake_engine import ANSWER, FakeEngine, fake_llm

from jaxserve import LLM
from jaxserve.errors import EngineDeadError, InvalidRequestError, OverloadedError
from jaxserve.request import Request, SamplingParams
from jaxserve.text import Tokenizer


def test_generate_one(pair: tuple[LLM, FakeEngine], answer: list[int]) -> None:
    body = pair[0].generate("hi", {"temperature": 0, "max_new_tokens": 50})
    assert body["text"] == ANSWER
    assert body["output_ids"] == answer
    meta = body["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": len(answer)}
    assert meta["completion_tokens"] == len(answer)
    assert meta["e2e_latency"] > 0
    assert "output_token_logprobs" not in meta


def test_generate_lists(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    assert [b["text"] for b in llm.generate(["a", "b"])] == [ANSWER] * 2
    assert len(llm.generate([[1, 2], [3]], SamplingParams(max_new_tokens=2))) == 2
    assert llm.generate([1, 2, 3])["meta_info"]["prompt_tokens"] == 3
    bodies = llm.generate(["a", "b"], [{"n": 2, "max_new_tokens": 1}, {"max_new_tokens": 3}])
    assert [b["meta_info"]["completion_tokens"] for b in bodies] == [1, 1, 3]
    assert llm.generate([]) == []
    assert isinstance(llm.generate("a", {"n": 2}), list)


def test_generate_batch_runs_at_once(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    open_at_start: list[int] = []
    answer = engine.answer

    def watching(request: Request) -> Sequence[int]:
        open_at_start.append(llm.num_open)
        return answer(request)

    engine.answer = watching
    llm.generate(["a", "b", "c"])
    assert open_at_start == [0, 1, 2]


async def test_generate_inside_a_running_loop(pair: tuple[LLM, FakeEngine]) -> None:
    assert pair[0].generate("hi")["text"] == ANSWER


def test_generate_streams_cumulative_text(pair: tuple[LLM, FakeEngine]) -> None:
    bodies = list(pair[0].generate("hi", {"max_new_tokens": 50}, stream=True))
    texts = [body["text"] for body in bodies]
    assert texts[-1] == ANSWER
    assert all(ANSWER.startswith(text) for text in texts)
    reasons = [body["meta_info"]["finish_reason"] for body in bodies]
    assert reasons[-1] is not None and not any(reasons[:-1])


def test_generate_streams_several(pair: tuple[LLM, FakeEngine]) -> None:
    last = {body["index"]: body["text"] for body in pair[0].generate(["a", "b"], stream=True)}
    assert last == {0: ANSWER, 1: ANSWER}


def test_leaving_a_stream_early_aborts_it(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    engine.answer = lambda request: [5] * 60
    items = llm.generate("hi", {"max_new_tokens": 60, "stop": ["never"]}, stream=True)
    next(items)
    engine.is_running = False
    items.close()
    assert llm.num_open == 0


def test_generate_refuses(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    with pytest.raises(InvalidRequestError, match="2 prompts were given with 1 sampling_params"):
        llm.generate(["a", "b"], [{}])
    engine.is_running = False
    with pytest.raises(InvalidRequestError, match="input_ids cannot be empty"):
        llm.generate(["a", ""])
    assert llm.num_open == 0


@pytest.mark.parametrize("prompts", [None, 5, {"text": "a"}, [None], ["a", 1], [[1], ["a"]], [1.5]])
def test_generate_refuses_what_is_no_prompt(pair: tuple[LLM, FakeEngine], prompts: object) -> None:
    llm, engine = pair
    engine.is_running = False
    with pytest.raises(InvalidRequestError, match="a prompt is a text or a list of token ids, got"):
        llm.generate(prompts)
    assert llm.num_open == 0


def test_generate_takes_numpy_ids_and_any_iterable(
    pair: tuple[LLM, FakeEngine], answer: list[int]
) -> None:
    llm, engine = pair
    assert llm.generate(np.array([1, 2]))["output_ids"] == answer
    assert len(llm.generate([np.array([1, 2]), (3,)])) == 2
    assert len(llm.generate(text for text in ("a", "b"))) == 2
    prompts = [request.prompt_ids for request in engine.requests]
    assert prompts[:3] == [(1, 2), (1, 2), (3,)]


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, InvalidRequestError), (503, OverloadedError), (500, EngineDeadError)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_generate_raises_what_the_engine_gave_up(
    pair: tuple[LLM, FakeEngine], status: int, error: type[Exception], stream: bool
) -> None:
    llm, engine = pair
    engine.is_running = False

    def failing(request: Request) -> Sequence[int]:
        asyncio.get_running_loop().call_soon(engine.fail, request.rid, "no more", status)
        return [5]

    engine.answer = failing
    with pytest.raises(error, match="no more"):
        body = llm.generate("hi", stream=stream)
        list(body)


def test_one_failure_ends_a_batch_at_once(pair: tuple[LLM, FakeEngine]) -> None:
    llm, engine = pair
    engine.is_running = False  # the others would never end

    def failing(request: Request) -> Sequence[int]:
        if len(engine.requests) == 2:
            asyncio.get_running_loop().call_soon(engine.fail, request.rid, "no more", 503)
        return [5]

    engine.answer = failing
    with pytest.raises(OverloadedError, match="no more"):
        llm.generate(["a", "b", "c"])
    assert llm.num_open == 0


def test_shutdown_ends_a_waiting_generate(tokenizer: Tokenizer) -> None:
    llm, engine = fake_llm(tokenizer, lambda request: [5])
    engine.is_running = False
    items = llm.generate("hi", stream=True)
    engine.is_running = True
    next(items)
    with llm:
        pass
    llm.shutdown()
    assert llm.num_open == 0
    num_threads = threading.active_count()
    with pytest.raises(EngineDeadError, match="the LLM was shut down; make a new one"):
        list(items)
    with pytest.raises(EngineDeadError, match="the LLM was shut down; make a new one"):
        llm.generate("hi")
    assert threading.active_count() == num_threads
    llm.shutdown()


def test_logprobs(pair: tuple[LLM, FakeEngine], answer: list[int]) -> None:
    params = SamplingParams(num_logprobs=2, max_new_tokens=2)
    meta = pair[0].generate("hi", params)["meta_info"]
    assert meta["output_token_logprobs"] == [[-0.5, i, None] for i in answer[:2]]
    assert meta["output_top_logprobs"][0] == [[-0.5, answer[0], None], [-1.5, answer[0] + 1, None]]
    assert meta["output_token_logprobs_length"] == 2
    assert meta["input_token_logprobs"] == meta["input_top_logprobs"] == []
