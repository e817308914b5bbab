"""What each tool call format gives, and what becomes of markup that is not quite one."""

import json

import pytest
from parsers.parser_samples import CALLS, SAMPLES, TOOLS

from jaxserve.errors import InvalidRequestError
from jaxserve.parsers import (
    TOOL_FORMATS,
    JsonArrayToolParser,
    ReasoningParser,
    ToolCallParser,
    new_call_id,
    tool_format,
)


def parse(name, text, tools=TOOLS):
    return ToolCallParser(name, tools).parse(text)


def calls_of(name, text):
    return [(call.name, json.loads(call.arguments)) for call in parse(name, text).calls]


def test_there_is_a_sample_of_every_format():
    assert set(SAMPLES) == set(TOOL_FORMATS)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_well_formed_answer_gives_its_calls(name):
    before, after = "Let me see.\n\n", "\nBye."
    whole = parse(name, before + SAMPLES[name] + after)
    assert whole.content == "Let me see.Bye."
    assert [(call.name, json.loads(call.arguments)) for call in whole.calls] == CALLS
    assert [(call.index, call.tool_index) for call in whole.calls] == [(0, 0), (1, 1)]


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_calls_of_functions_that_were_not_declared_are_content(name):
    others = [{"type": "function", "function": {"name": "other"}}]
    assert parse(name, SAMPLES[name], others) == (SAMPLES[name], ())
    assert parse(name, SAMPLES[name], []) == (SAMPLES[name], ())


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_call_that_is_cut_off_keeps_what_it_has(name):
    sample = SAMPLES[name]
    for end in range(len(sample)):
        whole = parse(name, sample[:end])
        if not whole.calls:
            assert whole.content == sample[:end]
            continue
        first, *rest = whole.calls
        assert first.name == "get_weather" and len(rest) <= 1
        assert rest == [] or json.loads(first.arguments) == CALLS[0][1]


@pytest.mark.parametrize(
    ("name", "text", "content", "arguments"),
    [
        # the end marker, the closing brace or both are missing
        ("hermes", '<tool_call>{"name": "now", "arguments": {}}', "", ["{}"]),
        ("hermes", '<tool_call>{"name": "now", "arguments": {}\n</tool_call>', "", ["{}"]),
        ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", ["{}"]),
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call>', "",
         ['{"a": 1}']),
        ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", ["{}"]),
        ("hermes", '<tool_call>[{"name": "now", "id": "x"}]</tool_call>', "", ["{}"]),
        # an object written as a string, as older templates do
        ("hermes", r'<tool_call>{"name": "now", "arguments": "{\"a\": 1}"}', "", ['{"a": 1}']),
        # what models write into JSON strings although they must not
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "x\ny\\d"}}', "",
         [r'{"a": "x\ny\\d"}']),
        ("llama3", r"""{'name': 'now', 'parameters': {'a': 'it\'s "x"', 'b': [None, True]}}""", "",
         [r'''{"a": "it's \"x\"", "b": [null, true]}''']),
        ("hermes", "<tool_call>{'name': 'now', 'arguments': {'a': Tru", "", ['{"a": tru']),
        # breaks off inside the arguments: they stay a prefix of JSON, and the rest is text
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": oops}}</tool_call>',
         "oops}}</tool_call>", ['{"a": ']),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": tr', "", ['{"a": tr']),
        ("hermes", '<tool_call>{"name": "now", "arguments": 5 oops', "oops", ["5"]),
        # what else the object says is not lost
        ("hermes", '<tool_call>{"why": "so", "name": "now", "arguments": {}}</tool_call>',
         '"why": "so"', ["{}"]),
        ("hermes", '<tool_call>{"name": "now", "why": "so"}</tool_call>',
         '<tool_call>{"name": "now", "why": "so"}</tool_call>', []),
        # look-alikes
        ("hermes", "a <tool_call> is a tag", "a <tool_call> is a tag", []),
        ("hermes", "<tool_call><tool_call>{\"name\": \"now\"}", "<tool_call>", ["{}"]),
        ("hermes", "<tool_call>[]</tool_call>", "<tool_call>[]</tool_call>", []),
        ("llama3", ' {"name": "now", "parameters": {}}', "", ["{}"]),
        ("llama3", ' {"answer": 3}', ' {"answer": 3}', []),
        ("llama3", 'So: {"name": "now", "parameters": {}}', None, []),
        ("mistral", '[TOOL_CALLS]now[ARGS]{"a": 1}[TOOL_CALLS]now[ARGS]{}', "", ['{"a": 1}', "{}"]),
        ("mistral", '[TOOL_CALLS]now[CALL_ID]abc123XYZ[ARGS]{"a": 1}', "", ['{"a": 1}']),
        ("mistral", '[TOOL_CALLS]now{"a": 1}', "", ['{"a": 1}']),
        ("mistral", "[TOOL_CALLS] not a call", "[TOOL_CALLS] not a call", []),
        ("kimi_k2", '<|tool_call_begin|>now:0<|tool_call_argument_begin|>{}<|tool_call_end|>', "",
         ["{}"]),
        ("pythonic", "See [1] and [now] and [nope(a=1)].", None, []),
        ("pythonic", "<|python_start|>[now()]<|python_end|>", "", ["{}"]),
        ("pythonic", '[now(a=-1, b=None, c=[true, (1, 2)], d={"k": .5}, e="x\ny")]', "",
         [r'{"a": -1, "b": null, "c": [true, [1, 2]], "d": {"k": 0.5}, "e": "x\ny"}']),
        ("pythonic", "[now(a=os.system('x'))]", None, []),
        ("pythonic", "[now(1)]", None, []),
        ("pythonic", "[now(a=b'x')]", None, []),
        ("pythonic", "[now(a=1e999)]", None, []),
        ("pythonic", "[now(a=" + "[" * 100 + "]" * 100 + ")]", None, []),
        ("lfm2", '<|tool_call_start|>[{"name": "now", "arguments": {}}]<|tool_call_end|>', "",
         ["{}"]),
        ("lfm2", "<|tool_call_start|>now(a=1)<|tool_call_end|>", "", ['{"a": 1}']),
        ("deepseekv32", '<｜DSML｜function_calls>\n<｜DSML｜invoke name="now">\n{"a": 1}\n'
         "</｜DSML｜invoke>\n</｜DSML｜function_calls>", "", ['{"a": 1}']),
        ("gemma4", '<|tool_call>call:now{a:{<|"|>b<|"|>:[true,<|"|>x<|"|>]},c:maybe}<tool_call|>',
         "", ['{"a": {"b": [true, "x"]}, "c": "maybe"}']),
        ("gemma4", "<|tool_call>call:now{a:{b:1 c}<tool_call|>", "<tool_call|>",
         ['{"a": {"b": "1 c"}']),
        ("gemma4", "<|tool_call>call:now{a:,b:None}<tool_call|>", "", ['{"a": "", "b": null}']),
        ("gemma4", "<|tool_call>call:now{a:1,oops}<tool_call|>", ",oops}<tool_call|>",
         ['{"a": 1']),
        ("glm45", "<tool_call>now\n<arg_key>a</arg_key><arg_value>1</arg_value>\n<tool_call>now\n"
         "</tool_call>", "", ['{"a": 1}', "{}"]),
        ("gpt-oss", "<|channel|>final<|message|>Hi<|return|>", None, []),
        ("gpt-oss", '<|channel|>commentary to=browser.open<|message|>{"a": 1}<|call|>', None, []),
        ("gpt-oss", '<|channel|>commentary to=functions.now<|message|>{"a": 1}', "", ['{"a": 1}']),
    ],
)  # fmt: skip
def test_markup_that_is_not_quite_a_call(name, text, content, arguments):
    """``content`` None: the text as it is."""
    whole = parse(name, text)
    assert [call.arguments for call in whole.calls] == arguments
    assert whole.content == (text if content is None else content)


@pytest.mark.parametrize(
    ("types", "text", "value"),
    [
        ({"type": "integer"}, " 3 ", 3),
        ({"type": "integer"}, "three", "three"),
        ({"type": "number"}, "1e2", 100.0),
        ({"type": "boolean"}, "True", True),
        ({"type": "string"}, "3", "3"),
        ({"type": "string"}, "null", "null"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "3", "3"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "3", 3),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "x", "x"),
        ({"type": "object"}, '{"a":\n [1]}', {"a": [1]}),
        ({"type": "object"}, "{'a': None}", {"a": None}),
        ({"type": "object"}, "not one", "not one"),
        ({"type": "array"}, "(1, 2)", [1, 2]),
        ({"enum": ["a", "b"]}, "a", "a"),
        ({"enum": [1, 2]}, "2", 2),
        ({"const": True}, "true", True),
        ({"$ref": "#/$defs/n"}, "4", 4),
        ({"properties": {}}, "{}", {}),
        ({"items": {}}, "[]", []),
        ({"type": "float"}, "2.5", 2.5),
        ({}, "NaN", "NaN"),
        ({"type": "number"}, "[" * 100_000, "[" * 100_000),
    ],
)
def test_a_plain_text_value_becomes_what_the_schema_says(types, text, value):
    definitions = {"n": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}}
    schema = {"type": "object", "properties": {"x": types}, "$defs": definitions}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    glm = f"<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>"
    coder = f"<tool_call><function=f><parameter=x>\n{text}\n</parameter></function></tool_call>"
    for name, answer in (("glm45", glm), ("qwen3_coder", coder)):
        (call,) = parse(name, answer, tools).calls
        assert json.loads(call.arguments) == {"x": value}


def test_a_schema_that_refers_to_itself_many_times_takes_no_time():
    rings = {f"r{i}": {"anyOf": [{"$ref": f"#/$defs/r{j}"} for j in range(30)]} for i in range(30)}
    schema = {"properties": {"x": {"$ref": "#/$defs/r0"}}, "$defs": rings}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    text = "<function=f><parameter=x>1</parameter></function>"
    assert parse("qwen3_coder", text, tools).calls[0].arguments == '{"x": "1"}'


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"properties": {"x": {}}},
        {"properties": {"x": {"$ref": "#/$defs/none"}}},
        {
            "properties": {"x": {"$ref": "#/$defs/loop"}},
            "$defs": {"loop": {"$ref": "#/$defs/loop"}},
        },
    ],
)
def test_values_whose_type_the_schema_does_not_name(schema):
    tools = [{"type": "function", "function": {"name": "now", "parameters": schema}}]
    glm = "<tool_call>now\n<arg_key>x</arg_key><arg_value>3</arg_value></tool_call>"
    assert parse("glm45", glm, tools).calls[0].arguments == '{"x": 3}'
    coder = "<function=now><parameter=x>3</parameter></function>"
    assert parse("qwen3_coder", coder, tools).calls[0].arguments == '{"x": "3"}'


@pytest.mark.parametrize(
    "body",
    [
        "<parameter=city>\nA\n</parameter>\n<parameter=days>\n3\n</function>",
        "<parameter=city>\nA\n<parameter=days>\n3\n</parameter>\n</function>",
        "<parameter=city>\nA\n</parameter>\n<parameter=days>\n3\n</parameter>\n",
    ],
)
def test_qwen3_coder_may_forget_closing_tags(body):
    text = f"<tool_call>\n<function=get_weather>\n{body}</tool_call>\n" + SAMPLES["qwen3_coder"]
    assert calls_of("qwen3_coder", text) == [("get_weather", {"city": "A", "days": 3}), *CALLS]


def test_string_values_come_as_they_are_written():
    text = SAMPLES["qwen3_coder"]
    parser = ToolCallParser("qwen3_coder", TOOLS)
    end = text.index("\nRhein")
    deltas = parser.push(text[:end]).calls
    assert deltas[0].name == "get_weather" and deltas[0].arguments == ""
    assert deltas[1].arguments == '{"city": "Köln \\"am\\"'


def test_content_waits_only_where_a_marker_may_begin():
    parser = ToolCallParser("hermes", TOOLS)
    assert parser.push("if a <").content == "if a"
    assert parser.push(" b <tool").content == " < b"
    assert parser.push("box>").content == " <toolbox>"
    parser = ToolCallParser("pythonic", TOOLS)
    assert parser.push("see [").content == "see"
    assert parser.push("1").content == " [1"


def test_names_are_not_limited_to_words():
    call = '[run-code.v2(code="1")]'
    assert calls_of("pythonic", call) == [("run-code.v2", {"code": "1"})]


def test_python_strings_hide_brackets_however_they_are_cut():
    text = """[now(a=\"\"\"x " ) y\"\"\", b='wxyz\\')')]"""
    parser = ToolCallParser("pythonic", TOOLS)
    deltas = [delta for char in text for delta in parser.push(char).calls]
    assert json.loads("".join(d.arguments for d in deltas)) == {"a": 'x " ) y', "b": "wxyz')"}


def test_ids():
    assert new_call_id("kimi_k2", "now", 3) == "functions.now:3"
    first, second = (new_call_id("hermes", "now", 0) for _ in range(2))
    assert first != second and first.startswith("call_") and len(first) == 29
    whole = ToolCallParser("kimi_k2", TOOLS, first_index=2).parse(SAMPLES["kimi_k2"])
    assert [call.id for call in whole.calls] == ["functions.get_weather:2", "functions.now:3"]


def test_forced_arrays():
    text = json.dumps([{"name": name, "parameters": value} for name, value in CALLS])
    whole = JsonArrayToolParser(TOOLS, format="kimi_k2").parse(text)
    assert [(call.name, json.loads(call.arguments)) for call in whole.calls] == CALLS
    assert (whole.content, whole.calls[1].id) == ("", "functions.now:1")
    assert JsonArrayToolParser(TOOLS).parse("Sorry.") == ("Sorry.", ())


def test_gpt_oss_reasoning_and_calls_work_together():
    answer = (
        "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant<|channel|>commentary"
        f"<|message|>One moment.<|end|><|start|>assistant{SAMPLES['gpt-oss']}"
    )
    reasoning, content = ReasoningParser("gpt-oss").push(answer, is_last=True)
    whole = parse("gpt-oss", content)
    assert (reasoning, whole.content) == ("Look it up.", "One moment.")
    assert [(call.name, json.loads(call.arguments)) for call in whole.calls] == CALLS


def test_tools_in_the_form_of_the_responses_api():
    tools = [{"type": "function", "name": "now", "parameters": {}}]
    assert parse("hermes", '<tool_call>{"name": "now"}', tools).calls[0].arguments == "{}"


def test_errors():
    with pytest.raises(
        InvalidRequestError, match=r"'nope' is not supported: choose one of .*qwen25"
    ):
        tool_format("nope")
    with pytest.raises(InvalidRequestError, match="tool_call_parser 'kimi_k3' is not supported"):
        ToolCallParser("kimi_k3", TOOLS)
    with pytest.raises(InvalidRequestError, match="Tool 1 has no function name"):
        ToolCallParser("hermes", [TOOLS[0], {"type": "function", "function": {}}])
    parser = ToolCallParser("hermes", TOOLS)
    parser.push("", is_last=True)
    with pytest.raises(ValueError, match="this answer has ended"):
        parser.push("more")
