"""Who may ask for what: the keys, SGLang's levels, and CORS preflights."""

import hmac

from aiohttp import web

from jaxserve.config import ServerConfig
from jaxserve.server.http_errors import json_response
from jaxserve.server.route import Auth, Route

PREFLIGHT_MAX_AGE_S = 600
OPEN_PREFIXES = ("/health", "/ready", "/metrics")


def needed_key(config: ServerConfig, path: str, route: Route | None) -> str | None:
    """The one key that opens ``path``; None where it is open.

    Only an API key: it opens everything.  Only an admin key: it opens what is ADMIN, the rest is
    open.  Both: each opens its own level.  A path without a route counts as NORMAL.
    """
    if path.startswith(OPEN_PREFIXES) or (route is not None and route.auth is Auth.OPEN):
        return None
    is_admin = route is not None and route.auth is Auth.ADMIN
    return (config.admin_api_key or config.api_key) if is_admin else config.api_key


def is_authorized(request: web.Request, key: str) -> bool:
    """Whether ``request`` brings ``key``: as a bearer, or as Anthropic's clients send it.

    Takes as long for a wrong key as for the right one.
    """
    headers = request.headers
    is_bearer = _same(headers.get("Authorization", ""), f"Bearer {key}")
    return _same(headers.get("x-api-key", ""), key) | is_bearer


def _same(given: str, wanted: str) -> bool:
    # Headers are decoded with surrogateescape: back to the bytes that were sent.
    return hmac.compare_digest(
        given.encode("utf-8", "surrogateescape"), wanted.encode("utf-8", "surrogateescape")
    )


def unauthorized() -> web.Response:
    """401, the same on every endpoint."""
    return json_response({"error": "Unauthorized"}, 401)


def preflight(request: web.Request) -> web.Response:
    """What a browser asks before a page of another origin may send ``request``: all of it.

    The headers are named one by one, because ``*`` does not cover Authorization.  There are no
    cookies, so credentials are not allowed.
    """
    return web.Response(
        headers={
            "Access-Control-Allow-Methods": "DELETE, GET, HEAD, OPTIONS, POST, PUT",
            "Access-Control-Allow-Headers": request.headers.get(
                "Access-Control-Request-Headers", "*"
            ),
            "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
        }
    )
