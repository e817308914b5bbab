"""What there is to run, in order of worth, and what every process of a run is told.

No jax here: the process that supervises the others must not hold a GPU.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Self

DEFAULT_BUDGET_S = 455.0


@dataclass(frozen=True, slots=True)
class Settings:
    """One run's settings; ``deadline``, of ``time.time``, is the reading process's own."""

    is_dry_run: bool = False
    seed: int = 0
    scratch: str = ""  # folder for compiled programs and small checkpoints
    output: str = ""  # folder of the results
    deadline: float = math.inf
    shard: int = 0  # of num_shards processes that share a module's cases
    num_shards: int = 1

    @property
    def time_left_s(self) -> float:
        return self.deadline - time.time()

    @property
    def implementation(self) -> str:
        """What is checked and timed."""
        return "xla" if self.is_dry_run else "pallas"

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Self:
        return cls(**json.loads(text))

    @property
    def sample_budget_s(self) -> float:
        """Time for the samples of one timing."""
        return 0.05 if self.is_dry_run else 1.0

    def of_process(self, deadline: float, shard: int, num_shards: int) -> "Settings":
        """The same for a process that must end by ``deadline`` and does one share of the cases."""
        return replace(self, deadline=deadline, shard=shard, num_shards=num_shards)


@dataclass(frozen=True, slots=True)
class Worker:
    """One process: a module with ``cases`` and ``is_healthy``.

    Attributes:
        part: what ``--parts`` calls it.
        module: its full name.
        share: of the time, against the others'; about the seconds it needs.
        silence_s: how long the process may say nothing before it counts as hung.
        case_s: the same while a case runs whose programs are compiled already.
        memory: share of the GPU's memory that jax takes; 0 = as it needs it.
        window: programs compiled side by side before their cases run.
        num_processes: that share the cases, at the same time; 1 where anything is timed.
        is_served: runs with the XLA flags of a server; without, a flag that XLA refuses still
            leaves the facts.
    """

    part: str
    module: str
    share: float
    silence_s: float = 90.0
    case_s: float = 20.0
    memory: float = 0.75
    window: int = 8
    num_processes: int = 1
    is_served: bool = True

    @property
    def name(self) -> str:
        return self.module.rpartition(".")[2]


WORKERS = (
    Worker("facts", "gpu.facts_jax", 25, memory=0.5, is_served=False),
    Worker("facts", "gpu.facts_torch", 15, memory=0, is_served=False),
    # A small pool, because all of it is filled with NaN before each run.  Several processes,
    # because tracing holds the GIL for about a second a case.
    Worker("correctness", "gpu.check_kernels", 95, memory=0.05, num_processes=4),
    Worker("sanitizer", "gpu.check_sanitizer", 55, case_s=120, memory=0.05, is_served=False),
    Worker("steps", "gpu.check_steps", 55, case_s=90),
    Worker("kernels", "gpu.time_kernels", 65),
    Worker("kernels", "gpu.time_torch", 20, memory=0),
    Worker("model", "gpu.time_model", 70, case_s=180, memory=0.9, window=1),
    Worker("offline", "gpu.time_offline", 75, case_s=240, memory=0.9, window=1),
)
PARTS = tuple(dict.fromkeys(worker.part for worker in WORKERS))
