"""How long a call takes on the device.

Many launches are queued and waited for once, so that what is measured is the device's time per
call: the host's share overlaps as long as it is the smaller one, and for small kernels many calls
are one program (jax) or one CUDA graph (PyTorch).  The same on every side of a comparison.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WARM_UPS = 3
SAMPLE_S = 0.02  # a sample is at least so long, so that waiting for its end costs nothing
MAX_LAUNCHES = 200


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call, one number per sample."""

    samples_s: tuple[float, ...]
    launches_per_sample: int
    calls_per_launch: int

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples_s)

    def values(self) -> dict[str, Any]:
        return {
            "median_s": self.median_s,
            "min_s": min(self.samples_s),
            "samples_s": [round(sample, 9) for sample in self.samples_s],
            "launches_per_sample": self.launches_per_sample,
            "calls_per_launch": self.calls_per_launch,
        }


def measure(
    launch: Callable[[], Any],
    wait: Callable[[Any], Any],
    *,
    calls_per_launch: int = 1,
    num_samples: int = 9,
    budget_s: float,
    sample_s: float = SAMPLE_S,
) -> Timing:
    """Time ``launch``, which queues ``calls_per_launch`` calls; ``wait`` ends what it returns."""
    for _ in range(WARM_UPS):
        wait(launch())
    started = time.perf_counter()
    wait(launch())
    once = max(time.perf_counter() - started, 1e-7)
    num_launches = max(1, min(MAX_LAUNCHES, math.ceil(sample_s / once)))
    samples: list[float] = []
    begun = time.perf_counter()
    while len(samples) < num_samples and (not samples or time.perf_counter() - begun < budget_s):
        started = time.perf_counter()
        last = None
        for _ in range(num_launches):
            last = launch()
        wait(last)
        samples.append((time.perf_counter() - started) / (num_launches * calls_per_launch))
    return Timing(tuple(samples), num_launches, calls_per_launch)
