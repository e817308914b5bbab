"""Waiting and running times, deadlines, and time that stands still."""

from collections.abc import Callable

import pytest

from jaxserve.request import TokenOutput
from jaxserve.request_clock import RequestClock


@pytest.fixture
def now() -> list[float]:
    """The time, for a test to change."""
    return [100.0]


@pytest.fixture
def make_clock(now: list[float]) -> Callable[..., RequestClock]:
    return lambda waiting_s=5.0, running_s=10.0: RequestClock(waiting_s, running_s, lambda: now[0])


def late(clock: RequestClock) -> dict[str, str | None]:
    assert all(reason.status_code == 503 for _, reason in clock.late())
    return {rid: reason.message for rid, reason in clock.late()}


def test_deadlines_run_from_arrival_and_from_the_first_step(make_clock, now):
    clock = make_clock()
    clock.added("a", 100.0)
    now[0] = 102.0
    clock.added("b", 102.0)
    clock.started(["a"])
    now[0] = 106.9
    assert late(clock) == {}
    now[0] = 107.0
    assert late(clock) == {"b": "Request waiting timeout reached."}
    clock.ended("b")
    now[0] = 112.0
    clock.started(["a", "unknown"])  # another step is no new start
    assert late(clock) == {"a": "Request running timeout reached."}
    clock.ended("a")
    assert late(clock) == {}


def test_all_that_are_late_are_told_in_order(make_clock, now):
    clock = make_clock()
    for index in range(4):
        now[0] = 100.0 + index
        clock.added(f"r{index}", now[0])
    now[0] = 107.5
    assert list(late(clock)) == ["r0", "r1", "r2"]


def test_without_limits_nobody_is_late(make_clock, now):
    clock = make_clock(None, None)
    clock.added("a", 100.0)
    clock.started(["a"])
    now[0] = 1e9
    assert clock.late() == []


def test_a_pause_makes_nobody_late(make_clock, now):
    clock = make_clock()
    clock.added("a", 100.0)
    now[0] = 104.0
    clock.stop()
    clock.stop()
    now[0] = 1000.0
    clock.added("b", 1000.0)
    assert late(clock) == {}
    clock.go_on()
    clock.go_on()
    now[0] = 1000.9
    assert late(clock) == {}
    now[0] = 1001.0
    assert list(late(clock)) == ["a"]
    clock.ended("a")
    now[0] = 1005.0
    assert list(late(clock)) == ["b"]


def test_the_first_output_after_the_start_has_the_time_in_the_queue(make_clock, now):
    clock = make_clock()
    output = TokenOutput(rid="a", token_ids=(1,))
    clock.added("a", 99.0)
    assert clock.stamped(output) == output
    now[0] = 103.0
    clock.started(["a"])
    now[0] = 104.0
    assert clock.has_started
    assert clock.stamped(output).queue_s == 4.0
    assert not clock.has_started
    assert clock.stamped(output).queue_s is None


def test_nothing_stays_of_what_has_ended(make_clock):
    clock = make_clock()
    for rid in ("a", "b"):
        clock.added(rid, 100.0)
    clock.started(["a"])
    for rid in ("a", "b", "unknown"):
        clock.ended(rid)
    assert not clock.has_started
    assert clock.late() == []
