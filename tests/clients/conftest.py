"""The demo model for clients that read what it says, two tiny models for a router."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from clients.client_env import client_python
from e2e.live_server import LiveServer, launched


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> LiveServer:
    """The demo model; skips before anything starts where there are no clients."""
    client_python()
    return request.getfixturevalue("demo_server")


@pytest.fixture(scope="session")
def workers(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveServer, ...]]:
    """Two servers of the same tiny model."""
    client_python()
    folder = tmp_path_factory.mktemp("workers")
    flags = f"--model-path {tiny_checkpoint} --max-running-requests 8 --max-total-tokens 4096"
    with ExitStack() as stack:
        yield tuple(stack.enter_context(launched(folder / f"log-{i}", flags)) for i in range(2))
