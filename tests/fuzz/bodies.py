"""Requests that a client might send by mistake or on purpose: valid ones, bent in a few places.

A fuzzer without feedback finds what lies near valid input, so each request starts as one and is
changed at one to four places: a value of another kind, a value at an edge, a field that belongs
elsewhere, a field less; or it is broken as bytes.  Everything follows from the seed.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Json = Any
BIG = 10**400  # no 64-bit integer, no float
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
USER = {"role": "user", "content": "hello"}
TALK = [
    {"role": "system", "content": "be brief"},
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "3"},
]
SAMPLING = {
    "max_new_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
    "frequency_penalty": 0.1, "presence_penalty": 0.1, "repetition_penalty": 1.1, "stop": ["x"],
    "stop_token_ids": [3], "stop_regex": ["a+b"], "n": 2, "logit_bias": {"5": 1.5},
    "sampling_seed": 7, "min_new_tokens": 1, "ignore_eos": True, "skip_special_tokens": False,
    "no_stop_trim": True, "spaces_between_special_tokens": True, "stream_interval": 2,
}  # fmt: skip
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
SHORT = {"max_new_tokens": 3}
EMBEDS = [[0.5] * 64, [-0.5] * 64]  # as wide as the tiny checkpoints

# endpoint → bodies that it accepts
SEEDS: Mapping[str, tuple[Json, ...]] = {
    "/generate": (
        {"text": "hello", "sampling_params": SAMPLING},
        {"text": ["hello", "you"], "sampling_params": SHORT, "rid": "batch"},
        {"input_ids": [1, 2, 3], "sampling_params": SHORT, "stream": True},
        {
            "text": "hello there", "return_logprob": True, "logprob_start_len": 1,
            "top_logprobs_num": 2, "token_ids_logprob": [4, 5], "return_text_in_logprobs": True,
            "sampling_params": {"max_new_tokens": 2}, "return_hidden_states": False,
        },
        {"text": ["a", "you"], "sampling_params": SHORT, "return_hidden_states": [True, "last"]},
        {
            "input_embeds": EMBEDS, "stream": True, "sampling_params": SHORT,
            "return_hidden_states": "last",
        },
        {"text": "hello", "sampling_params": {"max_new_tokens": 12, "regex": "[ab]{3}"}},
        {"text": "x", "sampling_params": {"max_new_tokens": 24, "json_schema": json.dumps(SCHEMA)}},
        {"text": "x", "sampling_params": {"max_new_tokens": 8, "ebnf": 'root ::= "a" | "b"'}},
        {"text": "x", "sampling_params": SHORT, "extra_key": "k", "cache_salt": "s", "priority": 3},
        {"text": "x", "sampling_params": {"max_new_tokens": 4, "beam_width": 3, "n": 2}},
        {
            "text": "x <think>", "require_reasoning": True, "max_thinking_tokens": 2,
            "sampling_params": {"max_new_tokens": 16, "regex": "[ab]{3}"},
        },
    ),
    "/v1/completions": (
        {"model": "m", "prompt": "hello", "max_tokens": 3, "temperature": 0, "seed": 1},
        {"model": "m", "prompt": ["hello", "you"], "max_tokens": 3, "n": 2, "stream": True},
        {"model": "m", "prompt": [1, 2, 3], "max_tokens": 3, "logprobs": 2, "echo": True},
        {
            "model": "m", "prompt": "x", "max_tokens": 8, "stop": "a", "user": "u",
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "stream": True, "response_format": {"type": "json_object"},
        },
    ),
    "/v1/chat/completions": (
        {"model": "m", "messages": TALK, "max_tokens": 3, "top_p": 0.5},
        {"model": "m", "messages": [USER], "max_completion_tokens": 3, "stream": True, "n": 2},
        {
            "model": "m", "messages": [USER], "max_tokens": 3, "logprobs": True, "top_logprobs": 2,
            "chat_template_kwargs": {"enable_thinking": False}, "separate_reasoning": True,
        },
        {"model": "m", "messages": [USER], "max_tokens": 24, "tools": [TOOL],
         "tool_choice": "required", "parallel_tool_calls": False},
        {"model": "m", "messages": [USER], "max_tokens": 24, "tools": [TOOL], "stream": True,
         "tool_choice": {"type": "function", "function": {"name": "add"}}},
        {
            "input_ids": [65, 66], "max_tokens": 4, "return_token_ids": True, "logprobs": True,
            "return_meta_info": True, "return_cached_tokens_details": True, "cache_salt": "s",
            "reasoning": {"effort": "low", "enabled": True}, "continue_final_message": True,
            "modalities": ["text"], "reasoning_effort": "none", "stream_reasoning": False,
        },
        {"model": "m", "messages": [USER], "max_tokens": 16, "reasoning": {"max_tokens": 2},
         "custom_params": {"thinking_budget": 3}, "regex": "[ab]{3}"},
        {
            "model": "m", "messages": [USER], "max_tokens": 24,
            "response_format": {
                "type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA},
            },
        },
    ),
    "/v1/responses": (
        {"model": "m", "input": "hello", "max_output_tokens": 3, "temperature": 0},
        {
            "model": "m", "max_output_tokens": 8, "stream": True, "instructions": "be brief",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
            "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
            "tools": [{"type": "function", "name": "add", "parameters": SCHEMA}],
            "metadata": {"a": "b"}, "reasoning": {"effort": "low"},
        },
        {
            "model": "m", "max_output_tokens": 24, "top_logprobs": 2, "stream": True,
            "tools": [{"type": "function", "name": "add", "parameters": SCHEMA}],
            "tool_choice": {"type": "function", "name": "add"},
            "include": ["reasoning.encrypted_content"],
            "input": [
                {"type": "reasoning", "summary": [], "content": [{"text": "hm"}]},
                {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "3"},
            ],
        },
        {"model": "m", "input": "hello", "max_output_tokens": 3, "background": True},
    ),
    "/v1/messages": (
        {
            "model": "m", "max_tokens": 24, "thinking": {"type": "adaptive"},
            "tools": [{"name": "add", "input_schema": SCHEMA}], "tool_choice": {"type": "any"},
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "s"},
                        {"type": "tool_use", "id": "c", "name": "add", "input": {"a": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c", "content": "3"},
                        {"type": "text", "text": "so?"},
                    ],
                },
            ],
        },
        {"model": "m", "messages": [USER], "max_tokens": 3, "system": "be brief", "top_k": 3},
        {
            "model": "m", "max_tokens": 8, "stream": True, "stop_sequences": ["x"],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
            "tools": [{"name": "add", "description": "adds", "input_schema": SCHEMA}],
            "tool_choice": {"type": "auto"}, "metadata": {"user_id": "u"},
        },
    ),
    "/v1/messages/count_tokens": ({"model": "m", "messages": [USER]},),
    "/v1/score": (
        {"query": "a ", "items": ["b", "c"], "label_token_ids": [5, 6], "apply_softmax": True},
    ),
    "/tokenize": ({"prompt": "hello"}, {"messages": [USER], "add_generation_prompt": False}),
    "/detokenize": ({"tokens": [1, 2, 3]}, {"tokens": [[1], [2]], "skip_special_tokens": False}),
    "/parse_function_call": (
        {"text": '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>', "tools": [TOOL],
         "tool_call_parser": "qwen25"},
    ),
    "/separate_reasoning": ({"text": "<think>a</think>b", "reasoning_parser": "qwen3"},),
    "/api/chat": (
        {"model": "m", "messages": [USER], "options": {"num_predict": 3, "seed": 1}},
        {
            "model": "m", "options": {"num_predict": 9, "stop": ["x"]}, "stream": False,
            "format": SCHEMA, "think": False, "logprobs": True, "top_logprobs": 1,
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": CALL["function"] | {
                    "arguments": {"a": 1}}}]},
                {"role": "tool", "tool_name": "add", "content": "3"},
            ],
        },
    ),
    "/api/generate": (
        {"model": "m", "prompt": "hello", "stream": False, "options": {"num_predict": 3}},
    ),
    "/abort_request": ({"rid": "batch", "abort_all": False},),
    "/open_session": (
        {"capacity_of_str_len": 100}, {"capacity_of_str_len": 100, "streaming": True},
    ),
    "/close_session": ({"session_id": "x"},),
    "/encode": ({"text": "hello"},),
    "/v1/embeddings": ({"model": "m", "input": "hello"},),
}  # fmt: skip

_WORDS = (
    "", " ", "hello", "None", "auto", "required", "none", "text", "\x00", "\ud7ff", "é", "🤡" * 3,
    "<|im_end|>", "<|endoftext|>", "{{ messages }}", "{% for %}", "(a+)+$", "[", "\\", "a" * 3000,
    '{"type": "object"}', '{"type": 5}', 'root ::= root "a"', "root ::= ", "../../etc/passwd",
    "NaN", "-1", "0x10", "\n", "data: [DONE]", "<think>", "</think>", "<tool_call>",
)  # fmt: skip
_NUMBERS = (
    0, 1, -1, 2, 3, 7, 20, 21, 64, 65, 255, 256, 258, 259, 511, 512, 513, 1024, 1025, 2**31 - 1,
    2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), -(2**63) - 1, 0.0, -0.0, 0.5, 1.0,
    1.5, -1.5, 1e-9, 1e-45, 1e30, 1e308, -1e308, 2.0000001, BIG,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FuzzRequest:
    """What goes over the wire."""

    path: str
    data: bytes
    content_type: str = "application/json"


def make_request(rng: random.Random, only: tuple[str, ...] = tuple(SEEDS)) -> FuzzRequest:
    """One request; a tenth of them are valid, so that the server is never idle."""
    path = rng.choice(only)
    body = _copy(rng.choice(SEEDS[path]))
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3, 4, 4))):
        body = _bend(rng, body)
    data = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    kind = "application/json"
    if rng.random() < 0.03:
        kind = rng.choice(("text/plain", "application/json; charset=utf-8", "", "multipart/x"))
    if rng.random() < 0.04:
        data = _break(rng, data)
    return FuzzRequest(path, data, kind)


def _bend(rng: random.Random, body: Json) -> Json:
    """``body`` changed in one place."""
    places = list(_places(body))
    if not places or rng.random() < 0.02:
        return _value(rng)
    holder, key = rng.choice(places)
    change: Callable[[], None] = rng.choice(
        (
            lambda: holder.__setitem__(key, _value(rng)),
            lambda: holder.__setitem__(key, _value(rng)),
            lambda: holder.__setitem__(key, _near(rng, holder[key])),
            lambda: holder.__setitem__(key, _near(rng, holder[key])),
            lambda: holder.__setitem__(key, [_copy(holder[key])] * rng.choice((1, 2, 3, 40))),
            lambda: holder.__setitem__(key, {"type": holder[key]}),
            lambda: holder.__delitem__(key),
            lambda: _foreign(rng, holder),
            lambda: _foreign(rng, holder),
        )
    )
    change()
    return body


def _places(body: Json) -> Any:
    """Every (container, key) in ``body``."""
    if isinstance(body, dict):
        items: Any = body.items()
    elif isinstance(body, list):
        items = enumerate(body)
    else:
        return
    for key, value in items:
        yield body, key
        yield from _places(value)


def _copy(body: Json) -> Json:
    return json.loads(json.dumps(body))


def _value(rng: random.Random, depth: int = 0) -> Json:
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return None
    if kind == 1:
        return rng.random() < 0.5
    if kind in (2, 3):
        return rng.choice(_NUMBERS)
    if kind == 4:
        return rng.choice(_WORDS)
    if kind == 5:
        return [_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 5)))]
    if kind == 6:
        return {rng.choice(_WORDS): _value(rng, depth + 1) for _ in range(rng.choice((0, 1, 3)))}
    return _copy(rng.choice([seed for seeds in SEEDS.values() for seed in seeds]))


def _near(rng: random.Random, value: Json) -> Json:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((*_NUMBERS, value + 1, -value, value * 10))
    if isinstance(value, str):
        return rng.choice((*_WORDS, value * 3, value[:-1], value + rng.choice(_WORDS)))
    if isinstance(value, list):
        return value * rng.choice((0, 2, 17)) + [_value(rng)]
    return _value(rng)


def _foreign(rng: random.Random, holder: Json) -> None:
    """Add a field, or an item, that lives somewhere else."""
    seed = rng.choice(rng.choice(list(SEEDS.values())))
    places = list(_places(seed))
    donor, key = rng.choice(places)
    value = _copy(donor[key])
    if isinstance(holder, dict):
        holder[key if isinstance(key, str) else rng.choice(_WORDS)] = value
    else:
        holder.append(value)


def _break(rng: random.Random, data: bytes) -> bytes:
    """No JSON any more, most likely."""
    cut = rng.randrange(len(data) + 1)
    return rng.choice(
        (
            data[:cut],
            data[:cut] + bytes([rng.randrange(256)]) + data[cut + 1 :],
            data[:cut] + b"\xff\xfe" + data[cut:],
            b"",
            b"[" * 5000,
            b'{"text":' * 3000,
            data + data,
            data.replace(b":", b""),
            b'{"text": NaN}',
            b"\xef\xbb\xbf" + data,
        )
    )
