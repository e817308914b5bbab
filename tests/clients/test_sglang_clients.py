"""SGLang's own client programs against a server: its frontend language and its load generator."""

import json
from pathlib import Path

import pytest
from clients.client_env import ROOT, run_client, run_program
from e2e.live_server import LiveServer

BENCH = ROOT / ".venv-clients" / "bench" / "sglang" / "bench_serving.py"


def test_frontend_language(server: LiveServer) -> None:
    assert "frontend ok" in run_program("sglang_frontend", server.url)


@pytest.mark.parametrize("backend", ["sglang", "sglang-oai", "sglang-oai-chat"])
def test_load_generator(
    backend: str, workers: tuple[LiveServer, ...], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bench.jsonl"
    run_client(
        str(BENCH), "--backend", backend, "--base-url", workers[0].url,
        "--model", str(tiny_checkpoint), "--tokenizer", str(tiny_checkpoint),
        "--dataset-name", "random-ids", "--num-prompts", "24", "--random-input-len", "64",
        "--random-output-len", "16", "--random-range-ratio", "1.0", "--max-concurrency", "8",
        "--output-file", str(output), "--flush-cache",
    )  # fmt: skip
    figures = json.loads(output.read_text().splitlines()[-1])
    assert figures["completed"] == 24
    assert figures["total_output_tokens"] == 24 * 16
    assert figures["output_throughput"] > 0 and figures["mean_ttft_ms"] > 0
