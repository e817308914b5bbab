"""Start, await and stop a server from a script or a notebook, as the tutorials do."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import IO

PACKAGE = "jaxserve"
STOP_TIMEOUT_S = 40.0  # longer than --drain-timeout-s by default
POLL_S = 0.2


def launch_server_cmd(
    command: str,
    host: str = "127.0.0.1",
    port: int | None = None,
    output: IO[bytes] | None = None,
) -> tuple[subprocess.Popen[bytes], int]:
    """Start ``command`` on a port of its own.

    Args:
        command: ``python3 -m jaxserve.launch_server --model-path …``; a --port in it is replaced.
        host: address to listen on, unless the command has a --host.
        port: the port; None takes a free one.
        output: an open file for what it prints; None prints it here.

    Returns:
        The process and its port.  Wait for it with ``wait_for_server``.
    """
    port = _free_port() if port is None else port
    words = _without_option(_words(command), "--port")
    has_host = any(word == "--host" or word.startswith("--host=") for word in words)
    words += [] if has_host else ["--host", host]
    return _start([*words, "--port", str(port)], output), port


def execute_shell_command(command: str) -> subprocess.Popen[bytes]:
    """Start ``command``, which may span lines, in a process group of its own.

    ``python`` and ``python3`` mean this interpreter where they run a module of ours, so that a
    notebook in a virtual environment starts the server of that environment.
    """
    return _start(_words(command))


def wait_for_server(
    base_url: str,
    timeout: float | None = 600.0,
    process: subprocess.Popen[bytes] | None = None,
) -> None:
    """Return once ``base_url`` serves requests.

    Args:
        base_url: ``http://localhost:30000``.
        timeout: seconds; None waits for ever.
        process: the server, if it is ours: its end is then noticed at once.

    Raises:
        TimeoutError: it does not serve in time.
        RuntimeError: ``process`` has ended.
    """
    start_s = time.monotonic()
    while not _is_healthy(base_url):
        if process is not None and process.poll() is not None:
            raise RuntimeError(
                f"the server exited with status {process.returncode} before it served {base_url}; "
                "its own output says why"
            )
        if timeout is not None and time.monotonic() - start_s > timeout:
            raise TimeoutError(f"{base_url} did not serve within {timeout} s")
        time.sleep(POLL_S)


def terminate_process(process: subprocess.Popen[bytes]) -> None:
    """Stop a process started here, and its children: politely first, then for good."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def print_highlight(content: object) -> None:
    """Print, in bold on a terminal."""
    is_terminal = sys.stdout.isatty()
    print(f"\033[1m{content}\033[0m" if is_terminal else content)


def _words(command: str) -> list[str]:
    words = shlex.split(command.replace("\\\n", " "))
    if not words:
        raise ValueError("the command is empty; give one such as python3 -m jaxserve.launch_server")
    runs_ours = any(
        word == "-m" and following.split(".")[0] == PACKAGE
        for word, following in zip(words, words[1:], strict=False)
    )
    if words[0] in ("python", "python3") and runs_ours:
        words[0] = sys.executable
    return words


def _start(words: list[str], output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    stderr = None if output is None else subprocess.STDOUT
    return subprocess.Popen(words, stdout=output, stderr=stderr, start_new_session=True)


def _without_option(words: list[str], name: str) -> list[str]:
    kept: list[str] = []
    skips = False
    for word in words:
        if skips or word == name:
            skips = word == name
        elif not word.startswith(f"{name}="):
            kept.append(word)
    return kept


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_healthy(base_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base_url.rstrip('/')}/health", timeout=5.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):  # refused, 503 while starting, or reset
        return False
