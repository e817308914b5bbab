"""The application: routes, and what every request passes through on its way to one."""

import hmac
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from jaxserve.config import ServerConfig
from jaxserve.errors import JaxserveError
from jaxserve.server import admin, native, openai
from jaxserve.server.http_errors import (
    CLIENT_CLOSED_REQUEST,
    error_response,
    flat_error,
    json_response,
    openai_error,
)
from jaxserve.server.service import TextService
from jaxserve.server.state import STATE, ServerState

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("jaxserve.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPEN_PREFIXES = ("/health", "/ready", "/metrics")
# What starts work, and so is refused while the server drains.
WORK_PATHS = frozenset(("/generate", "/v1/completions", "/v1/chat/completions"))
CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "*",
    "Access-Control-Allow-Headers": "*",
}


def make_app(llm: TextService | None, config: ServerConfig) -> web.Application:
    """The HTTP application over ``llm``.

    With ``llm=None`` every endpoint answers 503 until ``app[STATE].ready(llm)`` is called on the
    event loop.  Run it with ``handler_cancellation=True``: that is how a client that goes away
    aborts its request.
    """
    app = web.Application(
        client_max_size=config.max_body_bytes,
        middlewares=[_measure, _answer_errors, _authorize, _check_phase],
    )
    app[STATE] = ServerState(config)
    if llm is not None:
        app[STATE].ready(llm)
    app.on_response_prepare.append(_allow_any_origin)
    _add_routes(app.router, config)
    return app


def _add_routes(router: web.UrlDispatcher, config: ServerConfig) -> None:
    router.add_get("/", admin.root)
    for path in ("/health", "/ready", "/ping"):
        router.add_get(path, native.health)
    router.add_get("/health_generate", native.health_generate)
    router.add_post("/generate", native.generate)
    router.add_put("/generate", native.generate)
    router.add_get("/v1/models", openai.list_models)
    router.add_get("/v1/models/{model:.+}", openai.get_model)
    router.add_post("/v1/completions", openai.completions)
    router.add_post("/v1/chat/completions", openai.chat_completions)
    router.add_get("/model_info", admin.model_info)
    router.add_get("/get_model_info", admin.get_model_info)
    router.add_get("/server_info", admin.server_info)
    router.add_get("/get_server_info", admin.server_info)
    router.add_get("/get_server_args", admin.get_server_args)
    router.add_post("/abort_request", admin.abort_request)
    for path, handler in (
        ("/get_memory_pool_size", admin.get_memory_pool_size),
        ("/flush_cache", admin.flush_cache),
    ):
        router.add_get(path, handler)
        router.add_post(path, handler)
    if config.enable_metrics:
        router.add_get("/metrics", admin.metrics)


async def _allow_any_origin(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Access-Control-Allow-Origin"] = "*"
    request[_PREPARED] = True


_PREPARED: web.RequestKey[bool] = web.RequestKey("prepared", bool)


@web.middleware
async def _measure(request: web.Request, handler: Handler) -> web.StreamResponse:
    service = request.app[STATE].service
    if service is None:
        return await handler(request)
    resource = request.match_info.route.resource
    endpoint = "unknown" if resource is None else resource.canonical
    status = CLIENT_CLOSED_REQUEST
    service.metrics.http_started(endpoint, request.method)
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        service.metrics.http_finished(endpoint, request.method, status)


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one place where an exception becomes a response."""
    is_openai = request.path.startswith("/v1/")
    try:
        return await handler(request)
    except JaxserveError as error:
        return error_response(error, is_openai=is_openai)
    except web.HTTPRequestEntityTooLarge:
        limit = request.app[STATE].config.max_body_bytes
        message = f"The request body is longer than the limit of {limit} bytes (--max-body-bytes)."
        return json_response(flat_error(message, "Request Entity Too Large", 413), 413)
    except web.HTTPException as error:
        return json_response({"detail": HTTPStatus(error.status).phrase}, error.status)
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        if request.get(_PREPARED):
            raise  # the status line is out: all that is left is to close the connection
        return json_response(openai_error("Internal server error; see the server's log.", 500), 500)


@web.middleware
async def _authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.method == "OPTIONS":
        return web.Response(headers=CORS_HEADERS)
    key = request.app[STATE].config.api_key
    if key is not None and not request.path.startswith(OPEN_PREFIXES):
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {key}".encode()):
            return json_response({"error": "Unauthorized"}, 401)
    return await handler(request)


@web.middleware
async def _check_phase(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.path in WORK_PATHS:
        request.app[STATE].check_accepts()
    return await handler(request)


class AccessLogger(AbstractAccessLogger):
    """One line per response, in uvicorn's words."""

    @property
    def enabled(self) -> bool:
        return access_logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log ``request`` and the status it was answered with."""
        peer = request.transport.get_extra_info("peername") if request.transport else None
        client = f"{peer[0]}:{peer[1]}" if peer else (request.remote or "-")
        # Probes come every second and tell nothing.
        level = logging.DEBUG if request.path.startswith(OPEN_PREFIXES) else logging.INFO
        access_logger.log(
            level,
            'INFO:     %s - "%s %s HTTP/%d.%d" %d %s',
            client,
            request.method,
            request.path_qs,
            request.version.major,
            request.version.minor,
            response.status,
            response.reason,
        )
