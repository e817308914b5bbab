"""The engine thread's promises: order, abort, refusal, death, and no compiling while serving."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_harness import EngineHarness, Output, running_engine

from jaxserve.batch import StepInputs
from jaxserve.errors import EngineDeadError
from jaxserve.request import Request, SamplingParams, TokenOutput

PROMPT = tuple(range(10, 50))


@pytest.fixture(scope="module")
def harness(tiny_checkpoint: Path, compilation_cache_dir: str) -> Iterator[EngineHarness]:
    with running_engine(tiny_checkpoint, compilation_cache_dir) as harness:
        yield harness


def params(**fields: object) -> SamplingParams:
    return SamplingParams(
        **{"max_new_tokens": 8, "temperature": 0.0, "seed": 0, "ignore_eos": True, **fields}
    )


def test_logprobs_of_greedy_tokens_are_the_largest(harness: EngineHarness) -> None:
    output = harness.run([PROMPT], params(num_logprobs=3))[0]
    assert [item.token_id for item in output.logprobs] == output.tokens
    for item in output.logprobs:
        assert len(item.top) == 3
        assert item.top[0] == (item.token_id, item.logprob)
        assert item.top[0][1] >= item.top[1][1] >= item.top[2][1]


def test_stop_token_ends_a_sequence_and_is_its_last(harness: EngineHarness) -> None:
    tokens = harness.run([PROMPT], params())[0].tokens
    position = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])
    output = harness.run([PROMPT], params(stop_token_ids=(tokens[position],)))[0]
    assert output.tokens == tokens[: position + 1]
    assert output.finish is not None
    assert (output.finish.type, output.finish.matched) == ("stop", tokens[position])


def test_min_new_tokens_puts_off_the_stop(harness: EngineHarness) -> None:
    tokens = harness.run([PROMPT], params())[0].tokens
    output = harness.run([PROMPT], params(stop_token_ids=(tokens[0],), min_new_tokens=4))[0]
    assert tokens[0] not in output.tokens[:4]
    assert len(output.tokens) >= 4


def test_no_tokens_asked_for(harness: EngineHarness) -> None:
    output = harness.run([PROMPT], params(max_new_tokens=0))[0]
    assert output.tokens == []
    assert output.finish is not None and output.finish.type == "length"
    again = harness.run([PROMPT], params())[0]
    assert again.num_cached == (len(PROMPT) - 1) // 16 * 16


def test_the_same_seed_gives_the_same_text_in_a_crowd(harness: EngineHarness) -> None:
    mine = params(temperature=1.3, seed=-5, max_new_tokens=20)
    alone = harness.run([PROMPT], mine)[0].tokens
    others = [params(temperature=1.0, seed=seed, max_new_tokens=20) for seed in range(6)]
    crowd = harness.run([PROMPT] * 7, [*others[:3], mine, *others[3:]])
    assert crowd[3].tokens == alone
    assert len({tuple(output.tokens) for output in crowd}) == 7


def test_abort_while_it_runs_frees_everything(harness: EngineHarness) -> None:
    def abort_after_three(output: Output) -> None:
        if len(output.tokens) == 3:
            harness.engine.abort(output.rid)
            harness.engine.abort(output.rid)  # idempotent

    output = harness.run([PROMPT], params(max_new_tokens=150), on_output=abort_after_three)[0]
    assert output.finish is not None
    assert (output.finish.type, output.finish.message) == ("abort", "Aborted")
    assert 3 <= len(output.tokens) < 150
    assert harness.engine.stats().num_used_tokens == 0
    harness.engine.abort("never heard of")


def test_flush_is_refused_while_something_runs(harness: EngineHarness) -> None:
    answers = []

    def flush_at_second(output: Output) -> None:
        if len(output.tokens) == 2:
            answers.append(harness.engine.flush_cache())

    harness.run([PROMPT], params(max_new_tokens=100), on_output=flush_at_second)
    assert answers[0].result(timeout=10) is False
    harness.flush()
    assert harness.run([PROMPT], params())[0].num_cached == 0


def test_a_flush_whose_caller_goes_away_hurts_nobody(harness: EngineHarness) -> None:
    async def flush_and_go() -> None:
        for _ in range(20):
            asyncio.wrap_future(harness.engine.flush_cache()).cancel()

    asyncio.run(flush_and_go())
    output = harness.run([PROMPT], params())[0]
    assert output.finish is not None and output.finish.type == "length"
    assert harness.engine.is_alive


def test_a_refused_request_costs_nobody_anything(harness: EngineHarness) -> None:
    too_long = params(max_new_tokens=10**6)
    outputs = harness.run([PROMPT, PROMPT], [too_long, params()])
    assert outputs[0].finish is not None
    assert outputs[0].finish.status_code in (400, 503)
    assert "--" in (outputs[0].finish.message or "")  # names the flag that would help
    assert outputs[1].finish is not None and outputs[1].finish.type == "length"


def test_nothing_compiles_after_warm_up(harness: EngineHarness) -> None:
    """Random traffic of every kind of request, counted by jax itself."""
    rng = np.random.default_rng(11)
    kinds = (
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 0.5, "min_p": 0.1, "num_logprobs": 5},
        {"repetition_penalty": 1.3, "logit_bias": ((4, 1.0),), "min_new_tokens": 2},
    )
    before = harness.engine.num_recompiles
    for _ in range(4):
        count = int(rng.integers(1, 14))
        prompts = [rng.integers(3, 250, rng.integers(1, 200)).tolist() for _ in range(count)]
        sampling = [
            params(max_new_tokens=int(rng.integers(1, 20)), **kinds[int(rng.integers(4))])
            for _ in prompts
        ]
        harness.run(prompts, sampling)
    assert harness.engine.num_recompiles == before == 0


def test_shutdown_ends_what_is_alive(tiny_checkpoint: Path, compilation_cache_dir: str) -> None:
    with running_engine(tiny_checkpoint, compilation_cache_dir) as harness:

        async def submit_and_stop() -> TokenOutput:
            last: asyncio.Future[TokenOutput] = asyncio.get_running_loop().create_future()

            def deliver(output: TokenOutput) -> None:
                if output.finish is not None:
                    last.set_result(output)

            request = Request(
                rid="x", prompt_ids=PROMPT, sampling=params(max_new_tokens=200), arrival_s=0.0
            )
            harness.engine.submit(request, deliver)
            await asyncio.to_thread(harness.engine.shutdown)
            with pytest.raises(EngineDeadError, match="the engine is shutting down"):
                harness.engine.submit(request, deliver)
            return await last

        output = asyncio.run(submit_and_stop())
        assert output.finish is not None
        assert (output.finish.type, output.finish.status_code) == ("abort", 503)
        with pytest.raises(EngineDeadError, match="shutting down"):
            harness.engine.flush_cache().result(timeout=1)


def test_death_reaches_everybody(
    tiny_checkpoint: Path, compilation_cache_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_engine(tiny_checkpoint, compilation_cache_dir) as harness:

        def broken_launch(inputs: StepInputs, deferred: list[int]) -> None:
            raise RuntimeError("device lost")

        monkeypatch.setattr(harness.engine._runner, "launch", broken_launch)
        outputs = harness.run([PROMPT, PROMPT], params())
        for output in outputs:
            assert output.finish is not None
            assert (output.finish.type, output.finish.status_code) == ("abort", 500)
            assert output.finish.message == "the engine died: RuntimeError: device lost"
        assert not harness.engine.is_alive
        with pytest.raises(EngineDeadError, match="the engine died: RuntimeError: device lost"):
            harness.run([PROMPT], params())
