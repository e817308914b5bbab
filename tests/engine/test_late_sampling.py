"""The order of a constrained sequence's steps: the device is given work before it is waited for."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_harness import running_engine
from fake_matcher import ANY, FakeMatcher, fill_fake_masks

from jaxserve import constraints
from jaxserve.executor import ModelRunner, PendingStep
from jaxserve.request import SamplingParams

PROMPT = tuple(range(10, 50))


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the engine asks of the executor, in order."""
    names: list[str] = []

    def spied(owner: type, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def call(*args: object, **fields: object) -> object:
            names.append(name)
            return original(*args, **fields)

        monkeypatch.setattr(owner, name, call)

    spied(ModelRunner, "launch")
    spied(ModelRunner, "sample")
    spied(PendingStep, "fetch")
    monkeypatch.setattr(constraints, "fill_masks", fill_fake_masks)
    yield names


def params(**fields: object) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 8, "temperature": 0.0, "seed": 0, **fields})


def test_a_step_is_launched_before_the_tokens_of_the_step_before_are_known(
    tiny_checkpoint: Path, compilation_cache_dir: str, calls: list[str]
) -> None:
    with running_engine(tiny_checkpoint, compilation_cache_dir) as harness:
        harness.run([PROMPT], params(ignore_eos=True), constraints=[FakeMatcher([ANY] * 20)])
    steps = ["launch", "fetch", "sample"] * 7
    assert calls == ["launch", "sample", *steps, "fetch"]


def test_without_overlap_every_step_is_known_before_the_next(
    tiny_checkpoint: Path, compilation_cache_dir: str, calls: list[str]
) -> None:
    with running_engine(
        tiny_checkpoint, compilation_cache_dir, disable_overlap_schedule=True
    ) as harness:
        harness.run([PROMPT], params(ignore_eos=True), constraints=[FakeMatcher([ANY] * 20)])
    assert calls == ["launch", "sample", "fetch"] * 8


def test_free_rows_are_sampled_in_their_step(
    tiny_checkpoint: Path, compilation_cache_dir: str, calls: list[str]
) -> None:
    """What a free row is waits for no mask: only rows with a grammar are deferred."""
    deferred: list[list[int]] = []
    with running_engine(tiny_checkpoint, compilation_cache_dir) as harness:
        runner = harness.engine._runner
        launch = runner.launch

        def spy(inputs: Any, rows: list[int]) -> PendingStep:
            deferred.append(rows)
            assert not np.setdiff1d(rows, np.flatnonzero(inputs.sampling.samples)).size
            return launch(inputs, rows)

        runner.launch = spy  # type: ignore[method-assign]
        harness.run(
            [PROMPT, PROMPT[1:], PROMPT[2:]],
            params(ignore_eos=True),
            constraints=[None, FakeMatcher([ANY] * 20), None],
        )
    assert calls.count("sample") == 8
    assert {len(rows) for rows in deferred} <= {0, 1}


def test_a_sequence_that_ends_is_not_sampled_again(
    tiny_checkpoint: Path, compilation_cache_dir: str, calls: list[str]
) -> None:
    """The step that was launched before its last token was known samples nothing for it."""
    with running_engine(tiny_checkpoint, compilation_cache_dir) as harness:
        output = harness.run([PROMPT], params(), constraints=[FakeMatcher([ANY] * 3)])[0]
    assert len(output.tokens) == 4
    assert (calls.count("sample"), calls.count("launch")) == (3, 4)


def test_what_needs_no_mask_any_more_is_sampled_in_its_step(
    tiny_checkpoint: Path, compilation_cache_dir: str, calls: list[str]
) -> None:
    """A thought is followed to its end; the answer is as free as if nothing had been followed."""
    with running_engine(tiny_checkpoint, compilation_cache_dir) as harness:
        free = harness.run([PROMPT], params(max_new_tokens=30, ignore_eos=True))[0].tokens
        calls.clear()
        matcher = FakeMatcher([], starts_after=free[2], is_lifted=True)
        sampling = params(max_new_tokens=30, ignore_eos=True)
        output = harness.run([PROMPT], sampling, constraints=[matcher])[0]
    assert output.tokens == free
    position = free.index(free[2])
    assert calls.count("sample") == position + 2  # one more was launched before its end was known
    assert calls.count("launch") == 30


def test_the_masks_of_a_step_are_filled_at_once_though_some_rows_are_free(
    tiny_checkpoint: Path,
    compilation_cache_dir: str,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``fill_masks`` shares the rows of a call out to processors."""
    counts: list[int] = []

    def spy(matchers: list[FakeMatcher], out: np.ndarray) -> None:
        counts.append(len(matchers))
        fill_fake_masks(matchers, out)

    monkeypatch.setattr(constraints, "fill_masks", spy)
    low, high = frozenset(range(30, 90)), frozenset(range(100, 150))
    with running_engine(tiny_checkpoint, compilation_cache_dir) as harness:
        free = harness.run([PROMPT[1:]], params(ignore_eos=True))[0].tokens
        outputs = harness.run(
            [PROMPT, PROMPT[1:], PROMPT[2:]],
            params(ignore_eos=True),
            constraints=[
                FakeMatcher([low] * 20),
                FakeMatcher([low] * 20, starts_after=-1),  # thinks to the end
                FakeMatcher([high] * 20),
            ],
        )
    assert set(outputs[0].tokens) <= low and set(outputs[2].tokens) <= high
    assert outputs[1].tokens == free
    assert len(counts) == calls.count("sample") and max(counts) == 2
