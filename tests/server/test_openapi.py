"""/openapi.json and /docs: complete, resolvable, and true to the route table."""

import re
from collections.abc import Iterator

import pytest
from aiohttp.test_utils import TestClient

from jaxserve.config import ServerConfig
from jaxserve.server.openapi import document, plain_path
from jaxserve.server.route import Auth, Status
from jaxserve.server.routes import ROUTES, enabled

METHODS = {"get", "put", "post", "delete"}


@pytest.fixture
async def spec(client: TestClient) -> dict:
    response = await client.get("/openapi.json")
    assert response.status == 200
    return await response.json()


def operations(spec: dict) -> Iterator[tuple[str, str, dict]]:
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_endpoint_is_in_it(spec: dict) -> None:
    documented = {(path, method.upper()) for path, method, _ in operations(spec)}
    rows = {(plain_path(row.path), method) for row in ROUTES for method in row.methods}
    assert documented == rows


def test_the_document_is_openapi_3_1(spec: dict) -> None:
    assert spec["openapi"] == "3.1.0"
    assert spec.keys() == {"openapi", "info", "servers", "paths", "components"}
    ids = [operation["operationId"] for _, _, operation in operations(spec)]
    assert len(ids) == len(set(ids))
    for path, method, operation in operations(spec):
        assert method in METHODS
        in_path = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        assert in_path == set(re.findall(r"\{(\w+)\}", path))
        assert all(p["schema"] for p in operation["parameters"])
        assert operation["responses"] and operation["tags"]
        assert all(response["description"] for response in operation["responses"].values())


def test_every_reference_leads_somewhere(spec: dict) -> None:
    schemas = spec["components"]["schemas"]
    prefix = "#/components/schemas/"
    assert {ref.removeprefix(prefix) for ref in references(spec)} <= schemas.keys()


def test_what_generates_describes_its_body(spec: dict) -> None:
    for row in ROUTES:
        if row.starts_work:
            operation = spec["paths"][row.path]["post"]
            content = operation["requestBody"]["content"]["application/json"]
            assert content["schema"], row.path


def test_a_null_is_allowed_where_a_field_may_be_absent(spec: dict) -> None:
    schemas = spec["components"]["schemas"]
    fields = schemas["CompletionBody"]["properties"]
    required = set(schemas["CompletionBody"].get("required", ()))
    assert {"type": "null"} in fields["temperature"]["anyOf"]
    assert {"type": "null"} in fields["model"]["anyOf"]
    for name in fields.keys() - required:
        choices = fields[name]["anyOf"]
        assert choices.count({"type": "null"}) == 1, name


def test_keys_are_asked_for_where_they_are_needed() -> None:
    none = document(ServerConfig(), ROUTES)
    assert "securitySchemes" not in none["components"]
    assert not any("security" in operation for _, _, operation in operations(none))
    admin = document(ServerConfig(admin_api_key="a"), ROUTES)
    locked = {path for path, _, operation in operations(admin) if "security" in operation}
    assert locked == {plain_path(row.path) for row in ROUTES if row.auth is Auth.ADMIN}


def test_refused_endpoints_promise_no_200(spec: dict) -> None:
    for row in ROUTES:
        for method in row.methods:
            responses = spec["paths"][plain_path(row.path)][method.lower()]["responses"]
            assert ("200" in responses) == (row.status is not Status.REFUSED)


async def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    response = await client.get("/docs")
    assert response.content_type == "text/html"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    page = await response.text()
    assert re.findall(r"(?:https?:)?//[\w.]+\.\w+", page) == []
    assert 'fetch("openapi.json"' in page


@pytest.mark.parametrize("config", [ServerConfig(disable_openapi_doc=True)])
async def test_the_documents_can_be_off(client: TestClient, config: ServerConfig) -> None:
    for path in ("/openapi.json", "/docs"):
        assert (await client.get(path)).status == 404
    assert {"/openapi.json", "/docs"}.isdisjoint(row.path for row in enabled(config))


@pytest.mark.parametrize("config", [ServerConfig(fastapi_root_path="/llm/")])
async def test_behind_a_proxys_path(client: TestClient) -> None:
    for path in ("/model_info", "/llm/model_info", "/llm/health"):
        assert (await client.get(path)).status == 200
    assert (await (await client.get("/llm/openapi.json")).json())["servers"] == [{"url": "/llm/"}]
