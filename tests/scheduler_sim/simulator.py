"""The real Scheduler under random traffic on a fake device, checked against undisturbed output.

``PYTHONPATH=.:tests python -m scheduler_sim.simulator --requests 20000`` runs it at length.
"""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from scheduler_sim.fake_device import FakeDevice, Script, undisturbed

from jaxserve.request import Request, SamplingParams, TokenOutput
from jaxserve.scheduler import BatchPlan, Buckets, Scheduler, SchedulerConfig, make_buckets

EOS = 3
MAX_PROMPT = 48
MAX_NEW = 14
REQUESTS_PER_WORLD = 50


class SimulationError(AssertionError):
    """The scheduler broke a law."""


@dataclass(frozen=True)
class World:
    """One random setting: pool, limits, policy, and the kind of traffic."""

    seed: int
    page_size: int
    num_pages: int
    config: SchedulerConfig
    vocab_size: int
    abort_rate: float
    arrival_rate: float
    is_overlapping: bool
    script_rate: float = 0.0  # share of the requests that have tokens appended
    pause_rate: float = 0.0
    num_namespaces: int = 1
    num_requests: int = REQUESTS_PER_WORLD


@dataclass
class Stream:
    """What one request should give and has given."""

    request: Request
    script: Script
    expected: list[int]
    finish: str
    output: list[int] = field(default_factory=list)
    is_done: bool = False
    num_retractions: int = 0


@dataclass
class Report:
    """Counts over worlds, so that a test can tell that the traffic had some of everything."""

    num_requests: int = 0
    num_turns: int = 0
    num_retractions: int = 0
    num_cached_tokens: int = 0
    num_aborts: int = 0
    num_stops: int = 0
    num_appended: int = 0
    num_withdrawn: int = 0
    num_pauses: int = 0

    def add(self, other: "Report") -> None:
        """Sum, field by field."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def make_world(seed: int) -> World:
    """Draw a setting.  Most pools are barely larger than the largest request."""
    rng = random.Random(seed)
    page_size = rng.choice([1, 2, 4, 4, 8])
    largest = -(-(MAX_PROMPT + MAX_NEW) // page_size)
    slack = rng.choice([0, 1, 2, 3, largest, 4 * largest])
    max_running = rng.choice([1, 2, 3, 5, 8, 16])
    config = SchedulerConfig(
        max_running_requests=max_running,
        chunked_prefill_size=rng.choice([1, 4, 7, 16, 16, 64, 200]),
        prefill_max_requests=rng.randint(1, max_running),
        page_size=page_size,
        max_extends_per_decode=rng.choice([1, 2, 8]),
        schedule_policy=rng.choice(["fcfs", "fcfs", "lpm", "priority"]),
        disable_radix_cache=rng.random() < 0.1,
    )
    return World(
        seed=seed,
        page_size=page_size,
        num_pages=1 + largest + slack,
        config=config,
        vocab_size=rng.choice([16, 64, 1000]),
        abort_rate=rng.choice([0.0, 0.0, 0.02, 0.1]),
        arrival_rate=rng.choice([0.3, 1.0, 5.0]),
        is_overlapping=rng.random() < 0.85,
        script_rate=rng.choice([0.0, 0.0, 0.3, 1.0]),
        pause_rate=rng.choice([0.0, 0.0, 0.02, 0.1]),
        num_namespaces=rng.choice([1, 1, 3]),
    )


def make_scheduler(world: World, scheduler_class: type[Scheduler]) -> tuple[Scheduler, Buckets]:
    """The scheduler under test and its buckets."""
    widest = -(-(MAX_PROMPT + MAX_NEW) // world.page_size)
    buckets = make_buckets(
        chunked_prefill_size=world.config.chunked_prefill_size,
        max_running_requests=world.config.max_running_requests,
        prefill_max_requests=world.config.prefill_max_requests,
        max_pages_per_row=widest,
        pages_per_row=(widest // 2,) if widest > 1 else (),
        extend_tokens=(8, 32),
    )
    scheduler = scheduler_class(
        world.config, num_pages=world.num_pages, buckets=buckets, eos_token_ids=(EOS,)
    )
    return scheduler, buckets


class Traffic:
    """Requests that share prefixes, continue finished ones, repeat them, or come as copies."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = random.Random(world.seed + 1)
        self._systems = [self._tokens(self._rng.randint(1, 24)) for _ in range(3)]
        self._history: list[Stream] = []
        self._num_made = 0

    def finished(self, stream: Stream) -> None:
        """Make a stream available for continuations and repeats."""
        self._history.append(stream)

    def script(self) -> Script:
        """Appended tokens at some output lengths: at the start, between, many at once."""
        rng = self._rng
        if rng.random() >= self._world.script_rate:
            return {}
        starts = rng.sample(range(MAX_NEW), rng.randint(1, 4))
        return {start: self._tokens(rng.choice([1, 1, 2, 5, 9])) for start in starts}

    def draw(self) -> list[Request]:
        """One arrival: usually one request, sometimes n copies with different seeds."""
        copies = self._rng.choice([1, 1, 1, 1, 3])
        prompt, sampling = self._prompt(), self._sampling()
        requests = []
        namespace = "x" * self._rng.randrange(self._world.num_namespaces)
        for _ in range(copies):
            rid = f"r{self._num_made}"
            self._num_made += 1
            requests.append(
                Request(
                    rid=rid,
                    prompt_ids=prompt,
                    sampling=replace(sampling, seed=self._rng.randint(-(2**63), 2**63 - 1)),
                    arrival_s=0.0,
                    priority=self._rng.randint(0, 2),
                    cache_namespace=namespace,
                )
            )
        return requests

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._rng.randrange(self._world.vocab_size) for _ in range(count))

    def _prompt(self) -> tuple[int, ...]:
        kind = self._rng.random()
        if self._history and kind < 0.35:
            stream = self._rng.choice(self._history[-12:])
            tail = self._tokens(self._rng.choice([0, 1, 2, 6]))
            prompt = stream.request.prompt_ids + tuple(stream.output) + tail
            if len(prompt) <= MAX_PROMPT:
                return prompt
        if self._history and kind < 0.5:
            return self._rng.choice(self._history[-12:]).request.prompt_ids
        if kind < 0.8:
            tail = self._tokens(self._rng.randint(0, MAX_PROMPT - 24))
            return self._rng.choice(self._systems) + tail
        return self._tokens(self._rng.choice([1, 2, 9, MAX_PROMPT]))

    def _sampling(self) -> SamplingParams:
        rng = self._rng
        maximum = rng.choice([0, 1, 2, 5, MAX_NEW, MAX_NEW])
        return SamplingParams(
            max_new_tokens=maximum,
            min_new_tokens=rng.choice([0, 0, 0, maximum // 2]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.0, 1.0]),
            stop_token_ids=rng.choice([(), (), (5, 6)]),
            ignore_eos=rng.random() < 0.2,
        )


class Simulation:
    """One world, turn by turn, as the engine's loop does it."""

    def __init__(self, world: World, scheduler_class: type[Scheduler] = Scheduler) -> None:
        self.world = world
        self.scheduler, buckets = make_scheduler(world, scheduler_class)
        self.device = FakeDevice(
            num_pages=world.num_pages,
            page_size=world.page_size,
            num_slots=world.config.max_running_requests + 1,
            vocab_size=world.vocab_size,
            buckets=buckets.all(),
        )
        self.traffic = Traffic(world)
        self.streams: dict[str, Stream] = {}
        self.report = Report()
        self._rng = random.Random(world.seed + 2)
        self._bound = 100
        self._pending: BatchPlan | None = None
        self._pause_turns = 0

    def run(self) -> Report:
        """Serve all the traffic, then check that nothing is left behind."""
        while (
            len(self.streams) < self.world.num_requests or self.scheduler.has_work or self._pending
        ):
            self._arrivals()
            self._aborts()
            self._pauses()
            if not self.world.is_overlapping:
                self._settle()
            plan = None if self._pause_turns else self.scheduler.schedule()
            deferred = [] if plan is None else self._scripted_rows(plan)
            if plan is not None:
                self.device.launch(plan, deferred)
            self.scheduler.check()
            self._watch(plan is None and self._pending is None)
            self._settle()
            self._pending = plan and self._sampled(plan, deferred)
        self._check_end()
        return self.report

    def _scripted_rows(self, plan: BatchPlan) -> list[int]:
        """Rows that may turn out to be given their tokens: they are sampled last."""
        samples = plan.inputs.sampling.samples
        rows = enumerate(plan.rows)
        return [row for row, seq in rows if samples[row] and self.streams[seq.rid].script]

    def _sampled(self, plan: BatchPlan, deferred: list[int]) -> BatchPlan:
        """Sample those deferred rows that were not given tokens since; the plan without others."""
        awaited = plan.awaited(deferred)
        self.device.sample(awaited)
        left = [row for row in deferred if row not in awaited]
        self.report.num_withdrawn += len(left)
        return plan.without(left)

    def _settle(self) -> None:
        """Take in the step in flight."""
        if self._pending is not None:
            outputs = self.scheduler.process(self._pending, self.device.fetch())
            self._pending = None
            self._receive(outputs)
            self.scheduler.check()

    def _pauses(self) -> None:
        if self._pause_turns:
            self._pause_turns -= 1
            return
        if self._rng.random() >= self.world.pause_rate:
            return
        self._settle()
        self._pause_turns = self._rng.randint(1, 3)
        self._bound += 2 * self._pause_turns
        self.report.num_pauses += 1
        mode = self._rng.choice(["in_place", "retract", "retract", "abort"])
        if mode == "retract":
            num_running = self.scheduler.num_running
            self._require(self.scheduler.retract_all() == num_running, "wrong count")
            stats = self.scheduler.stats()
            self._require(stats.num_private_pages == 0, "retracted, and pages are held")
            self._bound += 4 * MAX_NEW * num_running
        elif mode == "abort":
            for stream in list(self.streams.values()):
                self._abort(stream)

    def _arrivals(self) -> None:
        count = int(self.world.arrival_rate)
        count += self._rng.random() < self.world.arrival_rate - count
        for _ in range(count):
            if len(self.streams) >= self.world.num_requests:
                return
            for request in self.traffic.draw():
                script = self.traffic.script()
                expected, finish = undisturbed(request, self.world.vocab_size, EOS, script)
                stream = Stream(request, script, expected, finish)
                self.streams[request.rid] = stream
                self.scheduler.add(request)
                self._append(stream)
                # Every token may take a turn of its own, several times over when retracted.
                self._bound += 8 * (len(request.prompt_ids) + MAX_NEW)

    def _aborts(self) -> None:
        if self._rng.random() >= self.world.abort_rate:
            return
        self._require(self.scheduler.abort("unknown") is None, "an abort of nothing gave an output")
        if self.streams:
            self._abort(self._rng.choice([*self.streams.values()]))

    def _abort(self, stream: Stream) -> None:
        output = self.scheduler.abort(stream.request.rid)
        if stream.is_done:
            self._require(output is None, "an abort of a finished request gave an output")
            return
        self._require(output is not None and output.finish is not None, "an abort was lost")
        stream.is_done = True
        stream.finish = "abort"
        self.report.num_aborts += 1

    def _receive(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            stream = self.streams[output.rid]
            self._require(not stream.is_done, f"{output.rid} had an output after its end")
            stream.output += output.token_ids
            count = len(stream.output)
            self._require(stream.output == stream.expected[:count], f"{output.rid}: wrong tokens")
            num_known = len(stream.request.prompt_ids) + len(stream.script.get(0, ()))
            self._require(output.num_cached < num_known, "all was cached")
            if output.finish is not None:
                stream.is_done = True
                self._require(stream.output == stream.expected, f"{output.rid} ended early")
                self._require(output.finish.type == stream.finish, f"{output.rid}: wrong finish")
                self.report.num_stops += stream.finish == "stop"
                self.traffic.finished(stream)
            else:
                self._append(stream)

    def _append(self, stream: Stream) -> None:
        """Give a stream the tokens that its script has for its length."""
        token_ids = stream.script.get(len(stream.output), ())
        if token_ids and stream.request.sampling.max_new_tokens:
            output = self.scheduler.append(stream.request.rid, token_ids)
            self._require(output.token_ids != (), "appended tokens were lost")
            self.report.num_appended += len(output.token_ids)
            self._receive([output])

    def _watch(self, is_idle: bool) -> None:
        self.report.num_turns += 1
        self._require(self.report.num_turns <= self._bound, "requests do not finish")
        is_stuck = is_idle and self.scheduler.has_work and not self._pause_turns
        self._require(not is_stuck, "nothing runs though requests wait")

    def _check_end(self) -> None:
        self._require(all(stream.is_done for stream in self.streams.values()), "unfinished")
        self._require(self.scheduler.flush_cache(), "an idle scheduler refused to flush")
        self.scheduler.check()
        stats = self.scheduler.stats()
        self._require(stats.num_free_pages == stats.num_pages - 1, "pages leaked")
        self.report.num_requests = len(self.streams)
        self.report.num_retractions = stats.num_retractions
        self.report.num_cached_tokens = stats.num_cached_tokens

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise SimulationError(f"{message} (turn {self.report.num_turns}, {self.world})")


def run_worlds(
    num_requests: int, first_seed: int = 0, progress: Callable[[Report], None] | None = None
) -> Report:
    """Simulate worlds until that many requests are served."""
    total = Report()
    seed = first_seed
    while total.num_requests < num_requests:
        total.add(Simulation(make_world(seed)).run())
        seed += 1
        if progress is not None:
            progress(total)
    return total


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first world")
    args = parser.parse_args()
    start_s = time.perf_counter()
    report = run_worlds(args.requests, args.seed)
    print(f"{report} in {time.perf_counter() - start_s:.1f} s")


if __name__ == "__main__":
    main()
