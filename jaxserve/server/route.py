"""What is known of an endpoint: the row from which router, auth, OpenAPI and documents follow."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from jaxserve.config import ServerConfig
from jaxserve.server.http_errors import Dialect, NotImplementedHereError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
EVENTS = "text/event-stream"


class Auth(Enum):
    """Which key opens an endpoint; SGLang's levels."""

    OPEN = "none"
    NORMAL = "--api-key"
    ADMIN = "--admin-api-key, else --api-key"


class Status(Enum):
    """How an endpoint compares with SGLang's."""

    SUPPORTED = "supported"
    DIFFERS = "differs"
    REFUSED = "refused"
    ADDED = "added"  # SGLang has none


def always(config: ServerConfig) -> bool:
    """The endpoint is there whatever the flags."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """One row: a path, its methods, and everything that anybody wants to know of them.

    ``body``, ``answer`` and ``query`` are for OpenAPI and the documents: any type that pydantic
    can describe (a model, a TypedDict, a union of them).  ``why`` says how a DIFFERS differs and
    what a REFUSED lacks.
    """

    methods: tuple[str, ...]
    path: str
    handler: Handler
    summary: str
    auth: Auth = Auth.NORMAL
    dialect: Dialect = Dialect.NATIVE
    starts_work: bool = False  # refused while the server drains
    body: Any = None
    body_is_optional: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)  # known body field -> what it lacks
    query: type[BaseModel] | None = None
    answer: Any = None
    media_types: tuple[str, ...] = ("application/json",)  # of a 200; () = an empty answer
    status: Status = Status.SUPPORTED
    why: str = ""
    is_enabled: Callable[[ServerConfig], bool] = always


# Which row answers a route of the router.
TABLE: web.AppKey[Mapping[web.AbstractRoute, Route]] = web.AppKey(
    "table", Mapping[web.AbstractRoute, Route]
)


def refused(
    methods: tuple[str, ...],
    path: str,
    lacks: str,
    *,
    auth: Auth = Auth.NORMAL,
    dialect: Dialect = Dialect.NATIVE,
) -> Route:
    """The row of an endpoint that is known and not built: every request is a 501 naming it."""
    message = f"{path} is not supported: {lacks}."

    async def refuse(request: web.Request) -> web.StreamResponse:
        raise NotImplementedHereError(message)

    return Route(
        methods=methods,
        path=path,
        handler=refuse,
        summary=f"Not supported: {lacks}.",
        auth=auth,
        dialect=dialect,
        status=Status.REFUSED,
        why=lacks,
    )
