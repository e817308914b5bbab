"""Timing of PyTorch calls: on a GPU as replays of a CUDA graph of several calls."""

from collections.abc import Callable
from typing import Any

import torch

from gpu.timing import Timing, measure

WARM_UPS = 3


def is_healthy() -> bool:
    """Whether the device still computes."""
    try:
        return int(torch.arange(8, device=device_name()).sum()) == 28
    except RuntimeError:
        return False


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait(_: Any = None) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_calls(call: Callable[[int], torch.Tensor], num_calls: int, budget_s: float) -> Timing:
    """Seconds per call of ``call(i)`` for i in range(num_calls), one after another."""

    def all_calls() -> None:
        for index in range(num_calls):
            call(index)

    launch = _as_graph(all_calls) if torch.cuda.is_available() else all_calls
    return measure(launch, wait, calls_per_launch=num_calls, budget_s=budget_s)


def _as_graph(calls: Callable[[], None]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a capture must find handles and workspaces made
        for _ in range(WARM_UPS):
            calls()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    return graph.replay
