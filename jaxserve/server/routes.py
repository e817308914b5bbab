"""All rows of all endpoints, and the router that they make."""

from itertools import product

from aiohttp import web

from jaxserve.config import ServerConfig
from jaxserve.server import (
    refused,
    routes_admin,
    routes_messages,
    routes_native,
    routes_ollama,
    routes_openai,
    routes_responses,
)
from jaxserve.server.route import TABLE, Route

ROUTES: tuple[Route, ...] = (
    *routes_native.ROUTES,
    *routes_openai.ROUTES,
    *routes_responses.ROUTES,
    *routes_messages.ROUTES,
    *routes_ollama.ROUTES,
    *routes_admin.ROUTES,
    *refused.ROUTES,
)


def enabled(config: ServerConfig) -> tuple[Route, ...]:
    """The rows that are served with ``config``."""
    return tuple(row for row in ROUTES if row.is_enabled(config))


def add_routes(app: web.Application, config: ServerConfig) -> None:
    """Serve every row that ``config`` enables, with the proxy's path in front and without.

    HEAD goes wherever GET does.
    """
    table: dict[web.AbstractRoute, Route] = {}
    prefixes = dict.fromkeys(("", config.fastapi_root_path.rstrip("/")))
    for prefix, row in product(prefixes, enabled(config)):
        methods = dict.fromkeys((*row.methods, *(("HEAD",) if "GET" in row.methods else ())))
        resource = app.router.add_resource(prefix + row.path)
        for method in methods:
            table[resource.add_route(method, row.handler)] = row
    app[TABLE] = table


def row_of(request: web.Request) -> Route | None:
    """The row of the endpoint that answers ``request``; None for 404 and 405."""
    return request.app[TABLE].get(request.match_info.route)
