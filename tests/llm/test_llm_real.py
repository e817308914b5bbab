"""A tiny model that really runs, asked through ``LLM``: what came back is what the model says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_harness import Oracle, transformers_logprobs
from transformers import AutoModelForCausalLM

from jaxserve import LLM
from jaxserve.errors import InvalidRequestError
from jaxserve.request import SamplingParams, SessionParams

PROMPT = "The quick brown fox jumps over the lazy dog"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["ann", "bob"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm(tiny_checkpoint: Path, compilation_cache_dir: str) -> Iterator[LLM]:
    with LLM(
        str(tiny_checkpoint),
        dtype="float32",
        max_total_tokens=2048,
        context_length=256,
        chunked_prefill_size=32,
        max_running_requests=8,
        random_seed=0,
        enable_return_hidden_states=True,
        constrained_json_disable_any_whitespace=True,  # a random model likes to write it
        compilation_cache_dir=compilation_cache_dir,
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> Oracle:
    return transformers_logprobs(tiny_checkpoint)


def chosen(meta: dict[str, Any], kind: str = "input") -> list[float | None]:
    return [entry[0] for entry in meta[f"{kind}_token_logprobs"]]


def test_hidden_states_are_what_logits_are_made_of(llm: LLM, tiny_checkpoint: Path) -> None:
    sampling = {"max_new_tokens": 5, "temperature": 0, "ignore_eos": True}
    body = llm.generate(PROMPT, sampling, return_hidden_states=True)
    prompt, *rest = body["meta_info"]["hidden_states"]
    assert (len(prompt), len(rest)) == (body["meta_info"]["prompt_tokens"], 4)
    head = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).lm_head
    logits = head(torch.tensor([prompt[-1], *rest]))
    assert logits.argmax(-1).tolist() == body["output_ids"]
    last = llm.generate(PROMPT, sampling, return_hidden_states="last")["meta_info"]
    assert last["hidden_states"] == pytest.approx(rest[-1], abs=1e-4)
    assert last["cached_tokens"] > 0


@pytest.mark.parametrize("start", [0, 1, 5, 43])
def test_prompt_logprobs_are_those_of_a_forward_pass(
    llm: LLM, expected: Oracle, start: int
) -> None:
    body = llm.generate(
        PROMPT, {"max_new_tokens": 3, "temperature": 0}, return_logprob=True,
        logprob_start_len=start, top_logprobs_num=3, token_ids_logprob=[7, 9],
        return_prompt_token_ids=True,
    )  # fmt: skip
    ids, meta = body["prompt_token_ids"] + body["output_ids"], body["meta_info"]
    num_prompt = meta["prompt_tokens"]
    table = expected(ids)
    entries = meta["input_token_logprobs"]
    assert [entry[1] for entry in entries] == ids[start:num_prompt]
    for i, position in enumerate(range(start, num_prompt)):
        if position == 0:
            assert entries[0][0] is None
            assert meta["input_top_logprobs"][0] is None
            assert meta["input_token_ids_logprobs"][0] is None
            continue
        row = table[position - 1]
        assert entries[i][0] == pytest.approx(row[ids[position]], abs=1e-3)
        top = meta["input_top_logprobs"][i]
        assert [entry[0] for entry in top] == pytest.approx(sorted(row)[:-4:-1], abs=1e-3)
        of_ids = meta["input_token_ids_logprobs"][i]
        assert [entry[1] for entry in of_ids] == [7, 9]
        assert [entry[0] for entry in of_ids] == pytest.approx(row[[7, 9]], abs=1e-3)
    rows = table[num_prompt - 1 : -1]
    outputs = [row[token] for row, token in zip(rows, body["output_ids"], strict=True)]
    assert chosen(meta, "output") == pytest.approx(outputs, abs=1e-3)


def test_a_cached_prompt_has_the_same_logprobs(llm: LLM) -> None:
    wanted = {"return_logprob": True, "logprob_start_len": 0}
    params = {"max_new_tokens": 0}
    first = llm.generate(PROMPT, params, **wanted)["meta_info"]
    again = llm.generate(PROMPT, params, **wanted)["meta_info"]
    without_start = llm.generate(PROMPT, params, return_logprob=True)["meta_info"]
    for other in (again, without_start):
        assert chosen(other)[1:] == pytest.approx(chosen(first)[1:], abs=1e-4)
    late = llm.generate(PROMPT, params, return_logprob=True, logprob_start_len=40)["meta_info"]
    assert late["cached_tokens"] > 0
    assert chosen(late) == pytest.approx(chosen(first)[40:], abs=1e-4)
    assert first["finish_reason"] == {"type": "length", "length": 0}
    assert first["output_token_logprobs"] == []


def test_a_batch_keeps_them_apart(llm: LLM) -> None:
    prompts = [PROMPT, PROMPT[:10], "x" * 70]
    wanted = {"return_logprob": True, "logprob_start_len": 0}
    together = llm.generate(prompts, {"max_new_tokens": 2, "temperature": 0}, **wanted)
    for prompt, body in zip(prompts, together, strict=True):
        alone = llm.generate(prompt, {"max_new_tokens": 2, "temperature": 0}, **wanted)
        assert chosen(body["meta_info"])[1:] == pytest.approx(
            chosen(alone["meta_info"])[1:], abs=1e-4
        )


# --- grammars ---


def test_json_by_a_schema(llm: LLM) -> None:
    sampling = {"json_schema": SCHEMA, "max_new_tokens": 100, "temperature": 1.0, "n": 4}
    for body in llm.generate("x", sampling):
        value = json.loads(body["text"])
        assert value["name"] in {"ann", "bob"} and isinstance(value["old"], bool)
        assert body["meta_info"]["finish_reason"]["type"] == "stop"


def test_a_constrained_row_with_logprobs(llm: LLM) -> None:
    sampling = {"regex": "(yes|no) sir", "max_new_tokens": 20, "temperature": 0}
    body = llm.generate("x", sampling, return_logprob=True)
    assert body["text"] in {"yes sir", "no sir"}
    values = chosen(body["meta_info"], "output")
    assert len(values) == len(body["output_ids"])
    assert values[-2] == pytest.approx(0.0)  # nothing else was allowed


def test_others_are_not_constrained(llm: LLM) -> None:
    sampling = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
    alone = llm.generate(PROMPT, sampling)["output_ids"]
    both = llm.generate([PROMPT, "x"], [sampling, {"regex": "[ab]{9}", "max_new_tokens": 30}])
    assert both[0]["output_ids"] == alone
    assert set(both[1]["text"]) <= set("ab") and len(both[1]["text"]) == 9


def test_a_grammar_that_begins_later(llm: LLM) -> None:
    params = SamplingParams(max_new_tokens=24, temperature=0.0, ignore_eos=True)
    free = llm.generate("x", params)["output_ids"]
    sampling = {"regex": "[0-9]{5}", "max_new_tokens": 24, "temperature": 0}
    body = llm.generate("x", sampling)
    assert body["text"].isdigit() and len(body["text"]) == 5
    assert free != body["output_ids"]


# --- sessions, stops ---


def test_a_session_is_the_same_as_the_whole_prompt(llm: LLM) -> None:
    sampling = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    session = llm.open_session(200)
    ids = [40, 41, 42]
    first = llm.generate(ids, sampling, session_params={"id": session})
    rid = first["meta_info"]["id"]
    second = llm.generate([50, 51], sampling, session_params={"id": session, "rid": rid})
    whole = llm.generate([*ids, *first["output_ids"], 50, 51], sampling)
    assert second["output_ids"] == whole["output_ids"]
    assert second["meta_info"]["prompt_tokens"] == whole["meta_info"]["prompt_tokens"]
    assert SessionParams(id=session).rid is None
    llm.close_session(session)


def test_a_streaming_session_is_the_same_as_the_whole_prompt(llm: LLM) -> None:
    sampling = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    session = llm.open_session(200, is_streaming=True)
    assert llm.stats().num_streaming_sessions == 1
    history: list[int] = []
    for ids in ([40, 41, 42], [50, 51], [60]):
        answer = llm.generate(ids, sampling, session_params={"id": session})
        whole = llm.generate([*history, *ids], sampling)
        assert answer["output_ids"] == whole["output_ids"]
        history += [*ids, *answer["output_ids"]]
    with pytest.raises(InvalidRequestError, match="do not support n above 1"):
        llm.generate([5], sampling | {"n": 2}, session_params={"id": session})
    llm.close_session(session)
    assert llm.stats().num_streaming_sessions == 0


def test_stop_regex(llm: LLM) -> None:
    sampling = {"max_new_tokens": 40, "temperature": 0, "ignore_eos": True}
    free = llm.generate(PROMPT, sampling)["text"]
    found = llm.generate(PROMPT, sampling | {"stop_regex": "[a-zA-Z]"})
    first = next(
        i for i, character in enumerate(free) if character.isascii() and character.isalpha()
    )
    assert found["text"] == free[:first]
    assert found["meta_info"]["finish_reason"] == {"type": "stop", "matched": free[first]}
