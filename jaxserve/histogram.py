"""A Prometheus histogram whose ``observe`` costs a bisection: it is called for every token."""

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Series:
    """The counts of one set of labels.  ``observe`` may be called from any thread."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(sorted(bounds))
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count ``value`` in the first bucket whose bound is not below it."""
        index = bisect_left(self.bounds, value)
        with self._lock:
            self._counts[index] += 1
            self._sum += value

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """(bound, cumulative count) of every bucket and of +Inf, and the sum of all values."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(counts)), strict=True)), total


class Histogram(Collector):
    """One metric: a ``Series`` for each value of ``label``, or a single one without a label.

    Args:
        values: of ``label``, that have a series from the start.
    """

    def __init__(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        labels: Mapping[str, str],
        label: str = "",
        values: Sequence[str] = ("",),
    ) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._label = label
        self._bounds = bounds
        self.series = {value: Series(bounds) for value in values}

    def of(self, value: str) -> Series:
        """The series of a value, new or not.  May be called from any thread."""
        return self.series.get(value) or self.series.setdefault(value, Series(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """The one family."""
        names = (*self._labels, self._label) if self._label else tuple(self._labels)
        family = HistogramMetricFamily(self._name, self._text, labels=names)
        for value, series in list(self.series.items()):
            buckets, total = series.read()
            own = tuple(self._labels.values())
            family.add_metric((*own, value) if self._label else own, buckets, total)
        yield family
