"""A sequence's counters, and what it refuses to be made from."""

import pytest

from jaxserve.request import Request, SamplingParams
from jaxserve.scheduler.sequence import make_sequence


def make_request(prompt_ids=(1, 2, 3), **sampling) -> Request:
    return Request(
        rid="a",
        prompt_ids=prompt_ids,
        sampling=SamplingParams(**{"seed": 0, **sampling}),
        arrival_s=0.0,
    )


def test_lengths_follow_the_tokens():
    seq = make_sequence(make_request(max_new_tokens=2), 0, ())
    assert (seq.num_prompt, seq.num_tokens, seq.num_output, seq.num_uncomputed) == (3, 3, 0, 3)
    seq.tokens.append(9)
    seq.num_computed = 3
    assert (seq.num_prompt, seq.num_tokens, seq.num_output, seq.num_uncomputed) == (3, 4, 1, 1)
    assert seq.can_decode
    seq.num_inflight = 1
    assert not seq.can_decode


@pytest.mark.parametrize(
    ("sampling", "stop_ids"),
    [
        ({}, {2}),
        ({"stop_token_ids": (7, 8)}, {2, 7, 8}),
        ({"ignore_eos": True, "stop_token_ids": (7,)}, {7}),
        ({"ignore_eos": True}, set()),
    ],
)
def test_stop_ids_are_eos_unless_ignored_and_the_requests_own(sampling, stop_ids):
    assert make_sequence(make_request(**sampling), 0, (2,)).stop_ids == stop_ids


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="request a has no prompt tokens; give at least one"):
        make_sequence(make_request(()), 0, ())


@pytest.mark.parametrize("missing", ["seed", "max_new_tokens"])
def test_parameters_left_open_are_refused(missing):
    with pytest.raises(ValueError, match=f"{missing}=None.*both must be numbers"):
        make_sequence(make_request(**{missing: None}), 0, ())
