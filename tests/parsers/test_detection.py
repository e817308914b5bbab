"""``auto``: the formats of the model families, from what their chat templates write."""

import pytest

from jaxserve.parsers import REASONING_FORMATS, TOOL_FORMATS, detect

PROMPT = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n"
HERMES = '<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>'
QWEN3 = "{%- if enable_thinking is defined and enable_thinking is false %}<think>\\n\\n</think>"
XML = "<tool_call>\\n<function=f>\\n<parameter=p>\\nv\\n</parameter>"
DEEPSEEK = "{{'<｜Assistant｜>'}}{% if '</think>' in content %}"

# What tells the families apart, in the words of their templates.
TEMPLATES = {
    "chatml": ("{{'<|im_start|>' + message.role}}", None, None),
    "qwen2.5": (HERMES + PROMPT, None, "qwen25"),
    "qwen3": (HERMES + PROMPT + QWEN3, "qwen3", "qwen25"),
    "qwen3 thinking": (HERMES + "</think>" + PROMPT + "<think>\\n'}}", "qwen3-thinking", "qwen25"),
    "qwen3 instruct": (HERMES + "{% if '</think>' in content %}" + PROMPT, "qwen3", "qwen25"),
    "qwen3 coder": (XML + PROMPT, None, "qwen3_coder"),
    "mimo": (
        "{% if not enable_thinking is defined %}{% set enable_thinking = false %}<think>" + XML,
        "mimo",
        "qwen3_coder",
    ),
    "llama 3.1": ("<|start_header_id|>{{- '<|python_tag|>' + tool_call.name }}", None, "llama3"),
    "llama 3.2": (
        '<|start_header_id|>{"name": function name, "parameters": dictionary of argument name',
        None,
        "llama3",
    ),
    "llama 4": ("<|header_start|>[func_name1(params_name1=params_value1)]", None, "pythonic"),
    "mistral": ("[TOOL_CALLS] [", None, "mistral"),
    "magistral": ("[THINK][TOOL_CALLS][ARGS]", "mistral", "mistral"),
    "deepseek v3": ("<｜tool▁calls▁begin｜>\\n```json\\n", None, "deepseekv3"),
    "deepseek r1": (DEEPSEEK + "<｜tool▁calls▁begin｜>\\n```json", "deepseek-r1", "deepseekv3"),
    "deepseek v3.1": (
        DEEPSEEK + "{% set thinking = false %}<｜tool▁calls▁begin｜><｜tool▁sep｜>",
        "deepseek-v3",
        "deepseekv31",
    ),
    "deepseek v3.2": ("<｜DSML｜function_calls>", None, "deepseekv32"),
    "deepseek v4": ("<｜DSML｜tool_calls>", None, "deepseekv4"),
    "kimi vl": ("◁think▷", "kimi", None),
    "kimi k2": ("<|tool_calls_section_begin|>", None, "kimi_k2"),
    "kimi k2 thinking": ("<think></think><|tool_calls_section_begin|>", "kimi_k2", "kimi_k2"),
    "glm 4.5": ("[gMASK]<sop><think></think><tool_call><arg_key><arg_value>", "glm45", "glm45"),
    "gpt-oss": ("<|start|>assistant<|channel|>analysis<|message|>", "gpt-oss", "gpt-oss"),
    "minimax m2": ("<minimax:tool_call><think>", "minimax", "minimax-m2"),
    "step 3": ('<think><｜tool_calls_begin｜><steptml:invoke name="', "step3", "step3"),
    "intern s1": (
        "{% set default_thinking_sys %}<think><|action_start|><|plugin|>",
        "interns1",
        "interns1",
    ),
    "gemma 4": ("<|channel>thought\\n<channel|><|tool_call>call:", "gemma4", "gemma4"),
    "hunyuan": ("<think><tool_calls><tool_call>x<tool_sep>", "hunyuan", "hunyuan"),
    "lfm2": ("List of tools: <|tool_list_start|>[", None, "lfm2"),
    "nemotron 3": (
        "truncate_history_thinking enable_thinking <think>" + XML,
        "nemotron_3",
        "qwen3_coder",
    ),
}


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_detect(family):
    template, reasoning, tools = TEMPLATES[family]
    assert detect(template) == (reasoning, tools)
    assert reasoning is None or reasoning in REASONING_FORMATS
    assert tools is None or tools in TOOL_FORMATS


def test_no_template():
    assert detect(None) == (None, None)
