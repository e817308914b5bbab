"""Constrained sequences on the real model: masks, forced tokens, ends, company."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from engine_harness import EngineHarness, Output, running_engine
from fake_matcher import ANY, EOS, FakeMatcher, fill_fake_masks

from jaxserve import constraints
from jaxserve.batch import MIN_LOGPROB
from jaxserve.errors import GrammarError
from jaxserve.request import FinishReason, SamplingParams

PROMPT = tuple(range(10, 50))
KINDS: tuple[dict[str, object], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.2, "top_p": 0.95},
    {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 0.0, "logit_bias": ((5, 3.0),), "min_new_tokens": 3},
)


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
        **{"max_new_tokens": 60, "temperature": 0.0, "seed": 0, "ignore_eos": True, **fields}
    )


def only(*token_ids: int) -> frozenset[int]:
    return frozenset(token_ids)


def pattern(seed: int) -> list[frozenset[int]]:
    """Runs of forced tokens between choices of different width."""
    rng = np.random.default_rng(seed)
    steps: list[frozenset[int]] = []
    while len(steps) < 25:
        steps += [only(int(token)) for token in rng.integers(3, 250, rng.integers(0, 7))]
        width = int(rng.integers(2, 60))
        steps += [frozenset(rng.integers(3, 250, width).tolist())] * int(rng.integers(1, 3))
    return steps


def workload(**fields: bool) -> tuple[list[list[int]], list[SamplingParams], list[FakeMatcher]]:
    rng = np.random.default_rng(5)
    prompts = [rng.integers(3, 250, length).tolist() for length in (1, 16, 40, 33, 70, 5, 12, 47)]
    sampling = [params(seed=70 + index, **KINDS[index % 4]) for index in range(len(prompts))]
    matchers = [FakeMatcher(pattern(index), **fields) for index in range(len(prompts))]
    return prompts, sampling, matchers


def tokens_of(outputs: Sequence[Output]) -> list[list[int]]:
    for output in outputs:
        assert output.finish == FinishReason("stop", matched=EOS)
    return [output.tokens for output in outputs]


@pytest.fixture(scope="module")
def expected(harness: EngineHarness) -> list[list[int]]:
    """Every token by a step of its own, each sequence alone."""
    prompts, sampling, matchers = workload(is_forcing=False)
    return tokens_of(
        [
            harness.run([prompt], each, constraints=[matcher])[0]
            for prompt, each, matcher in zip(prompts, sampling, matchers, strict=True)
        ]
    )


def test_every_token_is_allowed_and_the_end_is_eos(expected: list[list[int]]) -> None:
    for index, tokens in enumerate(expected):
        steps = pattern(index)
        assert len(tokens) == len(steps) + 1
        assert all(token in step for token, step in zip(tokens, steps, strict=False))
        assert tokens[-1] == EOS


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chunked_prefill_size": 16, "prefill_max_requests": 2},
        {"max_total_tokens": 144, "context_length": 144},
        {"disable_radix_cache": True, "max_running_requests": 3},
        {"disable_overlap_schedule": True},
    ],
    ids=["in company", "in chunks", "retracted", "few rows", "no overlap"],
)
def test_forced_tokens_equal_sampled_ones(
    expected: list[list[int]],
    tiny_checkpoint: Path,
    compilation_cache_dir: str,
    changes: dict[str, object],
) -> None:
    with running_engine(tiny_checkpoint, compilation_cache_dir, **changes) as harness:
        prompts, sampling, matchers = workload()
        outputs = harness.run(prompts, sampling, constraints=matchers)
        stats = harness.engine.stats()
    assert tokens_of(outputs) == expected
    assert (stats.num_retractions > 0) == ("max_total_tokens" in changes)
    assert stats.num_used_tokens == 0
    num_tokens = sum(len(tokens) for tokens in expected)
    assert stats.num_decode_tokens_total == num_tokens


def test_unconstrained_company_is_not_disturbed(harness: EngineHarness) -> None:
    prompts, sampling, matchers = workload()
    free = [matcher if index % 2 else None for index, matcher in enumerate(matchers)]
    alone = harness.run_one_by_one(prompts[::2], sampling[::2])
    together = harness.run(prompts, sampling, constraints=free)
    assert [output.tokens for output in together[::2]] == [output.tokens for output in alone]
    assert len(alone[0].tokens) == 60


def test_forced_tokens_take_no_steps(harness: EngineHarness) -> None:
    steps = [*[only(t) for t in range(20, 30)], ANY, *[only(t) for t in range(30, 40)]]
    before = harness.engine.stats().num_steps_total
    output = harness.run([PROMPT], params(), constraints=[FakeMatcher(steps)])[0]
    # one that samples, and one that was launched before its token was known
    assert harness.engine.stats().num_steps_total - before == 2
    assert output.tokens[:10] == list(range(20, 30))
    assert output.tokens[11:] == [*range(30, 40), EOS]
    assert output.queue_s and output.queue_s[0] >= 0


def test_a_grammar_without_a_choice_takes_no_step_at_all(harness: EngineHarness) -> None:
    before = harness.engine.stats().num_steps_total
    matcher = FakeMatcher([only(20), only(21)])
    output = harness.run([PROMPT], params(ignore_eos=False), constraints=[matcher])[0]
    assert output.tokens == [20, 21, EOS]
    assert harness.engine.stats().num_steps_total == before


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_new_tokens": 20}, {}])
def test_a_sampled_eos_ends_it_whatever_the_request_says(
    harness: EngineHarness, fields: dict[str, object]
) -> None:
    matcher = FakeMatcher([ANY, only(), only(9)], may_end_at=only(1))  # at 1 only EOS may come
    output = harness.run([PROMPT], params(**{"ignore_eos": False, **fields}), constraints=[matcher])
    assert output[0].tokens[-1] == EOS and len(output[0].tokens) == 2
    assert output[0].finish == FinishReason("stop", matched=EOS)


def test_the_length_cuts_forced_tokens(harness: EngineHarness) -> None:
    matcher = FakeMatcher([ANY, *[only(t) for t in range(30, 60)]])
    output = harness.run([PROMPT], params(max_new_tokens=6), constraints=[matcher])[0]
    assert output.tokens[1:] == list(range(30, 35))
    assert output.finish == FinishReason("length")


def test_a_stop_token_among_forced_ones_ends_it(harness: EngineHarness) -> None:
    matcher = FakeMatcher([ANY, *[only(t) for t in range(30, 60)]])
    sampling = params(stop_token_ids=(33,), num_logprobs=2)
    output = harness.run([PROMPT], sampling, constraints=[matcher])[0]
    assert output.tokens[1:] == [30, 31, 32, 33]
    assert output.finish == FinishReason("stop", matched=33)
    assert [item.token_id for item in output.logprobs] == output.tokens


def test_no_tokens_asked_for(harness: EngineHarness) -> None:
    matcher = FakeMatcher([only(20), ANY])
    output = harness.run([PROMPT], params(max_new_tokens=0), constraints=[matcher])[0]
    assert (output.tokens, output.finish) == ([], FinishReason("length"))


def test_a_certain_token_has_the_logprob_zero(harness: EngineHarness) -> None:
    steps = [only(20), only(5, 6), only(21), only(22)]
    sampling = params(num_logprobs=2, logprob_token_ids=(22, 7))
    forced = harness.run([PROMPT], sampling, constraints=[FakeMatcher(steps)])[0]
    stepped = harness.run([PROMPT], sampling, constraints=[FakeMatcher(steps, is_forcing=False)])[0]
    assert forced.tokens == stepped.tokens
    for ours, theirs in zip(forced.logprobs, stepped.logprobs, strict=True):
        assert (ours.token_id, ours.of_ids) == (theirs.token_id, theirs.of_ids)
        assert ours.logprob == pytest.approx(theirs.logprob)
        assert ours.top[0][0] == theirs.top[0][0]
    assert forced.logprobs[0].top == ((20, 0.0),)
    assert forced.logprobs[3].of_ids == ((22, 0.0), (7, MIN_LOGPROB))
    assert forced.logprobs[1].logprob < 0.0


def test_nothing_is_masked_before_the_start(harness: EngineHarness) -> None:
    free = harness.run([PROMPT], params(max_new_tokens=30))[0].tokens
    position = next(i for i in range(3, 30) if free[i] not in free[:i])
    matcher = FakeMatcher([only(20), only(21), ANY], starts_after=free[position])
    output = harness.run([PROMPT], params(), constraints=[matcher])[0]
    assert output.tokens[: position + 3] == [*free[: position + 1], 20, 21]
    assert output.tokens[-1] == EOS and len(output.tokens) == position + 5


@pytest.mark.parametrize("position", [0, 1, 4])
def test_a_grammar_that_breaks_ends_its_request_alone(
    harness: EngineHarness, position: int
) -> None:
    broken = FakeMatcher([ANY] * 10, breaks_at=position)
    whole = FakeMatcher([ANY] * 10)
    outputs = harness.run([PROMPT] * 3, params(), constraints=[whole, broken, None])
    assert outputs[1].finish == FinishReason(
        "abort", message="the grammar is too complex", status_code=400
    )
    assert len(outputs[1].tokens) == position
    assert outputs[0].finish == FinishReason("stop", matched=EOS)
    assert len(outputs[2].tokens) == 60
    assert harness.engine.stats().num_used_tokens == 0


def test_a_grammar_that_breaks_at_once_ends_its_request_alone(harness: EngineHarness) -> None:
    class Broken(FakeMatcher):
        def forced_tokens(self) -> tuple[int, ...]:
            raise GrammarError("the grammar is too complex")

    outputs = harness.run([PROMPT] * 2, params(), constraints=[Broken([ANY]), None])
    finish = FinishReason("abort", message="the grammar is too complex", status_code=400)
    assert (outputs[0].finish, outputs[0].tokens) == (finish, [])
    assert len(outputs[1].tokens) == 60


def test_a_refused_token_ends_its_request_alone(harness: EngineHarness) -> None:
    class Liar(FakeMatcher):
        def fill_mask(self, row: np.ndarray) -> None:
            row.fill(0xFFFFFFFF)

    matcher = Liar([only(20, 21)] * 3)
    outputs = harness.run([PROMPT] * 2, params(), constraints=[matcher, None])
    finish = outputs[0].finish
    assert finish is not None and (finish.type, finish.status_code) == ("abort", 400)
    assert "is not allowed here" in (finish.message or "")
    assert len(outputs[1].tokens) == 60


def test_nothing_compiles_for_constrained_traffic(harness: EngineHarness) -> None:
    before = harness.engine.num_recompiles
    for _ in range(2):
        prompts, sampling, matchers = workload()
        harness.run(prompts, sampling, constraints=matchers)
    assert harness.engine.num_recompiles == before
