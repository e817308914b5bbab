"""Fields that constrain the output of OpenAI's endpoints, and which grammar they make."""

import json

import pytest
from aiohttp.test_utils import TestClient
from server.fake_llm import FakeLLM
from server.openai_calls import CHAT, post

COMPLETE = {"prompt": "a b", "max_tokens": 3}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
LEGACY_TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<f>", "schema": {}, "end": "</f>"}],
    "triggers": ["<f>"],
}
TAG = {"type": "structural_tag", "format": {"type": "const_string", "value": "a"}}


def schema_format(schema: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    ("fields", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", {"type": "object"}),
        ({"response_format": schema_format(SCHEMA)}, "json_schema", SCHEMA),
        ({"response_format": schema_format(True)}, "json_schema", True),
        ({"response_format": LEGACY_TAG}, "structural_tag", LEGACY_TAG),
        ({"response_format": TAG}, "structural_tag", TAG),
        ({"json_schema": json.dumps(SCHEMA)}, "json_schema", SCHEMA),
        ({"json_schema": SCHEMA, "regex": "", "ebnf": None}, "json_schema", SCHEMA),
        ({"structural_tag": TAG}, "structural_tag", TAG),
        ({"regex": '"[a-z]+"'}, "regex", None),
        ({"ebnf": 'root ::= "a"'}, "ebnf", None),
    ],
)
async def test_grammars(
    client: TestClient, llm: FakeLLM, path: str, fields: dict, kind: str, source: object
) -> None:
    await post(client, path, (CHAT if "chat" in path else COMPLETE) | fields)
    grammar = llm.submitted[0].params.grammar
    assert grammar.kind == kind and llm.submitted[0].params.thought is None
    if source is None:
        assert grammar.source == fields[kind]
    else:
        assert json.loads(grammar.source) == source


@pytest.mark.parametrize("response_format", [{}, None, {"type": "text"}, {"type": None}])
async def test_text_is_free(client: TestClient, llm: FakeLLM, response_format: object) -> None:
    await post(client, "chat/completions", CHAT | {"response_format": response_format})
    assert llm.submitted[0].params.grammar is None


REFUSED = [
    (
        {"response_format": {"type": "xml"}},
        "response_format.type must be one of text, json_object, json_schema, structural_tag, got "
        "'xml'.",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "schema_ is required for json_schema response format request.",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
        "schema_ is required for json_schema response format request.",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": "a"}},
        "response_format.json_schema must be an object with name and schema, got str.",
    ),
    (
        {"response_format": schema_format("a")},
        "response_format.json_schema.schema must be a JSON schema (an object), got str.",
    ),
    (
        {"regex": "a", "ebnf": "b"},
        "Only one of json_schema, regex, ebnf, or structural_tag can be set.",
    ),
    (
        {"regex": "a", "response_format": {"type": "json_object"}},
        "Only one of response_format and regex can be set; leave one of them away.",
    ),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
async def test_refusals(client: TestClient, fields: dict, message: str) -> None:
    for path, body in (("chat/completions", CHAT), ("completions", COMPLETE)):
        assert (await post(client, path, body | fields, 400))["message"] == message
