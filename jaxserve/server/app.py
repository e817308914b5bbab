"""The application: what every request passes through on its way to its endpoint."""

import logging
import time
from http import HTTPStatus

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from jaxserve.config import ServerConfig
from jaxserve.errors import JaxserveError, UnsupportedFeatureError
from jaxserve.server.auth import (
    OPEN_PREFIXES,
    is_authorized,
    needed_key,
    preflight,
    unauthorized,
)
from jaxserve.server.http_errors import (
    CLIENT_CLOSED_REQUEST,
    BodyTooLargeError,
    Dialect,
    error_response,
    json_response,
)
from jaxserve.server.responses_store import RESPONSES, ResponseStore
from jaxserve.server.route import Handler
from jaxserve.server.routes import add_routes, row_of
from jaxserve.server.service import TextService
from jaxserve.server.state import STATE, ServerState

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("jaxserve.access")
RANK_HEADER = "X-Data-Parallel-Rank"  # SGLang's: stands for routed_dp_rank in the body


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
    app[RESPONSES] = ResponseStore(is_enabled=config.enable_response_store)
    app.on_shutdown.append(app[RESPONSES].close)
    if llm is not None:
        app[STATE].ready(llm)
    app.on_response_prepare.append(_allow_any_origin)
    add_routes(app, config)
    return app


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
    row = row_of(request)
    status = CLIENT_CLOSED_REQUEST
    start_s = time.perf_counter()
    service.metrics.http_started(endpoint, request.method)
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        service.metrics.http_finished(endpoint, request.method, status)
        if row is not None:
            service.metrics.http_handled(row.handler.__name__, time.perf_counter() - start_s)


def _dialect(request: web.Request) -> Dialect:
    row = row_of(request)
    return Dialect.NATIVE if row is None else row.dialect


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one place where an exception becomes a response."""
    try:
        return await handler(request)
    except JaxserveError as error:
        return error_response(error, _dialect(request))
    except web.HTTPRequestEntityTooLarge:
        limit = request.app[STATE].config.max_body_bytes
        too_large = BodyTooLargeError(
            f"The request body is longer than the limit of {limit} bytes (--max-body-bytes)."
        )
        return error_response(too_large, _dialect(request))
    except web.HTTPException as error:
        response = json_response({"detail": HTTPStatus(error.status).phrase}, error.status)
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        if request.get(_PREPARED):
            raise  # the status line is out: all that is left is to close the connection
        internal = JaxserveError("Internal server error; see the server's log.")
        return error_response(internal, _dialect(request))


@web.middleware
async def _authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.method == "OPTIONS":
        return preflight(request)
    row = row_of(request)
    key = needed_key(request.app[STATE].config, request.path, row)
    if key is not None and not is_authorized(request, key):
        return unauthorized()
    return await handler(request)


@web.middleware
async def _check_phase(request: web.Request, handler: Handler) -> web.StreamResponse:
    row = row_of(request)
    if row is not None and row.starts_work:
        request.app[STATE].check_accepts()
        _check_rank(request.headers.get(RANK_HEADER, "0"))
    return await handler(request)


def _check_rank(rank: str) -> None:
    if rank.strip() != "0":
        raise UnsupportedFeatureError(
            f"{RANK_HEADER} {rank!r} is not supported: there is one engine, of rank 0. Leave the "
            "header away or send 0."
        )


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
