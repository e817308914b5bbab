"""The laws of the parsers, for random texts and random cuts of them."""

import json
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsers.parser_samples import CALLS, SAMPLES, TOOLS

from jaxserve.parsers import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    JsonArrayToolParser,
    ReasoningParser,
    ToolCallParser,
)

REASONING_MARKERS = sorted(
    {f.think_start for f in REASONING_FORMATS.values()}
    | {f.think_end for f in REASONING_FORMATS.values()}
    | {"<|start|>assistant<|channel|>final<|message|>", "<|return|>", "<tool_call>"}
)
HARMONY = (
    "<|channel|>analysis<|message|>hm, why<|end|><|start|>assistant<|channel|>commentary "
    "to=functions.now <|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>final"
    "<|message|>The answer.<|return|>"
)
# Several names share one format: each format once.
each_tool_format = pytest.mark.parametrize(
    "name", sorted({repr(format.engine): name for name, format in TOOL_FORMATS.items()}.values())
)
each_reasoning_format = pytest.mark.parametrize(
    "name",
    sorted(
        {
            replace(f, toggle=None, toggle_default=True): n for n, f in REASONING_FORMATS.items()
        }.values()
    ),
)


def cut(text: str, positions: list[int]) -> list[str]:
    ends = sorted({position % (len(text) + 1) for position in positions})
    return [text[i:j] for i, j in zip([0, *ends], [*ends, len(text)], strict=True)]


def pieces_of(sample: str) -> list[str]:
    """The sample's words and marks, to be put together anew, and its whole calls."""
    return [sample, *re.findall(r"<[^<>]*>|\[/?[A-Z_]+\]|```json|\w+|\s+|[^\w\s]", sample)]


@st.composite
def texts(draw, sample: str, markers: list[str] = ()) -> tuple[str, list[str]]:
    """Calls, well-formed, cut short or with holes, and their parts in disorder, between words.

    Strange words are strewn in last, anywhere: wherever one lands, it must come out again.
    """
    words = st.sampled_from(
        [*pieces_of(sample), *markers, "é", "🦜", " \n", "<", "{", '"', "\\", "[1]"]
    )
    noise = st.text(alphabet="ab <>|[]{}\":,\\\n\t'(=é🦜\x01", max_size=12)
    shortened = st.integers(0, len(sample)).map(lambda end: sample[:end])
    with_hole = st.tuples(st.integers(0, len(sample)), st.integers(1, 6)).map(
        lambda hole: sample[: hole[0]] + sample[hole[0] + hole[1] :]
    )
    part = st.one_of(st.just(sample), shortened, with_hole, words, words, noise)
    text = "".join(draw(st.lists(part, max_size=6)))
    strange = [f"8q{number}q" for number in range(draw(st.integers(0, 3)))]
    for word in strange:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + word + text[at:]
    return text, [word for word in strange if word in text]


cuts = st.one_of(
    st.lists(st.integers(0, 10_000), max_size=8),
    st.just(list(range(10_000))),  # one character at a time
)


def run(parser, pieces):
    """(content, [(id, name, arguments)]) of a text in pieces; the order of deltas is checked."""
    content, calls = [], []
    for number, piece in enumerate(pieces):
        increment = parser.push(piece, number == len(pieces) - 1)
        content.append(increment.content)
        for delta in increment.calls:
            if delta.name is not None:
                assert delta.index == len(calls) and delta.arguments == "" and delta.id
                calls.append([delta.name, ""])
            else:
                assert delta.index == len(calls) - 1 and delta.id is None and delta.arguments
                calls[-1][1] += delta.arguments
    return "".join(content), calls


def is_json_prefix(text: str) -> bool:
    """Whether more text could make it valid, tried with an independent reader of JSON."""
    if not text:
        return True
    closers, in_string, escaped = [], False, False
    for char in text:
        if in_string:
            in_string = escaped or char != '"'
            escaped = not escaped and char == "\\"
        elif char == '"':
            in_string = True
        elif char in "{[":
            closers.append("}" if char == "{" else "]")
        elif char in "}]":
            assert closers and closers.pop() == char
    tail = "".join(reversed(closers))
    heads = (
        [text + '"', text + 'n"', text + '000"', text + '00"', text + '0"'] if in_string else [text]
    )
    ends = [
        "",
        ":0",
        "0",
        ' "a":0',
        '"a":0',
        "ull",
        "rue",
        "ue",
        "e",
        "alse",
        "lse",
        "se",
        "ll",
        "l",
    ]
    return any(_loads(head + end + tail) for head in heads for end in [*ends, ', "a":0'])


def _loads(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def assert_whole(words: list[str], said: str, text: str) -> None:
    assert not [word for word in words if word not in said], (text, said)


@each_tool_format
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_calls_in_pieces_are_the_one_shot_parse_and_nothing_is_lost(name, data):
    text, strange = data.draw(texts(SAMPLES[name]))
    content, calls = run(ToolCallParser(name, TOOLS), cut(text, data.draw(cuts)))
    whole = ToolCallParser(name, TOOLS).parse(text)
    assert content == whole.content
    assert calls == [[call.name, call.arguments] for call in whole.calls]
    assert all(is_json_prefix(call.arguments) for call in whole.calls), whole.calls
    if not whole.calls:
        assert content == text
    assert_whole(strange, content + "".join(call.arguments for call in whole.calls), text)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_forced_array_in_pieces_is_the_one_shot_parse(data):
    sample = json.dumps([{"name": name, "parameters": value} for name, value in CALLS])
    text, strange = data.draw(texts(sample))
    content, calls = run(JsonArrayToolParser(TOOLS), cut(text, data.draw(cuts)))
    whole = JsonArrayToolParser(TOOLS).parse(text)
    assert content == whole.content
    assert calls == [[call.name, call.arguments] for call in whole.calls]
    assert_whole(strange, content + "".join(call.arguments for call in whole.calls), text)


@each_reasoning_format
@given(data=st.data(), inside=st.sampled_from([None, True, False]), tools=st.booleans())
@settings(max_examples=60, deadline=None)
def test_reasoning_in_pieces_is_the_one_shot_parse_and_nothing_is_lost(name, data, inside, tools):
    format = REASONING_FORMATS[name]
    sample = f"{format.think_start}\nhm, why\n{format.think_end}\n\nThe answer. "
    if format.is_harmony:
        sample = HARMONY
    text, strange = data.draw(texts(sample, [*REASONING_MARKERS, format.tool_start or ""]))

    def read(pieces):
        parser = ReasoningParser(name, starts_inside=inside, ends_at_tool_call=tools)
        parts = [parser.push(piece, n == len(pieces) - 1) for n, piece in enumerate(pieces)]
        return "".join(p.reasoning for p in parts), "".join(p.content for p in parts)

    reasoning, content = read(cut(text, data.draw(cuts)))
    assert (reasoning, content) == read([text])
    assert_whole(strange, reasoning + content, text)
    if not format.is_harmony:
        markup = text.count(format.think_start), text.count(format.think_end)
        dropped = len("".join(text.split())) - len("".join((reasoning + content).split()))
        lengths = len(format.think_start), len(format.think_end)
        assert dropped in {a * lengths[0] + b * lengths[1] for a in (0, 1) for b in (0, 1)}, markup


@each_tool_format
def test_little_is_held_back_and_read_again(name):
    """One character at a time: what a push looks at does not grow with the text."""
    long = SAMPLES[name].replace("Köln", "Köln" * 2_000)
    text = long + long[: len(long) // 2] + "<tool [ a" * 500
    parser = ToolCallParser(name, TOOLS)
    for char in text:
        parser.push(char)
        assert len(parser._source.window) < 600


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder"])
def test_200_kb_one_character_at_a_time(name):
    text = SAMPLES[name].replace("Köln", "Köln" * 50_000)
    start = time.process_time()
    _, calls = run(ToolCallParser(name, TOOLS), list(text))
    assert calls[0][1].count("Köln") == 50_000
    assert time.process_time() - start < 10.0  # about 1 s


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gpt-oss", "<|channel|>" + "to=" * 160 + "<x<|message|>"),
        ("gpt-oss", "<|start|>" * 20_000),
        ("hermes", "<tool_call>" * 20_000),
        ("hermes", '<tool_call>{"' * 15_000),
        ("glm45", "<tool_call>get_weather " * 10_000),
        ("qwen3_coder", "<tool_call><function=now><parameter=" * 5_000),
        ("mistral", "[TOOL_CALLS]now" * 10_000),
        ("pythonic", "[now(" * 30_000),
        ("pythonic", "[[[[" * 30_000),
        ("gemma4", "<|tool_call>call:now{a:" * 8_000),
        ("deepseekv3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>" * 5_000),
    ],
)
def test_no_text_takes_long(name, text):
    start = time.process_time()
    whole = ToolCallParser(name, TOOLS).parse(text)
    assert len(whole.content) + sum(len(call.arguments) for call in whole.calls) > 0
    assert time.process_time() - start < 5.0
