"""Whatever happens to a worker, every other case still runs and every case has an outcome."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from gpu.settings import Settings, Worker
from gpu.supervisor import Supervisor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Outcomes = dict[str, dict[str, Any]]
Run = Callable[..., Outcomes]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("fine hanging …", **worker fields)`` -> case -> its end record."""

    def run_cases(names: str, time_s: float = 20.0, **fields: Any) -> Outcomes:
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(Path(__file__).parent)]),
            "FAKE_CASES": names,
            "BROKEN_MARK": str(tmp_path / "broken"),
        }
        records: list[dict[str, Any]] = []
        settings = Settings(scratch=str(tmp_path))
        supervisor = Supervisor(settings, lambda _: env, tmp_path / "run.log", records.append)
        fields = {"silence_s": 10, "case_s": 1.5} | fields
        supervisor.run(Worker("fakes", "gpu_fake_cases", 1, **fields), time_s)
        ends = [record for record in records if record["kind"] == "end"]
        assert len(ends) == len({record["case"] for record in ends})
        return {record["case"]: record for record in ends}

    return run_cases


def statuses(outcomes: Outcomes) -> list[str]:
    return [outcomes[name]["status"] for name in sorted(outcomes)]


def test_a_case_that_raises_costs_that_case(run: Run) -> None:
    found = run("fine wrong raising skipping unsupported fine")
    assert statuses(found) == ["ok", "wrong", "failed", "skipped", "unsupported", "ok"]
    assert found["0 fine"]["values"] == {"answer": 42}
    assert found["1 wrong"]["values"]["error"] == float("inf")
    assert found["2 raising"]["error"] == "ZeroDivisionError: by zero"
    assert found["0 fine"]["part"] == "fakes" and found["0 fine"]["module"] == "gpu_fake_cases"


def test_a_hang_a_crash_and_a_broken_context_cost_one_case_each(run: Run, tmp_path: Path) -> None:
    found = run("hanging fine crashing breaking fine")
    assert statuses(found) == ["failed", "ok", "failed", "failed", "ok"]
    assert "it hung, nothing heard for 2 s" in found["0 hanging"]["error"]
    assert "code 139; its last words: " in found["2 crashing"]["error"]
    assert "segmentation fault, they say" in found["2 crashing"]["error"]
    assert "segmentation fault, they say" in (tmp_path / "run.log").read_text()


def test_a_crash_while_compiling_ahead_is_pinned_to_its_case(run: Run) -> None:
    found = run("fine compiler fine")
    assert statuses(found) == ["ok", "failed", "ok"]


def test_the_time_is_kept_and_what_did_not_run_says_so(run: Run) -> None:
    started = time.monotonic()
    found = run("slow slow slow slow slow slow slow slow slow", time_s=2.5)
    assert time.monotonic() - started < 8
    assert statuses(found)[0] == "ok" and statuses(found)[-1] == "skipped"
    assert "out of time" in found["8 slow"]["error"]


def test_a_case_in_flight_when_the_time_ends_is_no_failure(run: Run) -> None:
    found = run("fine hanging fine", time_s=2.0, case_s=30)
    assert statuses(found) == ["ok", "skipped", "skipped"]
    assert found["1 hanging"]["error"] == "not finished: out of time"


def test_nothing_that_a_worker_started_outlives_it(run: Run) -> None:
    child = run("leaving")["0 leaving"]["values"]["child"]
    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child of a worker lives on"
        time.sleep(0.05)


def test_processes_share_the_cases(run: Run) -> None:
    assert statuses(run("fine fine crashing fine fine", num_processes=2)) == [
        "ok", "ok", "failed", "ok", "ok",
    ]  # fmt: skip


def test_a_module_whose_packages_are_missing_is_skipped(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    env = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    settings = Settings(scratch=str(tmp_path))
    supervisor = Supervisor(settings, lambda _: env, tmp_path / "run.log", records.append)
    supervisor.run(Worker("fakes", "no_such_module", 1), 20)
    assert [record["status"] for record in records] == ["skipped"]
    assert records[0]["error"].startswith("No module named 'no_such_module'")


def test_a_worker_that_never_starts_is_one_failure(run: Run) -> None:
    found = run("no-such-kind")
    assert statuses(found) == ["failed"] and "KeyError" in found["start"]["error"]
