"""Which file may import which: the layer table of docs/architecture.md, executable."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Top-level module or package -> the jaxserve modules and packages it may import.
ALLOWED: dict[str, set[str]] = {
    "pallas_kernels": set(),
    # vocabulary
    "errors": set(),
    "request": {"errors"},
    "batch": set(),
    "json_fields": {"errors"},
    "model_config": {"errors", "json_fields"},
    "shard_plan": {"errors", "model_config"},
    "config": {"errors", "model_config", "shard_plan"},
    "engine_stats": set(),
    "histogram": set(),
    "stats_metrics": {"engine_stats"},
    "metrics": {"engine_stats", "histogram", "stats_metrics"},
    "xla_flags": set(),
    # file and wire formats
    "gguf_header": {"errors"},
    "loop_thread": {"errors"},
    "native_fields": {"errors"},
    "sampling_dict": {"request", "errors", "native_fields"},
    "native_prompts": {"request", "errors", "native_fields"},
    "native_refusals": {"errors", "native_fields"},
    "native_request": {
        "request", "errors", "native_fields", "native_prompts", "native_refusals", "sampling_dict",
    },
    "native_format": {"request"},
    "beam_search": set(),
    "parsers": {"errors"},
    # siblings: they never import each other
    "scheduler": {"request", "batch", "config", "errors"},
    "text": {"request", "errors", "gguf_header"},
    "constrained": {"request", "errors"},
    "models": {"model_config", "shard_plan", "errors", "pallas_kernels"},
    "weights": {"config", "model_config", "shard_plan", "errors", "models", "gguf_header"},
    "executor": {
        "batch", "config", "model_config", "shard_plan", "errors", "models", "weights",
    },
    # what python -m pallas_kernels.aot step compiles
    "aot_steps": {
        "batch", "config", "model_config", "errors", "models", "executor", "pallas_kernels",
    },
    # owners
    "engine_report": {"batch", "request", "config", "engine_stats", "metrics", "scheduler"},
    "step_times": {"batch"},
    "constraints": {"batch", "request", "constrained", "scheduler", "step_times"},
    "request_clock": {"request"},
    "engine_mailbox": {"request", "errors", "constrained"},
    "engine": {
        "constraints", "engine_mailbox", "engine_report", "request_clock", "step_times",
        "request", "config", "engine_stats", "errors", "scheduler", "constrained", "executor",
    },
    "engine_builder": {
        "constraints", "engine", "engine_report", "step_times",
        "config", "model_config", "metrics", "scheduler", "executor", "weights",
    },
    "sessions": {"request", "errors"},
    "model_parts": {
        "request", "config", "model_config", "errors", "metrics", "text", "engine_builder",
        "weights",
        "constrained", "parsers",
    },
    "admission": {"request", "errors", "model_parts", "config"},
    "text_stream": {"request", "errors", "metrics", "text"},
    "offline": {
        "request", "errors", "sampling_dict", "native_prompts", "native_request", "native_format",
        "model_parts", "text_stream",
    },
    "open_streams": {
        "request", "errors", "metrics", "text", "constrained", "model_parts", "admission",
        "text_stream",
    },
    "llm": {
        "request", "config", "errors", "metrics", "engine_stats", "text", "loop_thread",
        "model_parts", "text_stream", "offline", "admission", "sessions", "constrained",
        "open_streams",
    },
    # The server knows LLM only as a Protocol of its own: the port answers before jax is loaded.
    "server": {
        "parsers", "request", "config", "errors", "metrics", "sampling_dict", "native_format",
        "native_fields", "native_refusals", "native_prompts", "native_request", "beam_search",
    },
    "flag_values": {"errors", "sampling_dict"},
    "foreign_flags": set(),
    "config_file": {"errors"},
    "flag_tables": {"config"},
    "flags": {"config", "config_file", "flag_tables", "errors", "flag_values", "foreign_flags"},
    "launch": {"config", "errors", "request", "flags", "xla_flags", "server", "llm"},
    "launch_server": {"launch"},
    # helpers of the tutorials
    "utils": set(),
    "test": {"utils"},
}  # fmt: skip

FORBIDDEN_THIRD_PARTY: dict[str, set[str]] = {
    "pallas_kernels": {"flax"},
    **dict.fromkeys(
        ("errors", "model_config", "shard_plan", "config"), {"jax", "flax", "numpy"}
    ),
    **dict.fromkeys(
        ("request", "batch", "engine_stats", "histogram", "stats_metrics", "metrics", "scheduler",
         "text", "server", "llm", "engine", "sampling_dict", "beam_search",
         "native_format", "utils", "xla_flags"),
        {"jax", "flax"},
    ),
}  # fmt: skip

# Inside a package a file imports only files to its left.  The list is also the reading order.
ORDER: dict[str, tuple[str, ...]] = {
    "scheduler": (
        "page_pool", "radix_tree", "sequence", "kv_manager", "policy", "buckets",
        "embed_rows", "hidden_spans", "plan",
        "catch_up", "settings", "waiting_line", "outputs", "stats", "checks", "scheduler",
    ),
    "models": ("rope", "layers", "attention", "row_shards", "llama", "qwen2", "qwen3", "registry"),
    "weights": (
        "reader", "mapping", "safetensors", "gguf", "dummy", "demo", "source", "loader",
    ),
    "executor": (
        "device", "bounds", "blocks", "truncation", "logprobs", "sharding", "warmup", "slots",
        "sampling", "sampler", "embeds", "kv_pool", "kernel_check", "attention_backend", "packing",
        "step", "late_sampler", "prompt_logprobs", "hidden_states", "profiler", "runner",
    ),
    "constrained": (
        "workers", "vocabulary", "thought", "matcher", "problems", "schema_rules",
        "schema_closing", "schema", "ebnf_parser",
        "ebnf", "structural_tag", "sources", "guard", "trial", "compiler",
    ),
    "parsers": (
        "source", "json_scan", "values", "calls", "json_calls", "named_calls", "xml_calls",
        "pythonic_calls", "harmony", "gemma_calls", "tool_formats", "tool_parser",
        "reasoning_formats", "reasoning", "tool_choice", "detection",
    ),
    "text": ("advice", "gguf_vocab", "tokenizer", "chat_template", "stop_regex",
             "detokenizer"),
    "server": (
        "tls", "service", "http_errors", "limits", "json_body", "request_log", "state", "sse",
        "streams", "native_types", "thoughts", "beams", "native", "session_endpoints",
        "output_grammar", "openai_types", "chat_messages", "chat_types", "chat_delta", "chat_tools",
        "chat_reasoning", "chat_reader", "chat_turn", "openai_answers", "openai_format",
        "openai_models", "openai_completions", "openai_chat", "score", "text_endpoints", "admin",
        "blocks", "foreign_bodies", "foreign_answers", "responses_types", "responses_items",
        "responses_events", "responses_store", "responses_truncation", "responses",
        "messages_input", "messages_types",
        "messages", "ollama_types", "ollama", "loads", "control", "route", "auth", "openapi",
        "refused", "routes_native", "routes_openai", "routes_responses", "routes_messages",
        "routes_ollama", "routes_admin", "routes", "app",
    ),
    "pallas_kernels": (
        "layout", "tuning", "support", "checks", "reference", "xla", "hopper", "add_rms_norm",
        "decode_tiles", "paged_decode", "extend_tiles", "extend_ring", "paged_extend", "pallas",
        "api",
        "aot_mosaic", "aot_thunks", "aot_hlo", "aot_report",
        "aot_compile", "aot_kernels", "aot_step", "aot",
    ),
}  # fmt: skip

FILES = sorted((ROOT / "jaxserve").rglob("*.py")) + sorted((ROOT / "pallas_kernels").rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """Every module that ``path`` imports, absolute, split at the dots."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            # `from package import name`: the name may be a module of it.
            for alias in node.names:
                child = ROOT.joinpath(*module, alias.name)
                is_module = child.is_dir() or child.with_suffix(".py").is_file()
                yield (*module, alias.name) if is_module else module


def layer_of(module: tuple[str, ...]) -> str:
    """``jaxserve.text.tokenizer`` -> ``text``; ``pallas_kernels.api`` -> ``pallas_kernels``."""
    return module[1] if module[0] == "jaxserve" and len(module) > 1 else module[0]


def own_module(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT).with_suffix("").parts


def ours(path: Path) -> list[tuple[str, ...]]:
    return [module for module in imported(path) if module[0] in {"jaxserve", "pallas_kernels"}]


@each_file
def test_imports_follow_the_layer_table(path: Path) -> None:
    if path == ROOT / "jaxserve" / "__init__.py":
        return  # re-exports the public names
    layer = layer_of(own_module(path))
    assert layer in ALLOWED, f"{layer} is not in the layer table; give it a place there"
    wrong = {layer_of(module) for module in ours(path)} - ALLOWED[layer] - {layer}
    assert not wrong, f"{layer} may import {sorted(ALLOWED[layer])}, not {sorted(wrong)}"


@each_file
def test_third_party_imports_stay_in_their_layer(path: Path) -> None:
    roots = {module[0] for module in imported(path)}
    forbidden = FORBIDDEN_THIRD_PARTY.get(layer_of(own_module(path)), set())
    assert not roots & forbidden
    assert "torch" not in roots, "torch is for the parity tests; nothing needs it to serve"


@each_file
def test_files_of_a_package_are_imported_in_reading_order(path: Path) -> None:
    layer = layer_of(own_module(path))
    if path.stem in {"__init__", "__main__"} or layer not in ORDER:
        return
    order = ORDER[layer]
    assert path.stem in order, f"{path.stem} has no place in the reading order of {layer}"
    siblings = {m[-1] for m in ours(path) if layer_of(m) == layer and m[-1] in order}
    later = {name for name in siblings if order.index(name) >= order.index(path.stem)}
    assert not later, f"{layer}/{path.stem}.py imports {sorted(later)}, listed after it"


def test_tables_name_only_what_exists() -> None:
    existing = {layer_of(own_module(path)) for path in FILES}
    assert set(ALLOWED) <= existing, f"gone: {sorted(set(ALLOWED) - existing)}"
    stems = {(layer_of(own_module(path)), path.stem) for path in FILES}
    gone = [(layer, name) for layer, names in ORDER.items() for name in names
            if (layer, name) not in stems]  # fmt: skip
    assert not gone
