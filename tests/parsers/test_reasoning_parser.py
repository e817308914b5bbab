"""What each reasoning format gives, and where the reasoning begins and ends."""

import pytest

from jaxserve.errors import InvalidRequestError
from jaxserve.parsers import REASONING_FORMATS, ReasoningParser, reasoning_format

PLAIN = sorted(name for name, format in REASONING_FORMATS.items() if not format.is_harmony)


def read(name, text, **options):
    return tuple(ReasoningParser(name, **options).push(text, is_last=True))


@pytest.mark.parametrize("name", PLAIN)
def test_reasoning_then_content(name):
    format = REASONING_FORMATS[name]
    answer = f"hm, why\n{format.think_end}\n\nThe answer.\n"
    wanted = ("hm, why", "The answer.\n")
    assert read(name, f"{format.think_start}\n{answer}") == wanted
    assert read(name, f"\n{format.think_start}{answer}", starts_inside=True) == wanted
    assert read(name, answer, starts_inside=True) == wanted
    assert read(name, f"{format.think_start}hm, wh") == ("hm, wh", "")
    assert read(name, f"{format.think_start}{format.think_end}Hi") == ("", "Hi")


@pytest.mark.parametrize("name", PLAIN)
def test_an_answer_without_reasoning(name):
    format = REASONING_FORMATS[name]
    text = f" Use {format.think_start} like this {format.think_end}."
    assert read(name, text, starts_inside=False) == ("", text)
    assert (read(name, "Hi") == ("Hi", "")) == format.always_starts_inside


@pytest.mark.parametrize("name", [n for n in PLAIN if REASONING_FORMATS[n].tool_start])
def test_a_tool_call_ends_the_reasoning(name):
    format = REASONING_FORMATS[name]
    text = f"{format.think_start}hm {format.tool_start}x"
    assert read(name, text) == ("hm", f"{format.tool_start}x")
    assert read(name, text, ends_at_tool_call=False) == (f"hm {format.tool_start}x", "")


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi"
         "<|return|>", "hm", "Hi"),
        ("<|channel|>analysis<|message|>hm", "hm", ""),
        ("<|channel|>final<|message|>Hi", "", "Hi"),
        ("<|channel|>final <|constrain|>json<|message|>{}", "", "{}"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b"
         "<|end|><|start|>assistant<|channel|>commentary<|message|>c<|end|>", "ab", "c"),
        ("Hi", "", "Hi"),
        ("<|channel|>strange words<|message|>Hi<|end|>", "",
         "<|channel|>strange words<|message|>Hi<|end|>"),
        ("<|channel|>analysis to=python<|message|>1+1<|call|>", "",
         "<|channel|>analysis to=python<|message|>1+1<|call|>"),
        ("<|channel|>analysis<|message|>hm<|channel|>final<|message|>Hi", "hm", "Hi"),
        ("<|channel|>" + "x" * 600 + "<|message|>", "", "<|channel|>" + "x" * 600 + "<|message|>"),
    ],
)  # fmt: skip
def test_gpt_oss(text, reasoning, content):
    assert read("gpt-oss", text) == (reasoning, content)


def test_gpt_oss_goes_on_inside():
    assert read("gpt-oss", "hm<|end|>", starts_inside=True) == ("hm", "")


def test_is_reasoning_follows_the_text():
    parser = ReasoningParser("qwen3")
    assert not parser.is_reasoning
    parser.push("<think>hm")
    assert parser.is_reasoning
    parser.push("</think>Hi")
    assert not parser.is_reasoning
    assert ReasoningParser("deepseek-r1").is_reasoning
    parser = ReasoningParser("gpt-oss")
    parser.push("<|channel|>analysis<|message|>hm")
    assert parser.is_reasoning
    parser.push("<|end|><|start|>assistant<|channel|>final<|message|>Hi")
    assert not parser.is_reasoning


def test_only_the_beginning_of_a_marker_and_blanks_wait():
    parser = ReasoningParser("qwen3")
    assert parser.push("<thi") == ("", "")
    assert parser.push("nk>\nI </") == ("I", "")
    assert parser.push("b> \n") == (" </b>", "")
    assert parser.push("</think>") == ("", "")
    assert parser.push("\n\n<think> <") == ("", "<think> <")


@pytest.mark.parametrize(
    ("name", "prompt", "inside"),
    [
        ("qwen3", "<|im_start|>assistant\n", False),
        ("qwen3", "<|im_start|>assistant\n<think>\n", True),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("qwen3-thinking", "<|im_start|>assistant\n<think>\n", True),
        ("deepseek-r1", "<｜Assistant｜>", True),
        ("deepseek-r1", "<｜Assistant｜><think>\n\n</think>", False),
        ("deepseek-v3", "<｜Assistant｜></think>", False),
        ("gpt-oss", "<|start|>assistant", False),
        ("gemma4", "<|turn>model\n<|channel>thought\n<channel|>", False),
    ],
)
def test_the_prompt_tells_whether_the_answer_begins_inside(name, prompt, inside):
    assert reasoning_format(name).starts_inside(prompt) is inside


@pytest.mark.parametrize(
    ("name", "kwargs", "effort", "enabled"),
    [
        ("qwen3", {}, None, True),
        ("qwen3", {"enable_thinking": False}, None, False),
        ("qwen3", {"enable_thinking": None}, "none", True),
        ("mimo", {}, None, False),
        ("mimo", {"enable_thinking": True}, None, True),
        ("deepseek-v3", {"thinking": True}, None, True),
        ("deepseek-v3", {"enable_thinking": True}, None, False),
        ("kimi_k2", {}, None, True),
        ("mistral", {}, None, False),
        ("mistral", {}, "high", True),
        ("hunyuan", {"reasoning_effort": "no_think"}, "high", False),
        ("deepseek-r1", {"enable_thinking": False}, None, True),
    ],
)
def test_thinking_is_turned_on_and_off(name, kwargs, effort, enabled):
    assert reasoning_format(name).is_enabled(kwargs, effort) is enabled


def test_errors():
    with pytest.raises(
        InvalidRequestError, match=r"'nope' is not supported: choose one of .*qwen3"
    ):
        ReasoningParser("nope")
    parser = ReasoningParser("qwen3")
    parser.push("", is_last=True)
    with pytest.raises(ValueError, match="this answer has ended"):
        parser.push("more")
