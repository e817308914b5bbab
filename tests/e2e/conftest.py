"""Two servers for the whole session: the demo model, and a tiny random one for the rough tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.live_server import SMALL, LiveServer, launched


@pytest.fixture(scope="session")
def demo_server(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The embedded default model: ``demo_model`` has only made sure that it is fetched."""
    log_path = tmp_path_factory.mktemp("demo-server") / "log"
    with launched(log_path, f"{SMALL} --max-total-tokens 4096") as server:
        yield server


@pytest.fixture(scope="session")
def tiny_server(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    log_path = tmp_path_factory.mktemp("tiny-server") / "log"
    flags = f"--model-path {tiny_checkpoint} {SMALL} --max-total-tokens 256 --max-body-bytes 200000"
    with launched(log_path, flags) as server:
        yield server
