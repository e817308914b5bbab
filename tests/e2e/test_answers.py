"""One prompt asked in every way has one answer: whole or streamed, native or OpenAI's."""

import json
import random

import pytest
import requests
from e2e.live_server import LiveServer

PROMPT = "say é😀"  # shorter than a page: nothing of it is ever cached


def events(server: LiveServer, path: str, body: dict) -> list[dict]:
    with requests.post(server.url + path, json=body, stream=True, timeout=60) as response:
        *lines, done = [line for line in response.iter_lines() if line]
    assert done == b"data: [DONE]"
    return [json.loads(line[6:]) for line in lines]


def native(server: LiveServer, params: dict) -> dict:
    """The whole answer, after its stream was seen to grow into the same."""
    body = {"text": PROMPT, "sampling_params": params, "return_logprob": True}
    whole = server.generate(**body)
    text = ""
    for event in events(server, "/generate", body | {"stream": True}):
        assert event["text"].startswith(text)
        text = event["text"]
    assert (text, event["output_ids"]) == (whole["text"], whole["output_ids"])
    meta = whole["meta_info"]
    assert meta["completion_tokens"] == len(whole["output_ids"])
    assert [entry[1] for entry in meta["output_token_logprobs"]] == whole["output_ids"]
    assert event["meta_info"]["finish_reason"] == meta["finish_reason"]
    assert event["meta_info"]["output_token_logprobs"] == meta["output_token_logprobs"]
    return whole


def openai(server: LiveServer, params: dict) -> dict:
    """The same of /v1/completions; its usage is checked as well."""
    body = dict(params)
    body |= {"prompt": PROMPT, "max_tokens": body.pop("max_new_tokens")}
    body["seed"] = body.pop("sampling_seed")
    whole = server.post("/v1/completions", body).json()
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(server, "/v1/completions", streamed)
    assert (last["choices"], last["usage"]) == ([], usage)
    choices = [chunk["choices"][0] for chunk in chunks]
    choice = whole["choices"][0]
    assert "".join(each["text"] for each in choices) == choice["text"]
    for name in ("finish_reason", "matched_stop"):
        assert choices[-1][name] == choice[name]
    return choice


@pytest.mark.parametrize("seed", range(6))
def test_one_answer_in_every_form(tiny_server: LiveServer, seed: int) -> None:
    params = {"max_new_tokens": 40, "temperature": 1.3, "sampling_seed": seed, "ignore_eos": True}
    whole = native(tiny_server, params)
    assert openai(tiny_server, params)["text"] == whole["text"]
    one_of_three = tiny_server.generate(text=PROMPT, sampling_params=params | {"n": 3})[0]
    assert one_of_three["output_ids"] == whole["output_ids"]


@pytest.mark.parametrize("seed", range(6))
def test_stop_strings(tiny_server: LiveServer, seed: int) -> None:
    """Two that overlap, cut from anywhere, also from the very start."""
    params = {"max_new_tokens": 40, "temperature": 1.3, "sampling_seed": seed, "ignore_eos": True}
    text = tiny_server.generate(text=PROMPT, sampling_params=params)["text"]
    start = random.Random(seed).randrange(len(text) - 8) if seed else 0
    stops = [text[start : start + 3], text[start + 1 : start + 6]]
    end, start, matched = min(
        (text.find(stop) + len(stop), text.find(stop), stop) for stop in stops
    )
    for keeps, expected in ((False, text[:start]), (True, text[:end])):
        asked = params | {"stop": stops, "no_stop_trim": keeps}
        answer = native(tiny_server, asked)
        assert answer["text"] == expected
        assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": matched}
        choice = openai(tiny_server, asked)
        assert (choice["text"], choice["matched_stop"]) == (expected, matched)


# --- beams ---


def likeliest(server: LiveServer, ids: list[int], count: int) -> list[tuple[int, float]]:
    answer = server.generate(
        input_ids=ids, return_logprob=True, top_logprobs_num=count,
        sampling_params={"max_new_tokens": 1, "temperature": 1.0},
    )  # fmt: skip
    (top,) = answer["meta_info"]["output_top_logprobs"]
    return [(token_id, logprob) for logprob, token_id, _ in top]


@pytest.mark.parametrize("width", [2, 5])
def test_beams_are_what_a_client_would_find(tiny_server: LiveServer, width: int) -> None:
    """Without stop tokens: step by step over the API, the likeliest continuations of all."""
    prompt = [(7 * i) % 250 + 3 for i in range(21)]  # a page and more
    frontier: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(6):
        every = [
            ([*ids, token_id], total + logprob)
            for ids, total in frontier
            for token_id, logprob in likeliest(tiny_server, [*prompt, *ids], width)
        ]
        frontier = sorted(every, key=lambda item: -item[1])[:width]
    sampling = {"beam_width": width, "n": width, "max_new_tokens": 6, "ignore_eos": True}
    answer = tiny_server.generate(input_ids=prompt, sampling_params=sampling)
    beams = answer["meta_info"]["beam_results"]
    assert [beam["output_ids"] for beam in beams] == [ids for ids, _ in frontier]
    assert [beam["meta_info"]["sequence_score"] for beam in beams] == pytest.approx(
        [total / 6 for _, total in frontier], abs=1e-3
    )
    assert answer["output_ids"] == beams[0]["output_ids"]
