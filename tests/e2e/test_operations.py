"""What an operator asks of a live server: metrics, loads, profiles, logs, its own documents."""

import re
from itertools import chain
from pathlib import Path

from e2e.live_server import LiveServer
from sglang_metrics import KINDS, emitted

from jaxserve.stats_metrics import NOT_EMITTED

ROOT = Path(__file__).parent.parent.parent

GREEDY = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
OWN_LABELS = "mode|category|component|phase|is_streaming|stage|name"


def samples(server: LiveServer) -> dict[tuple[str, str], float]:
    """(name, its one label of interest) → value."""
    found: dict[tuple[str, str], float] = {}
    line = re.compile(r"^(\S+?)\{(.*)\} (\S+)$", re.MULTILINE)
    for name, labels, value in line.findall(server.get("/metrics").text):
        own = re.findall(rf'\b(?:{OWN_LABELS})="([^"]*)"', labels)
        found[name, own[0] if own else ""] = float(value)
    return found


def test_what_is_measured_is_positive(tiny_server: LiveServer) -> None:
    before = samples(tiny_server)
    tiny_server.generate(text="Hello there", sampling_params=GREEDY)
    after = samples(tiny_server)
    for name, label in (
        ("sglang:realtime_tokens_total", "prefill_compute"),
        ("sglang:realtime_tokens_total", "decode"),
        ("sglang:forward_execution_seconds_total", "extend"),
        ("sglang:forward_execution_seconds_total", "decode"),
        ("sglang:process_cpu_seconds_total", "tokenizer"),
        ("sglang:scheduler_process_cpu_seconds_total", ""),
        ("sglang:scheduler_stage_seconds_total", "get_next_batch_to_run"),
        ("sglang:scheduler_stage_seconds_total", "process_batch_result"),
        ("sglang:queue_time_seconds_count", ""),
        ("sglang:time_to_first_token_seconds_count", "false"),
        ("sglang:per_stage_req_latency_seconds_sum", "request_process"),
        ("sglang:per_stage_req_latency_seconds_sum", "prefill_forward"),
        ("sglang:func_latency_seconds_sum", "generate"),
        ("jaxserve:bucket_slots_total", "extend"),
        ("jaxserve:bucket_padding_slots_total", "extend"),
    ):
        assert after[name, label] > before.get((name, label), 0), name
    for name, label in (
        ("sglang:startup_time_seconds", "total"),
        ("sglang:weight_memory_usage_gb", ""),
        ("sglang:kv_cache_memory_usage_gb", ""),
        ("sglang:startup_available_gpu_memory_gb", ""),
        ("jaxserve:compile_seconds_total", ""),
    ):
        assert after[name, label] > 0, name
    assert after["jaxserve:recompiles_total", ""] == 0


def test_every_metric_of_sglang_is_there_or_documented_as_missing(tiny_server: LiveServer) -> None:
    found = set().union(*emitted(tiny_server.get("/metrics").text).values())
    missing = set(chain(*KINDS.values())) - found
    assert missing == set(chain(*NOT_EMITTED.values()))
    documented = (ROOT / "docs" / "operations.md").read_text()
    assert [name for name in missing | found if f"`sglang:{name}`" not in documented] == []


def test_pieces_of_prompts_and_evictions_are_timed(tiny_server: LiveServer) -> None:
    before = samples(tiny_server)
    tiny_server.generate(text="a" * 200, sampling_params=GREEDY)  # 128 tokens a step, 256 in all
    tiny_server.generate(text="b" * 200, sampling_params=GREEDY)
    after = samples(tiny_server)

    def grown(name: str, label: str = "") -> float:
        return after[f"sglang:{name}", label] - before[f"sglang:{name}", label]

    assert grown("per_stage_req_latency_seconds_count", "chunked_prefill") == 2
    assert grown("per_stage_req_latency_seconds_count", "prefill_forward") == 2
    assert grown("per_stage_req_latency_seconds_sum", "chunked_prefill") > 0
    assert grown("eviction_duration_seconds_count") > 0
    assert grown("eviction_duration_seconds_sum") > 0
    assert grown("evicted_tokens_total") > 0


def test_loads(tiny_server: LiveServer) -> None:
    answer = tiny_server.get("/v1/loads").json()
    (load,) = answer["loads"]
    assert load["max_running_requests"] == 8
    assert load["max_total_num_tokens"] == load["memory"]["token_capacity"]
    assert answer["accelerator"] and answer["num_accelerators"] == 1
    assert tiny_server.get("/get_load").json()[0].keys() == {
        "dp_rank", "num_reqs", "num_waiting_reqs", "num_tokens",
    }  # fmt: skip


def test_a_profile_is_written_and_changes_no_answer(
    tiny_server: LiveServer, tmp_path: Path
) -> None:
    expected = tiny_server.generate(text="Profile me", sampling_params=GREEDY)["output_ids"]
    started = tiny_server.post("/start_profile", {"output_dir": str(tmp_path)})
    assert (started.status_code, started.text) == (200, "Start profiling.\n")
    assert tiny_server.generate(text="Profile me", sampling_params=GREEDY)["output_ids"] == expected
    stopped = tiny_server.get("/stop_profile")
    assert (stopped.status_code, stopped.text) == (
        200,
        "Stop profiling. This will take some time.\n",
    )
    assert list(tmp_path.rglob("*.xplane.pb")) and list(tmp_path.rglob("*.trace.json.gz"))


def test_requests_are_logged_only_while_asked_for(tiny_server: LiveServer) -> None:
    def generate(text: str) -> None:
        tiny_server.generate(text=text, sampling_params={"max_new_tokens": 1})

    generate("unlogged one")
    tiny_server.post("/configure_logging", {"log_requests": True, "log_requests_level": 2})
    generate("logged one")
    tiny_server.post("/configure_logging", {"log_requests": False})
    generate("unlogged two")
    log = tiny_server.log
    assert "Receive: rid=" in log and "text='logged one'" in log
    assert "unlogged" not in log


def test_its_documents_are_of_what_it_serves(tiny_server: LiveServer) -> None:
    paths = tiny_server.get("/openapi.json").json()["paths"]
    assert {"/generate", "/v1/chat/completions", "/v1/messages", "/v1/responses"} <= paths.keys()
    assert "<title>jaxserve API</title>" in tiny_server.get("/docs").text
    readable = [
        path
        for path, item in paths.items()
        if "200" in item.get("get", {}).get("responses", ())
        and item["get"]["tags"] != ["Control"]
        and not path.endswith(("}", "_session", "/input_items"))
    ]
    assert [path for path in readable if tiny_server.get(path).status_code != 200] == []
