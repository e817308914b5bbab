"""A server of a tiny random model for the rough tests; the demo model's is in tests/conftest.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.live_server import SMALL, LiveServer, launched
from make_tiny_checkpoint import make_tiny

# What Qwen3's template does at the end of a prompt: without thinking the thought is there, empty.
THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
FIRST_FREE_TOKEN = 259  # behind those of the byte tokenizer
THINKING_TOKENS = ("<think>", "</think>")


@pytest.fixture(scope="session")
def tiny_server(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    log_path = tmp_path_factory.mktemp("tiny-server") / "log"
    flags = (
        f"--model-path {tiny_checkpoint} {SMALL} --max-total-tokens 256 --max-body-bytes 200000 "
        "--chunked-prefill-size 128"
    )
    with launched(log_path, flags) as server:
        yield server


@pytest.fixture(scope="session")
def thinking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A random model that has tokens 259 and 260 to think between, and SGLang 0.3's shapes."""
    folder = tmp_path_factory.mktemp("thinking")
    checkpoint = make_tiny(folder / "qwen3", "qwen3", tokenizer="bytes", vocab_size=264)
    tokenizer_path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(tokenizer_path.read_text())
    like = tokenizer["added_tokens"][-1]
    for token_id, text in enumerate(THINKING_TOKENS, FIRST_FREE_TOKEN):
        tokenizer["added_tokens"].append(like | {"id": token_id, "content": text, "special": False})
    tokenizer_path.write_text(json.dumps(tokenizer))
    template = folder / "thinking.jinja"
    template.write_text(THINKING_TEMPLATE)
    flags = f"--model-path {checkpoint} --chat-template {template} --reasoning-parser qwen3"
    flags += " --enable-strict-thinking"
    with launched(folder / "log", f"{flags} --api-compat 0.3 {SMALL}") as server:
        yield server
