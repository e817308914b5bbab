"""When forced tokens are worth a step of their own."""

import pytest

from jaxserve.batch import Bucket, Mode
from jaxserve.step_times import StepTimes


def make_times(extend_ms: float, decode_ms: float) -> StepTimes:
    times = StepTimes((32, 128), (1, 8))
    for mode, size, milliseconds in (
        (Mode.EXTEND, 32, extend_ms),
        (Mode.DECODE, 8, decode_ms),
        (Mode.DECODE, 1, decode_ms),
    ):
        for factor in (3.0, 1.0, 2.0):
            bucket = Bucket(mode, size, 8, 4)
            times.record(bucket, factor * milliseconds / 1000)
    return times


@pytest.mark.parametrize(
    ("num_tokens", "num_rows", "is_worth_it"),
    [(1, 1, False), (3, 1, False), (4, 1, True), (19, 5, False), (20, 5, True)],
)
def test_an_extend_step_of_three_decode_steps(num_tokens, num_rows, is_worth_it):
    times = make_times(extend_ms=30.0, decode_ms=10.0)
    assert times.is_worth_appending(num_tokens, num_rows) == is_worth_it


def test_an_extend_step_that_costs_nothing_more():
    assert make_times(extend_ms=10.0, decode_ms=10.0).is_worth_appending(1, 8)


def test_what_is_not_known_is_tried():
    times = make_times(extend_ms=30.0, decode_ms=10.0)
    assert times.is_worth_appending(30, 8)  # the bucket of 128 tokens
    assert StepTimes((32,), (8,)).is_worth_appending(1, 8)
