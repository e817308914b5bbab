"""Hidden states out and embeddings in, over HTTP: a server that allows both."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from e2e.live_server import SMALL, LiveServer, launched
from transformers import AutoModelForCausalLM

PROMPT = list(range(20, 60))
GREEDY = {"max_new_tokens": 5, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    flags = "--disable-radix-cache --enable-return-hidden-states --log-requests --dtype float32"
    log_path = tmp_path_factory.mktemp("states") / "log"
    with launched(log_path, f"--model-path {tiny_checkpoint} {SMALL} {flags}") as server:
        yield server


@pytest.fixture(scope="module")
def rows(tiny_checkpoint: Path) -> list[list[float]]:
    """The embeddings of ``PROMPT``."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    return model.get_input_embeddings().weight[PROMPT].tolist()


def test_embeddings_say_what_their_ids_say(server: LiveServer, rows: list[list[float]]) -> None:
    asked = {"sampling_params": GREEDY, "return_hidden_states": True}
    of_ids = server.generate(input_ids=PROMPT, **asked)
    of_rows = server.generate(input_embeds=rows, **asked)
    assert of_rows["output_ids"] == of_ids["output_ids"]
    (prompt, *rest), (other, *_) = (a["meta_info"]["hidden_states"] for a in (of_ids, of_rows))
    assert (len(prompt), len(rest)) == (len(PROMPT), 4)
    np.testing.assert_allclose(prompt, other, atol=1e-4)
    batch = server.generate(input_embeds=[rows, rows], sampling_params=GREEDY | {"n": 2})
    assert [each["output_ids"] for each in batch] == [of_ids["output_ids"]] * 4
    assert "num_input_embeds=40" in server.log


def test_openai_streams_end_with_the_last_state(server: LiveServer) -> None:
    body = {"model": "m", "prompt": PROMPT, "max_tokens": 3, "temperature": 0}
    whole = server.post("/v1/completions", body | {"return_hidden_states": True}).json()
    streamed = server.post("/v1/completions", body | {"return_hidden_states": True, "stream": True})
    last = json.loads(streamed.text.split("\n\n")[-3].removeprefix("data: "))
    expected = whole["choices"][0]["hidden_states"]
    assert last["choices"][0]["hidden_states"] == pytest.approx(expected, abs=1e-4)


def test_what_is_wrong_is_said(server: LiveServer, rows: list[list[float]]) -> None:
    response = server.post("/generate", {"input_embeds": [[1.0, 2.0]]})
    assert response.status_code == 400
    assert "input_embeds[0] has 2 numbers; send rows of" in response.text
    response = server.post("/generate", {"input_embeds": rows * 20})
    assert "The input (800 tokens) is longer than the model's context length" in response.text
