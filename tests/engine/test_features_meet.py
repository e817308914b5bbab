"""What a request asks for changes nothing for the others, and their company nothing for it."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from engine_harness import EngineHarness, Output, running_engine
from fake_matcher import ANY, FakeMatcher, fill_fake_masks

from jaxserve import constraints
from jaxserve.request import SamplingParams

WIDTH = 64  # of the tiny checkpoint
GREEDY = SamplingParams(max_new_tokens=40, temperature=0.0, ignore_eos=True, seed=0)
DRAWN = replace(GREEDY, temperature=0.9, top_p=0.9, seed=7)
PENALISED = replace(GREEDY, frequency_penalty=0.7, repetition_penalty=1.2, min_new_tokens=5)
LOGPROBS = {"num_logprobs": 3, "logprob_token_ids": (5, 9)}
FORCED = [frozenset({token}) for token in (20, 21, 22, 21, 23)]
SOME = frozenset(range(30, 90))
PATTERN = [SOME, *FORCED, SOME, SOME, *FORCED, ANY, SOME, FORCED[0], *[SOME] * 40]


@dataclass(frozen=True)
class Asked:
    """A request, but for its id."""

    sampling: SamplingParams
    num_prompt: int = 20
    pattern: tuple[frozenset[int], ...] | None = None
    starts_after: int | None = None
    brings_embeds: bool = False

    @property
    def prompt(self) -> list[int]:
        if self.brings_embeds:
            return [7] * self.num_prompt
        return np.random.default_rng(self.num_prompt).integers(3, 250, self.num_prompt).tolist()

    @property
    def embeds(self) -> np.ndarray | None:
        if not self.brings_embeds:
            return None
        rng = np.random.default_rng(self.num_prompt)
        return rng.normal(size=(self.num_prompt, WIDTH)).astype(np.float32)

    @property
    def matcher(self) -> FakeMatcher | None:
        if self.pattern is None:
            return None
        return FakeMatcher(self.pattern, starts_after=self.starts_after)


RULED = Asked(GREEDY, 21, tuple(PATTERN))
ALL = [
    Asked(GREEDY),
    Asked(replace(DRAWN, hidden_states="all"), 70),  # more than a chunk
    Asked(replace(PENALISED, **LOGPROBS, prompt_logprobs_start=0), 30),
    RULED,
    replace(RULED, sampling=replace(DRAWN, **LOGPROBS, hidden_states="all"), num_prompt=80),
    replace(RULED, sampling=replace(PENALISED, temperature=0.8), pattern=tuple(PATTERN[1:])),
    replace(RULED, sampling=replace(GREEDY, hidden_states="last"), brings_embeds=True),
    replace(RULED, sampling=replace(PENALISED, hidden_states="all"), starts_after=-1),
    Asked(replace(DRAWN, hidden_states="all"), 75, brings_embeds=True),
    Asked(replace(PENALISED, max_new_tokens=3, min_new_tokens=2), 12),
    Asked(replace(DRAWN, max_new_tokens=1, hidden_states="all"), 13),
    replace(RULED, num_prompt=5, brings_embeds=True),
]


@pytest.fixture(autouse=True)
def fake_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "fill_masks", fill_fake_masks)


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"disable_overlap_schedule": True},
        {"tp_size": 2, "kv_cache_dtype": "fp8_e4m3"},
    ],
    ids=str,
)
def engine(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, compilation_cache_dir: str
) -> Iterator[EngineHarness]:
    fields: dict[str, object] = {
        "disable_radix_cache": True,
        "enable_return_hidden_states": True,
        "max_total_tokens": 160,  # some are retracted
        "context_length": 128,
    }
    with running_engine(tiny_checkpoint, compilation_cache_dir, **fields, **request.param) as each:
        yield each


@pytest.fixture(scope="module")
def alone(engine: EngineHarness) -> list[Output]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constraints, "fill_masks", fill_fake_masks)
        return [run(engine, [each])[0] for each in ALL]


def run(
    engine: EngineHarness,
    asked: list[Asked],
    on_output: Callable[[Output], None] = lambda output: None,
) -> list[Output]:
    return engine.run(
        [each.prompt for each in asked],
        [each.sampling for each in asked],
        constraints=[each.matcher for each in asked],
        embeds=[each.embeds for each in asked],
        on_output=on_output,
    )


def check(asked: Asked, found: Output, wanted: Output) -> None:
    assert (found.tokens, found.finish) == (wanted.tokens, wanted.finish)
    for ours, theirs in (
        (found.logprobs, wanted.logprobs),
        (found.prompt_logprobs, wanted.prompt_logprobs),
    ):
        assert [each.token_id for each in ours] == [each.token_id for each in theirs]
        values = ([each.logprob or 0.0 for each in group] for group in (ours, theirs))
        np.testing.assert_allclose(*values, atol=1e-3)
    if asked.sampling.hidden_states == "all":
        ours, theirs = (np.concatenate(each.hidden_states) for each in (found, wanted))
        np.testing.assert_allclose(ours, theirs, atol=2e-3)
        assert len(ours) == asked.num_prompt + len(found.tokens) - 1


@pytest.mark.parametrize("order", [1, -1])
def test_in_company_as_alone(engine: EngineHarness, alone: list[Output], order: int) -> None:
    together = run(engine, ALL[::order])[::order]
    for each in zip(ALL, together, alone, strict=True):
        check(*each)
    assert engine.engine.num_recompiles == 0


def test_pauses_and_aborts_change_nothing_for_others(
    engine: EngineHarness, alone: list[Output]
) -> None:
    count = itertools.count()
    victims: set[str] = set()

    def interfere(output: Output) -> None:
        turn = next(count)
        if turn % 50 == 49:
            engine.engine.pause("retract" if turn % 100 == 49 else "in_place")
            engine.engine.resume()
        if len(output.tokens) > 6 and turn % 3 and len(victims) < 3:
            victims.add(output.rid)
            engine.engine.abort(output.rid)

    together = run(engine, ALL, interfere)
    for asked, found, wanted in zip(ALL, together, alone, strict=True):
        if found.rid in victims:
            assert found.tokens == wanted.tokens[: len(found.tokens)]
        else:
            check(asked, found, wanted)
    assert len(victims) == 3
    assert sum(output.num_retractions for output in together) > 0
    assert engine.engine.flush_cache().result(timeout=10)
