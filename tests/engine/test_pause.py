"""Pause in its three modes, namespaces, timeouts and the profiler, on the real engine."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_harness import EngineHarness, Output, running_engine
from fake_matcher import ANY, FakeMatcher, fill_fake_masks

from jaxserve import constraints
from jaxserve.errors import EngineDeadError, InvalidRequestError
from jaxserve.request import FinishReason, PauseMode, Request, SamplingParams, TokenOutput

PROMPT = tuple(range(10, 50))
PROMPTS = [[*PROMPT[: 30 + 3 * index], 60 + index] for index in range(4)]


@pytest.fixture(autouse=True, scope="module")
def fake_masks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constraints, "fill_masks", fill_fake_masks)
        yield


@pytest.fixture(scope="module")
def harness(tiny_checkpoint: Path, compilation_cache_dir: str) -> Iterator[EngineHarness]:
    with running_engine(tiny_checkpoint, compilation_cache_dir) as harness:
        yield harness


def params(**fields: object) -> SamplingParams:
    return SamplingParams(
        **{"max_new_tokens": 40, "temperature": 0.0, "seed": 0, "ignore_eos": True, **fields}
    )


class Watcher:
    """Asks the engine for something when the first of the sequences has some tokens."""

    def __init__(self, harness: EngineHarness, num_tokens: int, *modes: PauseMode) -> None:
        self._engine = harness.engine
        self._num_tokens = num_tokens
        self._modes = list(modes)
        self.counts: list[int] = []
        self.num_running: list[int] = []
        self.num_used_tokens: list[int] = []

    def __call__(self, output: Output) -> None:
        """Pause and go on, from the loop's thread: nothing may come in between."""
        if len(output.tokens) < self._num_tokens or not self._modes:
            return
        self.counts.append(self._engine.pause(self._modes.pop()).result(timeout=10))
        assert self._engine.is_paused
        stats = self._engine.stats()
        assert stats.is_paused and stats.num_paused == stats.num_running + stats.num_waiting
        self.num_running.append(stats.num_running)
        self.num_used_tokens.append(stats.num_used_tokens)
        steps = stats.num_steps_total
        assert self._engine.stop_profile().exception(timeout=10) is not None  # it still answers
        assert self._engine.stats().num_steps_total == steps
        self._engine.resume().result(timeout=10)
        assert not self._engine.is_paused


@pytest.mark.parametrize("is_constrained", [False, True])
def test_a_pause_changes_no_token(harness: EngineHarness, is_constrained: bool) -> None:
    def matchers() -> list[FakeMatcher | None]:
        steps = [ANY, frozenset({7}), frozenset({8}), *[ANY] * 30]
        return [FakeMatcher(steps) if is_constrained else None for _ in PROMPTS]

    expected = [o.tokens for o in harness.run(PROMPTS, params(), constraints=matchers())]
    watcher = Watcher(harness, 5, "in_place", "retract", "in_place", "retract")
    outputs = harness.run(PROMPTS, params(), constraints=matchers(), on_output=watcher)
    assert [output.tokens for output in outputs] == expected
    assert watcher.num_running == [0, 4, 0, 4]  # popped from the end: retract first
    assert watcher.counts == [4, 4, 4, 4] or not watcher.counts.count(0)
    assert watcher.num_used_tokens[0] == 0 < watcher.num_used_tokens[1]
    assert {output.num_retractions for output in outputs} == {2}


def test_abort_mode_ends_everything(harness: EngineHarness) -> None:
    watcher = Watcher(harness, 5, "abort")
    outputs = harness.run(PROMPTS * 3, params(), on_output=watcher)
    assert watcher.counts == [12]
    messages = [output.finish.message for output in outputs if output.finish is not None]
    assert sorted(set(messages)) == ["Abort in waiting queue", "Aborted"]
    assert harness.engine.stats().num_used_tokens == 0


def test_requests_wait_while_it_is_paused(harness: EngineHarness) -> None:
    async def scenario() -> None:
        engine, loop = harness.engine, asyncio.get_running_loop()
        assert await asyncio.wrap_future(engine.pause("abort")) == 0
        outputs: asyncio.Queue[TokenOutput] = asyncio.Queue()
        for rid in ("waits", "goes"):
            request = Request(rid=rid, prompt_ids=PROMPT, sampling=params(), arrival_s=0.0)
            engine.submit(request, lambda output: outputs.put_nowait(output))
        assert not await asyncio.wrap_future(engine.flush_cache())
        assert engine.stats().num_waiting == 2
        engine.abort("goes")
        finish = (await asyncio.wait_for(outputs.get(), 10)).finish
        assert finish == FinishReason("abort", message="Abort in waiting queue")
        await asyncio.sleep(0.05)
        assert outputs.empty()
        await asyncio.wrap_future(engine.resume())
        deadline = loop.time() + 30
        while (await asyncio.wait_for(outputs.get(), 10)).finish is None:
            assert loop.time() < deadline

    asyncio.run(scenario())


def test_a_paused_engine_can_be_shut_down(
    tiny_checkpoint: Path, compilation_cache_dir: str
) -> None:
    with running_engine(tiny_checkpoint, compilation_cache_dir) as harness:
        harness.engine.pause("in_place").result(timeout=10)
    for ask in (lambda: harness.engine.pause("abort"), harness.engine.resume):
        with pytest.raises(EngineDeadError, match="the engine is shutting down"):
            ask().result(timeout=1)


def test_prefixes_are_shared_inside_a_namespace_only(harness: EngineHarness) -> None:
    def ask(namespace: str) -> tuple[list[int], int]:
        return run_request(harness, f"n{namespace}", params(), namespace)

    harness.flush()
    expected, _ = ask("")
    cached = (len(PROMPT) - 1) // 16 * 16
    assert ask("") == (expected, cached)
    assert ask("a") == (expected, 0)
    assert ask("a") == (expected, cached)
    assert ask("b") == (expected, 0)
    harness.flush()
    assert ask("a") == (expected, 0)


def run_request(
    harness: EngineHarness, rid: str, sampling: SamplingParams, namespace: str = ""
) -> tuple[list[int], int]:
    """Tokens and cached tokens of one request."""

    async def run() -> tuple[list[int], int]:
        tokens: list[int] = []
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def deliver(output: TokenOutput) -> None:
            tokens.extend(output.token_ids)
            if output.finish is not None:
                done.set_result(output.num_cached)

        request = Request(
            rid=rid,
            prompt_ids=PROMPT,
            sampling=sampling,
            arrival_s=0.0,
            cache_namespace=namespace,
        )
        harness.engine.submit(request, deliver)
        num_cached = await asyncio.wait_for(done, 30)
        return tokens, num_cached

    return asyncio.run(run())


def test_timeouts_are_503s(tiny_checkpoint: Path, compilation_cache_dir: str) -> None:
    with running_engine(
        tiny_checkpoint,
        compilation_cache_dir,
        max_running_requests=1,
        waiting_timeout_s=0.3,
        running_timeout_s=1.5,
    ) as harness:
        slow_down(harness, 0.05)
        outputs = harness.run([PROMPT, PROMPT], params(max_new_tokens=150))
        finishes = [output.finish for output in outputs]
        assert finishes == [
            FinishReason("abort", message="Request running timeout reached.", status_code=503),
            FinishReason("abort", message="Request waiting timeout reached.", status_code=503),
        ]
        assert len(outputs[0].tokens) > 5 and not outputs[1].tokens
        assert harness.run([PROMPT], params(max_new_tokens=3))[0].finish == FinishReason("length")


def slow_down(harness: EngineHarness, seconds: float) -> None:
    """Let every step take at least this long."""
    launch = harness.engine._runner.launch

    def slow(*args: object) -> object:
        time.sleep(seconds)
        return launch(*args)

    harness.engine._runner.launch = slow  # type: ignore[method-assign, assignment]


def test_a_more_urgent_request_takes_a_place_in_a_full_queue(
    tiny_checkpoint: Path, compilation_cache_dir: str
) -> None:
    with running_engine(
        tiny_checkpoint,
        compilation_cache_dir,
        max_running_requests=1,
        max_queued_requests=1,
        enable_priority_scheduling=True,
    ) as harness:

        async def scenario() -> dict[str, FinishReason]:
            engine = harness.engine
            await asyncio.wrap_future(engine.pause("in_place"))
            finishes: dict[str, FinishReason] = {}
            done = asyncio.Event()

            def deliver(output: TokenOutput) -> None:
                if output.finish is not None:
                    finishes[output.rid] = output.finish
                if len(finishes) == 3:
                    done.set()

            for rid, priority in (("low", 1), ("lower", 0), ("high", 2)):
                request = Request(
                    rid=rid,
                    prompt_ids=PROMPT,
                    sampling=params(),
                    arrival_s=0.0,
                    priority=priority,
                )
                engine.submit(request, deliver)
            await asyncio.wrap_future(engine.resume())
            await asyncio.wait_for(done.wait(), 30)
            return finishes

        finishes = asyncio.run(scenario())
    assert finishes["high"].type == "length"
    assert finishes["lower"].message == "The request queue is full."
    assert finishes["low"].message == "The request is aborted by a higher priority request."
    assert finishes["low"].status_code == finishes["lower"].status_code == 503


def traces(folder: Path) -> list[Path]:
    return list(folder.rglob("*.xplane.pb"))


def test_a_profile_of_some_steps(harness: EngineHarness, tmp_path: Path) -> None:
    harness.engine.start_profile(str(tmp_path / "new"), num_steps=3).result(timeout=30)
    busy = harness.engine.start_profile(str(tmp_path / "other"))
    with pytest.raises(InvalidRequestError, match=r"in progress; call /stop_profile first"):
        busy.result(timeout=30)
    harness.run([PROMPT], params(max_new_tokens=10))
    assert traces(tmp_path / "new") and not traces(tmp_path / "other")
    with pytest.raises(InvalidRequestError, match="no profiling is in progress; call /start_prof"):
        harness.engine.stop_profile().result(timeout=30)


def test_a_profile_from_a_step_on(harness: EngineHarness, tmp_path: Path) -> None:
    first = harness.engine.stats().num_steps_total + 4
    harness.engine.start_profile(str(tmp_path), start_step=first).result(timeout=30)
    harness.run([PROMPT], params(max_new_tokens=2))
    harness.engine.stop_profile().result(timeout=30)
    assert not traces(tmp_path)
    harness.engine.start_profile(str(tmp_path), start_step=first).result(timeout=30)
    harness.run([PROMPT], params(max_new_tokens=8))
    harness.engine.stop_profile().result(timeout=30)
    assert traces(tmp_path)


def test_a_profile_that_cannot_be_is_refused(harness: EngineHarness, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="num_steps must be at least 1, got 0"):
        harness.engine.start_profile(str(tmp_path), num_steps=0).result(timeout=30)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InvalidRequestError, match=r"cannot write a profile to .*give an output_dir"
    ):
        harness.engine.start_profile(str(tmp_path / "file" / "x")).result(timeout=30)


def test_stats_are_filled(harness: EngineHarness) -> None:
    rng = np.random.default_rng(1)
    harness.run([rng.integers(3, 250, 90).tolist() for _ in range(3)], params())
    stats = harness.engine.stats()
    assert stats.max_running == 8
    assert stats.num_steps_total > stats.num_extend_steps_total > 0
    assert stats.num_extend_slots_total >= stats.num_prefill_tokens_total > 0
    assert stats.num_decode_slots_total >= stats.num_decode_rows_total > 0
    assert min(stats.extend_s_total, stats.decode_s_total, stats.idle_s_total) > 0.0
    assert min(stats.schedule_s_total, stats.process_s_total, stats.cpu_s_total) > 0.0
    assert min(stats.weight_bytes, stats.kv_cache_bytes, stats.free_bytes_at_start) > 0
    assert (stats.num_running, stats.num_waiting, stats.sum_seq_lens) == (0, 0, 0)
    assert (stats.num_prefilling, stats.num_waiting_tokens, stats.num_retracted) == (0, 0, 0)
