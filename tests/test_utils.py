"""The tutorials' helpers, on processes that are no servers and servers that are no models."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from jaxserve import utils
from jaxserve.test import doc_patch, patch, test_utils


class Healthy(BaseHTTPRequestHandler):
    """Answers 503 twice, then 200."""

    num_asked = 0

    def do_GET(self) -> None:
        Healthy.num_asked += 1
        self.send_response(200 if Healthy.num_asked > 2 else 503)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Quietly."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that would have been started."""
    commands: list[list[str]] = []
    monkeypatch.setattr(utils, "_start", lambda words, output=None: commands.append(words))
    return commands


def test_the_command_gets_a_port_and_this_interpreter(started: list[list[str]]) -> None:
    _, port = utils.launch_server_cmd(
        """
python3 -m jaxserve.launch_server --model-path qwen/qwen2.5-0.5b-instruct \\
 --host 0.0.0.0 --port 1 --log-level warning
"""
    )
    assert 1024 <= port < 65536
    assert started == [
        [
            sys.executable, "-m", "jaxserve.launch_server", "--model-path",
            "qwen/qwen2.5-0.5b-instruct", "--host", "0.0.0.0", "--log-level", "warning", "--port",
            str(port),
        ]
    ]  # fmt: skip


def test_a_given_host_and_port_are_used(started: list[list[str]]) -> None:
    _, port = utils.launch_server_cmd("python -m jaxserve.launch --port=9", host="::1", port=77)
    assert port == 77
    assert started[0][2:] == ["jaxserve.launch", "--host", "::1", "--port", "77"]


def test_other_commands_are_left_alone(started: list[list[str]]) -> None:
    utils.execute_shell_command("python3 -m http.server 'a b'")
    assert started == [["python3", "-m", "http.server", "a b"]]
    with pytest.raises(ValueError, match="the command is empty; give one such as"):
        utils.execute_shell_command(" \\\n ")


def test_wait_until_it_serves() -> None:
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        utils.wait_for_server(f"http://127.0.0.1:{server.server_port}/", timeout=10)
        server.shutdown()
        thread.join()
    assert Healthy.num_asked == 3


def test_wait_gives_up() -> None:
    with pytest.raises(TimeoutError, match="did not serve within 0.1 s"):
        utils.wait_for_server("http://127.0.0.1:9", timeout=0.1)


def test_wait_notices_a_server_that_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="the server exited with status 3 before it served"):
        utils.wait_for_server("http://127.0.0.1:9", process=process)


def test_terminate_ends_a_process_and_its_children() -> None:
    code = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen(['sleep', '60'], stdout=sys.stdout); "
        "print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    with process:
        assert process.stdout.readline() == b"up\n"
        utils.terminate_process(process)
        assert process.returncode == -15
        assert process.stdout.read() == b""  # returns only once the child's end is closed too
        utils.terminate_process(process)


def test_a_process_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "STOP_TIMEOUT_S", 0.1)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    with process:
        process.stdout.readline()
        utils.terminate_process(process)
        assert process.returncode == -9


def test_print_highlight(capsys: pytest.CaptureFixture[str]) -> None:
    utils.print_highlight({"a": 1})
    assert capsys.readouterr().out == "{'a': 1}\n"


def test_the_tutorials_import_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doc_patch.launch_server_cmd is patch.launch_server_cmd is utils.launch_server_cmd
    monkeypatch.setenv("CI", "true")
    assert test_utils.is_in_ci()
    monkeypatch.delenv("CI")
    assert not test_utils.is_in_ci()
