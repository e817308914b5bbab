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


def time_of(*steps: tuple[float, float, float]) -> float | None:
    """What a bucket is said to take after these steps: launched, asked for, there; in ms."""
    times = StepTimes((32,), (8,))
    for step in steps:
        times.finished(Bucket(Mode.DECODE, 8, 8, 4), *(each / 1000 for each in step))
    return times._find(Mode.DECODE, 8)


def test_a_step_alone_takes_from_its_launch_to_its_tokens():
    assert time_of((1.0, 2.0, 11.0)) == pytest.approx(0.010)


def test_a_step_behind_another_takes_from_the_end_of_that_one():
    assert time_of((1.0, 9.0, 41.0), (5.0, 42.0, 49.0)) == pytest.approx(0.008)


def test_a_step_that_nobody_waited_for_tells_nothing():
    """Nor does the one behind it: when it was taken up is not known."""
    assert time_of((1.0, 30.0, 30.01)) is None
    assert time_of((1.0, 30.0, 30.01), (5.0, 31.0, 33.0)) is None
    assert time_of((1.0, 30.0, 30.01), (31.0, 32.0, 45.0)) == pytest.approx(0.014)
