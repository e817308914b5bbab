"""GET /openapi.json and GET /docs: the rows of the route table as OpenAPI 3.1, and a page of it."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

from aiohttp import web
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaValue

from jaxserve.config import ServerConfig
from jaxserve.server.http_errors import (
    Dialect,
    json_response,
    messages_error,
    ollama_error,
    openai_error,
    responses_error,
)
from jaxserve.server.json_body import JsonObject
from jaxserve.server.route import EVENTS, TABLE, Auth, Route, Status
from jaxserve.server.state import STATE, VERSION

Mode = Literal["validation", "serialization"]
TITLE = "jaxserve"
TAGS = {
    Dialect.NATIVE: "SGLang",
    Dialect.OPENAI: "OpenAI",
    Dialect.RESPONSES: "OpenAI responses",
    Dialect.MESSAGES: "Anthropic",
    Dialect.OLLAMA: "Ollama",
}
CONTROL_TAG = "Control"
_REFERENCES = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"\{(\w+)(?::[^}]*)?\}")
# A page that needs nothing but itself, and is allowed nothing else.
PAGE = files("jaxserve.server").joinpath("docs.html").read_text()
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; " \
              "connect-src 'self'"  # fmt: skip


async def openapi_json(request: web.Request) -> web.Response:
    """GET /openapi.json."""
    return json_response(_document(request.app[STATE].config, tuple(_rows(request))))


async def docs_page(request: web.Request) -> web.Response:
    """GET /docs."""
    return web.Response(
        text=PAGE, content_type="text/html", headers={"Content-Security-Policy": PAGE_POLICY}
    )


def _rows(request: web.Request) -> Iterable[Route]:
    return dict.fromkeys(request.app[TABLE].values())


@lru_cache(maxsize=1)
def _document(config: ServerConfig, rows: tuple[Route, ...]) -> JsonObject:
    return document(config, rows)


def document(config: ServerConfig, rows: Iterable[Route]) -> JsonObject:
    """The OpenAPI document of ``rows``."""
    rows = tuple(rows)
    schemas, definitions = _schemas(rows)
    paths: dict[str, JsonObject] = {}
    for row in rows:
        item = paths.setdefault(plain_path(row.path), {})
        for method in row.methods:
            item[method.lower()] = _operation(row, method, schemas, config)
    components: JsonObject = {"schemas": definitions}
    if config.api_key or config.admin_api_key:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "description": "An LLM server with the APIs of SGLang, OpenAI, Anthropic and Ollama.",
        },
        "servers": [{"url": config.fastapi_root_path or "/"}],
        "paths": paths,
        "components": components,
    }


def plain_path(path: str) -> str:
    """``path`` as OpenAPI writes it: ``{name:pattern}`` without its pattern."""
    return _PARAMETER.sub(r"{\1}", path)


def _schemas(
    rows: tuple[Route, ...],
) -> tuple[dict[tuple[Route, Mode], JsonSchemaValue], dict[str, Any]]:
    """The schema of every body ("validation") and answer, and the definitions they share."""
    inputs: list[tuple[Any, Mode, TypeAdapter[Any]]] = []
    for row in rows:
        if row.body is not None:
            inputs.append((row, "validation", TypeAdapter(row.body)))
        if row.answer is not None:
            inputs.append((row, "serialization", TypeAdapter(row.answer)))
    schemas, shared = TypeAdapter.json_schemas(inputs, ref_template=_REFERENCES)
    definitions = shared.get("$defs", {})
    for (_, mode), schema in schemas.items():
        if mode == "validation":
            _allow_nulls(schema, definitions)
    return schemas, definitions


def _allow_nulls(schema: JsonSchemaValue, definitions: Mapping[str, Any]) -> None:
    """A null is the same as an absent field, at the top level of every body."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
    required = set(schema.get("required", ()))
    for name, value in schema.get("properties", {}).items():
        choices = value.get("anyOf", ())
        if name in required or {"type": "null"} in choices:
            continue
        about = {key: value.pop(key) for key in ("title", "description", "default") if key in value}
        is_choice = value.keys() == {"anyOf"}
        own = list(choices) if is_choice else [dict(value)]
        value.clear()
        value |= about | {"anyOf": [*own, {"type": "null"}]}


def _operation(
    row: Route, method: str, schemas: Mapping[tuple[Route, Mode], Any], config: ServerConfig
) -> JsonObject:
    name = re.sub(r"\W+", "_", plain_path(row.path)).strip("_") or "root"
    operation: JsonObject = {
        "operationId": f"{method.lower()}_{name}",
        "summary": row.summary,
        "tags": [CONTROL_TAG if row.auth is Auth.ADMIN else TAGS[row.dialect]],
        "parameters": _parameters(row),
        "responses": _responses(row, schemas),
    }
    if row.why and row.status is not Status.REFUSED:
        operation["description"] = f"**Differs from SGLang:** {row.why}"
    if row.body is not None and method != "GET":
        operation["requestBody"] = {
            "required": not row.body_is_optional,
            "content": {"application/json": {"schema": schemas[row, "validation"]}},
        }
    key = (config.admin_api_key or config.api_key) if row.auth is Auth.ADMIN else config.api_key
    if key is not None and row.auth is not Auth.OPEN:
        operation["security"] = [{"bearer": []}, {"header": []}]
    return operation


def _parameters(row: Route) -> list[JsonObject]:
    string = {"schema": {"type": "string"}}
    in_path = [
        {"name": name, "in": "path", "required": True, **string}
        for name in _PARAMETER.findall(row.path)
    ]
    fields = {} if row.query is None else row.query.model_json_schema()["properties"]
    in_query: list[JsonObject] = []
    for name, schema in fields.items():
        text = schema.pop("description", "")
        in_query.append({"name": name, "in": "query", "description": text, "schema": schema})
    return [*in_path, *in_query]


def _responses(row: Route, schemas: Mapping[tuple[Route, Mode], Any]) -> JsonObject:
    responses: JsonObject = {}
    if row.status is not Status.REFUSED:
        good: JsonObject = {"description": "OK"}
        if row.media_types:
            known = {
                "application/json": {"schema": schemas.get((row, "serialization"), {})},
                EVENTS: {},  # tools take its schema for that of one event
            }
            text = {"schema": {"type": "string"}}
            good["content"] = {kind: known.get(kind, text) for kind in row.media_types}
        responses["200"] = good
    content: JsonObject = {"application/json": {"example": _example(row.dialect)}}
    if row.media_types == ("text/plain",):
        content["text/plain"] = {"schema": {"type": "string"}}
    responses["default"] = {"description": "Refused or failed", "content": content}
    return responses


def _example(dialect: Dialect) -> JsonObject:
    message = "What was given, what is allowed, what to do."
    match dialect:
        case Dialect.NATIVE:
            return {"error": {"message": message}}
        case Dialect.OPENAI:
            return openai_error(message, 400)
        case Dialect.RESPONSES:
            return responses_error(message, 400)
        case Dialect.MESSAGES:
            return messages_error(message, 400)
        case Dialect.OLLAMA:
            return ollama_error(message)
