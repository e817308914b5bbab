"""The checkpoints that other tests rely on: transformers must take them for its own."""

import json
import sys

import numpy as np
import pytest
import torch
from make_tiny_checkpoint import (
    ROPE_VARIANTS,
    SPECIAL_TOKENS,
    TINY_CONFIG,
    main,
    make_tiny,
    make_tiny_llama,
)
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

OPTIONS = [{"rope": name} for name in ROPE_VARIANTS] + [
    {"tie_word_embeddings": True, "num_shards": 3},
    {"attention_bias": True, "mlp_bias": True, "dtype": "bfloat16"},
    {"model_type": "qwen2", "num_shards": 2},
    {"model_type": "qwen3", "tie_word_embeddings": True, "attention_bias": True},
    {"head_dim": 24, "num_key_value_heads": 1, "dtype": "float16", "rms_norm_eps": 1e-3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_transformers_loads_it_without_a_missing_tensor(tmp_path, options):
    folder = make_tiny(tmp_path, **{"model_type": "llama", **options})
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    with torch.no_grad():
        logits = model(torch.arange(100)[None]).logits
    assert 1.0 < logits.std() < 4.0  # neither flat nor a foregone conclusion


def test_the_seed_decides(tmp_path):
    first, again, other = (
        load_file(make_tiny_llama(tmp_path / str(i), seed=seed) / "model.safetensors")
        for i, seed in enumerate((0, 0, 1))
    )
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        assert (values != other[name]).any()


def test_byte_tokenizer_round_trips_any_text(tmp_path):
    folder = make_tiny_llama(tmp_path, tokenizer="bytes")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Grüße,\n  世界 🦙\t\0"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode()) and max(ids) < 256
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens([256, 257, 258]) == list(SPECIAL_TOKENS)
    chat = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer) == TINY_CONFIG["vocab_size"]


@pytest.mark.usefixtures("demo_model")
def test_command_line_makes_the_host_overhead_model(tmp_path, monkeypatch, capsys):
    arguments = [str(tmp_path / "out"), "--vocab-size", "49152", "--tokenizer", "demo", "--tied"]
    monkeypatch.setattr(sys, "argv", ["make_tiny_checkpoint.py", *arguments])
    main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (49152, 2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == 49152
    assert tokenizer.eos_token == "<|im_end|>"
    # Digits are cut one by one: the demo model's pre-tokenizer came along.
    assert len(tokenizer.encode("2024")) == 4
