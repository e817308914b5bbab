"""A server as a user starts it: a process of its own, its output in a file."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from jaxserve.utils import launch_server_cmd, terminate_process, wait_for_server

START_TIMEOUT_S = 300.0
# Few buckets and a small pool: quick to start on two cores, and easy to fill.
SMALL = "--max-running-requests 8 --context-length 512"


@dataclass(frozen=True)
class LiveServer:
    url: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=60)

    def post(self, path: str, body: object) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=120)

    def generate(self, **body: object) -> dict:
        response = self.post("/generate", body)
        assert response.status_code == 200, response.text
        return response.json()

    def state(self) -> dict:
        """What the engine does now."""
        return self.get("/server_info").json()["internal_states"][0]

    def wait_until(self, is_so: Callable[[dict], bool], timeout_s: float = 20.0) -> dict:
        """The engine's state, once ``is_so`` of it."""
        deadline_s = time.monotonic() + timeout_s
        while not is_so(state := self.state()):
            assert time.monotonic() < deadline_s, json.dumps(state)
            time.sleep(0.05)
        return state


@contextmanager
def launched(
    log_path: Path, flags: str, program: str = "python3 -m jaxserve.launch_server"
) -> Iterator[LiveServer]:
    """A server with ``flags``, serving; stopped at the end."""
    with log_path.open("wb") as log:
        process, port = launch_server_cmd(f"{program} {flags}", output=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_server(url, START_TIMEOUT_S, process)
        yield LiveServer(url, process, log_path)
    finally:
        terminate_process(process)


def failed_start(flags: list[str]) -> tuple[int, str]:
    """Exit status and the last line of a server that cannot start."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxserve.launch", "--port", "0", *flags],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.splitlines()[-1]
