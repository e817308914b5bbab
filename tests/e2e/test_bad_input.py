"""Bad input to a live server: the right words, and the next good request as if nothing was."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from e2e.live_server import LiveServer, failed_start

GOOD = {"text": "Hello", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}


@pytest.fixture(autouse=True)
def good_before_and_after(tiny_server: LiveServer) -> Iterator[None]:
    before = tiny_server.generate(**GOOD)["output_ids"]
    yield
    assert tiny_server.generate(**GOOD)["output_ids"] == before


def sampling(**params: object) -> dict:
    return {"text": "a", "sampling_params": params}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"text": "a" * 700}, 400, "The input (700 tokens) is longer than the model's context"),
        ({"input_ids": [1] * 700}, 400, "is longer than the model's context length"),
        (sampling(max_new_tokens=600), 400, "Requested token count exceeds the model's maximum"),
        ({"text": "a" * 300}, 400, "but the KV pool holds 256"),
        ({"text": ""}, 400, "input_ids cannot be empty."),
        ({"input_ids": []}, 400, "input_ids cannot be empty."),
        ({"input_ids": [10**6]}, 400, "out-of-vocabulary token id 1000000"),
        ({"input_ids": [-1]}, 400, "out-of-vocabulary token id -1"),
        ({}, 400, "Either text, input_ids or input_embeds should be provided."),
        ({"text": 7}, 400, "invalid type: integer `7`"),
        (sampling(temperature="a"), 400, 'invalid type: string "a", expected f64'),
        (sampling(temperature=-1), 400, "temperature must be a non-negative finite number"),
        (sampling(top_p=0), 400, "top_p must be in (0, 1]"),
        (sampling(top_k=0), 400, "top_k must be -1 (disable) or at least 1, got 0."),
        (sampling(min_p=2), 400, "min_p must be in [0, 1]"),
        (sampling(frequency_penalty=3), 400, "frequency_penalty must be in [-2, 2]"),
        (sampling(repetition_penalty=0), 400, "repetition_penalty must be in (0, 2]"),
        (sampling(min_new_tokens=9, max_new_tokens=5), 400, "min_new_tokens must be in [0, "),
        (sampling(max_new_tokens=-1), 400, "max_new_tokens must be at least 0"),
        (sampling(logit_bias={"1000000": 1.0}), 400, "logit_bias must has keys in [0, "),
        (sampling(stop=["x"] * 40), 400, "at most 32 stop strings are allowed, got 40"),
        (sampling(max_tokens=4), 400, "unknown field `max_tokens`, expected one of"),
        ({"text": "a" * 200_000}, 413, "longer than the limit of 200000 bytes"),
    ],
)
def test_bad_requests(tiny_server: LiveServer, body: dict, status: int, words: str) -> None:
    response = tiny_server.post("/generate", body)
    assert response.status_code == status
    assert words in response.text.replace('\\"', '"')


@pytest.mark.parametrize(
    "data", [b"{", b"", b'{"text": "a", "sampling_params": {"top_p": NaN}}', b"\xff", b"[]"]
)
def test_malformed_json(tiny_server: LiveServer, data: bytes) -> None:
    for path in ("/generate", "/v1/completions"):
        headers = {"Content-Type": "application/json"}
        response = requests.post(tiny_server.url + path, data=data, headers=headers, timeout=10)
        assert response.status_code == 400
        assert response.json()["type"] == "Bad Request"


def test_a_body_that_is_not_encoded_as_it_says_leaves_no_traceback(
    tiny_server: LiveServer,
) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    for path, status in (("/generate", 400), ("/open_session", 400), ("/flush_cache", 200)):
        response = requests.post(tiny_server.url + path, data=b"{}", headers=headers, timeout=10)
        assert response.status_code == status
    assert "Traceback" not in tiny_server.log, tiny_server.log[-4000:]


def test_prompts_of_every_awkward_kind_are_served(tiny_server: LiveServer) -> None:
    for text in ("\x00", "é😀" * 20, "\ud7ff\uffff", "<|im_end|><|endoftext|>", " \n\t "):
        assert tiny_server.generate(text=text, sampling_params={"max_new_tokens": 2})


def test_ten_thousand_tiny_requests_at_once(tiny_server: LiveServer) -> None:
    texts = [f"{i:05d}" for i in range(10_000)]
    params = {"max_new_tokens": 1, "temperature": 0}
    answers = tiny_server.generate(text=texts, sampling_params=params)
    assert len(answers) == 10_000
    assert {answer["meta_info"]["completion_tokens"] for answer in answers} == {1}
    alone = tiny_server.generate(text="07777", sampling_params=params)
    assert answers[7777]["output_ids"] == alone["output_ids"]
    tiny_server.wait_until(lambda state: state["num_used_tokens"] == 0)


# --- start-up errors ---


def test_an_unknown_model_path() -> None:
    status, line = failed_start(["--model-path", "./no/such/model"])
    assert status == 1
    assert line.startswith("jaxserve: error: ")
    assert "no/such/model" in line


def test_an_unknown_architecture(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint, tmp_path)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"llama"', '"gpt9"'))
    status, line = failed_start(["--model-path", str(folder)])
    assert status == 1
    assert "gpt9" in line


def test_broken_safetensors(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint, tmp_path)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    status, line = failed_start(["--model-path", str(folder)])
    assert status == 1
    assert weights.name in line


def test_a_port_in_use(tiny_server: LiveServer) -> None:
    port = tiny_server.url.rsplit(":", 1)[1]
    status, line = failed_start(["--port", port])
    assert status == 1
    assert "the port is in use" in line


def copied(folder: Path, parent: Path) -> Path:
    target = parent / "model"
    subprocess.run(["cp", "-r", folder, target], check=True)
    subprocess.run(["chmod", "-R", "u+w", target], check=True)
    return target
