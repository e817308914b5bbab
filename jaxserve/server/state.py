"""What the handlers share: the LLM once it exists, and whether it may be asked for something."""

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from importlib import metadata

from aiohttp import web

from jaxserve.config import ServerConfig
from jaxserve.server.http_errors import NotServingError
from jaxserve.server.request_log import RequestLog, logged
from jaxserve.server.service import TextService, TextStream


class Phase(Enum):
    """STARTING: no LLM yet.  DRAINING: what runs is finished, nothing new is taken."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


def _installed_version() -> str:
    try:
        return metadata.version("jaxserve")
    except metadata.PackageNotFoundError:
        return "unknown"


VERSION = _installed_version()


@dataclass(slots=True)
class ServerState:
    """The one mutable object of the HTTP layer; lives on the event loop only."""

    config: ServerConfig
    service: TextService | None = None
    phase: Phase = Phase.STARTING
    startup_s: float = 0.0
    launch_command: str = ""
    served_model_name: str = field(init=False, default="")
    request_log: RequestLog = field(init=False)
    _unlogged: TextService | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.request_log = RequestLog.of(self.config)

    def ready(self, service: TextService) -> None:
        """Start to serve ``service``."""
        self._unlogged = service
        self.service = logged(service, self.request_log)
        self.served_model_name = self.config.served_model_name or service.info.model_path
        self.phase = Phase.READY

    def log_requests(self, log: RequestLog) -> None:
        """Log new requests as ``log`` says from now on."""
        self.request_log = log
        if self._unlogged is not None:
            self.service = logged(self._unlogged, log)

    def drain(self) -> None:
        """Take nothing new from now on."""
        self.phase = Phase.DRAINING

    @property
    def is_serving(self) -> bool:
        """True when a request sent now would be answered."""
        return self.phase is Phase.READY and self.service is not None and self.service.is_healthy

    @property
    def llm(self) -> TextService:
        """The LLM.

        Raises:
            NotServingError: the model is still loading.
        """
        return _loaded(self.service)

    def llm_for(self, *, no_logs: bool) -> TextService:
        """The LLM for a request that may want to leave no trace in the request log."""
        return _loaded(self._unlogged) if no_logs else self.llm

    def check_accepts(self) -> None:
        """Refuse work that is not taken now.

        Raises:
            NotServingError: the server is starting or shutting down.
        """
        if self.phase is Phase.DRAINING:
            raise NotServingError("The server is shutting down; send the request to another one.")
        _ = self.llm


STATE: web.AppKey[ServerState] = web.AppKey("state", ServerState)


class OpenStreams:
    """The streams of one HTTP request, all closed when its handler ends for whatever reason."""

    TURN = 16  # prompts tokenized before other requests get the event loop

    def __init__(self) -> None:
        self.streams: list[TextStream] = []
        self._stack = ExitStack()
        self._num_added = 0

    async def add(self, submitting: Awaitable[Sequence[TextStream]]) -> None:
        """Own the streams that ``submitting`` returns, from then on."""
        streams = await submitting
        self.streams += streams
        for stream in streams:
            self._stack.callback(stream.close)
        self._num_added += 1
        if self._num_added % self.TURN == 0:
            await asyncio.sleep(0)

    def __enter__(self) -> "OpenStreams":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _loaded(service: TextService | None) -> TextService:
    if service is None:
        raise NotServingError(
            "The server is starting and its model is not loaded yet; try again when "
            "GET /health answers 200."
        )
    return service
