"""lm-eval's ``local-completions`` on two small tasks: by likelihood, and by what is generated."""

import json
from pathlib import Path

from clients.client_env import ROOT, run_client
from e2e.live_server import LiveServer
from make_tiny_checkpoint import make_tiny_llama

TASKS = Path(__file__).parent / "tasks"
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Japan": "Tokyo", "Egypt": "Cairo",
    "Spain": "Madrid", "Russia": "Moscow", "China": "Beijing",
}  # fmt: skip


def test_capitals(server: LiveServer, tmp_path: Path) -> None:
    data_file = tmp_path / "capitals.jsonl"
    choices = [f" {city}" for city in CAPITALS.values()]
    rows = [
        {"country": country, "choices": choices, "label": label}
        for label, country in enumerate(CAPITALS)
    ]
    data_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for task in TASKS.glob("*.yaml"):
        text = task.read_text().replace("DATA_FILE", str(data_file))
        (tmp_path / task.name).write_text(text)
    # only for its tokenizer, which is the served model's
    tokenizer = make_tiny_llama(tmp_path / "tokenizer", tokenizer="demo", vocab_size=49152)
    lm_eval = str(ROOT / ".venv-clients" / "bin" / "lm_eval")
    run_client(
        lm_eval, "--model", "local-completions", "--model_args",
        f"model=default,base_url={server.url}/v1/completions,num_concurrent=4,max_retries=1,"
        f"tokenizer_backend=huggingface,tokenizer={tokenizer},add_bos_token=False",
        "--tasks", "capitals,capitals_said", "--include_path", str(tmp_path),
        "--batch_size", "1", "--output_path", str(tmp_path / "out"),
    )  # fmt: skip
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    # Both say the same: what is likeliest is what is said.
    assert results["capitals"]["acc,none"] >= 0.75, results
    assert results["capitals_said"]["exact_match,none"] >= 0.5, results
