"""A well-formed answer with two calls in every tool call format, as its chat template writes it."""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "units": {"type": ["string", "null"]},
                    "spots": {"type": "array", "items": {"type": "string"}},
                    "options": {"$ref": "#/$defs/options"},
                },
                "$defs": {"options": {"type": "object"}},
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "run-code.v2", "parameters": {
        "type": "object", "properties": {"code": {"type": "string"}}}}},
]  # fmt: skip

# What every sample below calls.
CALLS = [
    ("get_weather", {"city": 'Köln "am"\nRhein', "days": 3, "spots": ["Dom", "a<b"]}),
    ("now", {}),
]

_ARGUMENTS = r'{"city": "Köln \"am\"\nRhein", "days": 3, "spots": ["Dom", "a<b"]}'
_OBJECT = f'{{"name": "get_weather", "arguments": {_ARGUMENTS}}}'
_NOW = '{"name": "now", "arguments": {}}'

_HERMES = f"<tool_call>\n{_OBJECT}\n</tool_call>\n<tool_call>\n{_NOW}\n</tool_call>"
_GLM = (
    '<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Köln "am"\nRhein</arg_value>\n'
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n<arg_key>spots</arg_key>\n"
    '<arg_value>["Dom", "a<b"]</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>'
)
_QWEN3_CODER = (
    '<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln "am"\nRhein\n</parameter>\n'
    "<parameter=days>\n3\n</parameter>\n<parameter=spots>\n"
    '["Dom", "a<b"]\n</parameter>\n</function>\n</tool_call>\n'
    "<tool_call>\n<function=now>\n</function>\n</tool_call>"
)


def _dsml(block: str, space: str = "") -> str:
    d = "｜DSML｜" + space
    return (
        f'<{d}{block}>\n<{d}invoke name="get_weather">\n'
        f'<{d}parameter name="city" string="true">Köln "am"\nRhein</{d}parameter>\n'
        f'<{d}parameter name="days" string="false">3</{d}parameter>\n'
        f'<{d}parameter name="spots" string="false">["Dom", "a<b"]</{d}parameter>\n'
        f'</{d}invoke>\n<{d}invoke name="now">\n</{d}invoke>\n</{d}{block}>'
    )


def _elements(section: str, tag: str = "", before: str = "", after: str = "") -> str:
    return (
        f'<{section}>\n{before}<{tag}invoke name="get_weather">\n'
        f'<{tag}parameter name="city">Köln "am"\nRhein</{tag}parameter>\n'
        f'<{tag}parameter name="days">3</{tag}parameter>\n'
        f'<{tag}parameter name="spots">["Dom", "a<b"]</{tag}parameter>\n</{tag}invoke>{after}\n'
        f'{before}<{tag}invoke name="now">\n</{tag}invoke>{after}\n'
    )


SAMPLES: dict[str, str] = {
    "deepseekv3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        f"{_ARGUMENTS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n"
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseekv31": (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{_ARGUMENTS}"
        "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>"
    ),
    "deepseekv32": _dsml("function_calls"),
    "deepseekv4": _dsml("tool_calls"),
    "deepseekv41": _dsml("calls", " "),
    "dots": _elements("dots_function_call") + "</dots_function_call>",
    "gemma4": (
        '<|tool_call>call:get_weather{city:<|"|>Köln "am"\nRhein<|"|>,days:3,'
        'spots:[<|"|>Dom<|"|>,<|"|>a<b<|"|>]}<tool_call|><|tool_call>call:now{}<tool_call|>'
    ),
    "glm": _GLM,
    "glm45": _GLM,
    "glm47": _GLM.replace("\n<", "<"),
    "gpt-oss": (
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        f"{_ARGUMENTS}<|call|><|start|>assistant to=functions.now<|channel|>commentary json"
        "<|message|>{}<|call|>"
    ),
    "hermes": _HERMES,
    "hunyuan": (
        "<tool_calls>\n<tool_call>get_weather<tool_sep>\n<arg_key>city</arg_key>\n"
        '<arg_value>Köln "am"\nRhein</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3'
        '</arg_value>\n<arg_key>spots</arg_key>\n<arg_value>["Dom", "a<b"]</arg_value>\n'
        "</tool_call>\n<tool_call>now<tool_sep>\n</tool_call>\n</tool_calls>"
    ),
    "interns1": (
        f"<|action_start|> <|plugin|>\n{_OBJECT.replace('arguments', 'parameters')}<|action_end|>\n"
        f"<|action_start|> <|plugin|>\n{_NOW}<|action_end|>"
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        f"<|tool_call_argument_begin|>{_ARGUMENTS}<|tool_call_end|><|tool_call_begin|>"
        "functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
    ),
    "lfm2": (
        "<|tool_call_start|>[get_weather(city='Köln \"am\"\\nRhein', days=3, "
        'spots=["Dom", """a<b"""]), now()]<|tool_call_end|>'
    ),
    "ling3": _GLM,
    "llama3": f"<|python_tag|>{_OBJECT.replace('arguments', 'parameters')}; {_NOW}",
    "mimo": (
        '<tool_call>\n<function=get_weather>\n<parameter=city>Köln "am"\nRhein</parameter>\n'
        '<parameter=days>3</parameter>\n<parameter=spots>["Dom", "a<b"]</parameter>\n'
        "</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>"
    ),
    "minimax-m2": _elements("minimax:tool_call") + "</minimax:tool_call>",
    "mistral": f"[TOOL_CALLS] [{_OBJECT}, {_NOW}]",
    "nanbeige": _QWEN3_CODER,
    "poolside_v1": _GLM,
    "pythonic": (
        "[get_weather(city='Köln \"am\"\\nRhein', days=3, spots=[\"\"\"Dom\"\"\", 'a<b']), now()]"
    ),
    "qwen": _HERMES,
    "qwen25": _HERMES,
    "qwen3_coder": _QWEN3_CODER,
    "spark25": _GLM.replace("</arg_key>\n", "</arg_key>"),
    "step3": _elements(
        "｜tool_calls_begin｜", "steptml:", "<｜tool_call_begin｜>function<｜tool_sep｜>",
        "<｜tool_call_end｜>",
    ) + "<｜tool_calls_end｜>",
    "step3p5": _QWEN3_CODER,
    "trinity": _HERMES,
}  # fmt: skip
