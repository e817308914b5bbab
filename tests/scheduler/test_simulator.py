"""Random traffic on the real scheduler; see ``scheduler_sim.simulator`` for the laws."""

from dataclasses import replace

import pytest
from scheduler_sim.simulator import Report, Simulation, make_world, run_worlds

NUM_REQUESTS = 3_000


@pytest.fixture(scope="module")
def report() -> Report:
    """A few dozen worlds; every law is asserted while they run."""
    return run_worlds(NUM_REQUESTS)


def test_output_does_not_depend_on_company_and_nothing_leaks(report):
    assert report.num_requests >= NUM_REQUESTS


def test_the_traffic_had_some_of_everything(report):
    assert report.num_retractions > 50
    assert report.num_aborts > 20
    assert report.num_stops > 100
    assert report.num_cached_tokens > 10_000
    assert report.num_appended > 500
    assert report.num_withdrawn > 100
    assert report.num_pauses > 50


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "priority"])
@pytest.mark.parametrize("is_overlapping", [True, False])
def test_a_tiny_pool_is_lived_through(policy, is_overlapping):
    base = make_world(0)
    for seed in range(6):
        config = replace(
            base.config,
            max_running_requests=4,
            prefill_max_requests=4,
            chunked_prefill_size=5,
            page_size=4,
            schedule_policy=policy,
            disable_radix_cache=False,
        )
        world = replace(
            base,
            seed=seed,
            page_size=4,
            num_pages=17,
            config=config,
            abort_rate=0.0,
            arrival_rate=5.0,
            is_overlapping=is_overlapping,
        )
        assert Simulation(world).run().num_retractions > 0
