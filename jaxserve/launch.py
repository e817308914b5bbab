"""``python -m jaxserve.launch``: flags → configs → LLM → HTTP server, until a signal.

The port is bound first and answers 503 while the model loads, so that a probe sees the truth at
any moment.  Exit status: 0 after a drain, 1 on a start-up error or when the engine has died.
"""

import asyncio
import errno
import gc
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from aiohttp import web

from jaxserve.config import SECRETS, EngineConfig, ServerConfig
from jaxserve.errors import (
    ConfigError,
    DeviceHangError,
    EngineDeadError,
    InvalidRequestError,
    JaxserveError,
)
from jaxserve.flags import hide_secrets, parse_flags
from jaxserve.request import SamplingParams
from jaxserve.server.app import AccessLogger, make_app
from jaxserve.server.service import TextService
from jaxserve.server.state import STATE, ServerState
from jaxserve.server.tls import make_tls_context
from jaxserve.xla_flags import set_for_serving

logger = logging.getLogger("jaxserve.launch")  # run with -m, __name__ is "__main__"

HEALTH_POLL_S = 0.25
DRAIN_POLL_S = 0.05
LAST_BYTES_S = 5.0  # for handlers to write what they have, once nothing is generated any more
WARMUP_PROMPT = "The capital city of France is"
BuildLLM = Callable[[EngineConfig], TextService]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; return the exit status."""
    engine_config, server_config = parse_flags(argv)
    _set_up_logging(server_config)
    set_for_serving(engine_config.tp_size)  # XLA reads them once, when jax starts
    try:
        build_llm = partial(_build_llm, server_config=server_config)
        return asyncio.run(serve(engine_config, server_config, build_llm))
    except JaxserveError as error:
        print(f"jaxserve: error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, DeviceHangError):
            os._exit(1)  # jax would wait for the device at exit, for ever
        return 1


async def serve(
    engine_config: EngineConfig, server_config: ServerConfig, build_llm: BuildLLM
) -> int:
    """Bind, build, serve, drain; return the exit status.

    Args:
        build_llm: called in a thread; may take minutes.

    Raises:
        JaxserveError: the port cannot be bound or the LLM not be built.
    """
    start_s = time.monotonic()
    logger.info("server_args=%s", _server_args(engine_config, server_config))
    app = make_app(None, server_config)
    state = app[STATE]
    state.launch_command = shlex.join(hide_secrets(sys.argv))
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log_class=AccessLogger,
        shutdown_timeout=LAST_BYTES_S,
    )
    await runner.setup()
    try:
        address = await _bind(runner, server_config)
        stop = _watch_signals()
        llm = await _build(build_llm, engine_config, stop)
        try:
            await _make_ready(state, llm, start_s, address)
            return await _until_stopped(state, llm, stop)
        finally:
            await runner.cleanup()  # handlers write their last bytes while the LLM still exists
            await asyncio.to_thread(llm.shutdown)
    finally:
        await runner.cleanup()  # idempotent: for what failed before there was an LLM


async def _bind(runner: web.AppRunner, config: ServerConfig) -> str:
    """Listen; return the URL."""
    tls = make_tls_context(config)
    try:
        await web.TCPSite(runner, config.host, config.port, ssl_context=tls).start()
    except OSError as error:
        where = f"--host {config.host} --port {config.port}"
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{where}: the port is in use; stop the program that uses it or choose another port"
            ) from None
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from None
    host, port = runner.addresses[0][:2]
    return f"{'http' if tls is None else 'https'}://{host}:{port}"


def _watch_signals() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets; a second signal ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        logger.info("%s received", signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


async def _build(
    build_llm: BuildLLM, engine_config: EngineConfig, stop: asyncio.Event
) -> TextService:
    building = asyncio.create_task(asyncio.to_thread(build_llm, engine_config))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((building, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not building.done():
        # Nothing is being served, and a thread that compiles cannot be interrupted.
        logger.info("Stopped while starting.")
        logging.shutdown()
        os._exit(0)
    stopping.cancel()
    return building.result()


def _build_llm(engine_config: EngineConfig, server_config: ServerConfig) -> TextService:
    from jaxserve.llm import LLM  # imports jax: seconds, during which the port answers already

    return LLM(
        config=engine_config,
        served_model_name=server_config.served_model_name,
        reasoning_parser=server_config.reasoning_parser,
        tool_call_parser=server_config.tool_call_parser,
    )


async def _make_ready(state: ServerState, llm: TextService, start_s: float, address: str) -> None:
    config, info = llm.config, llm.info
    if state.config.enable_strict_thinking and info.reasoning_parser is None:
        raise ConfigError(
            "--enable-strict-thinking: the chat template tells --reasoning-parser auto of no "
            "reasoning; name the parser, or leave --enable-strict-thinking away"
        )
    logger.info(
        "max_total_num_tokens=%s, chunked_prefill_size=%s, max_running_requests=%s, context_len=%s",
        info.max_total_num_tokens,
        config.chunked_prefill_size,
        config.max_running_requests,
        info.context_len,
    )
    warming_up_s = time.monotonic()
    if not config.skip_server_warmup:
        await _warm_up(llm)
    warm_up_s = time.monotonic() - warming_up_s
    # What exists now lives as long as the process: no collection need ever walk it again.
    gc.collect()
    gc.freeze()
    state.startup_s = time.monotonic() - start_s
    llm.metrics.started(state.startup_s, warm_up_s=warm_up_s, context_len=info.context_len)
    state.ready(llm)
    logger.info("INFO:     jaxserve running on %s (Press CTRL+C to quit)", address)
    logger.info("The server is fired up and ready to roll!")


async def _warm_up(llm: TextService) -> None:
    """Generate a few tokens, so that the first client finds every path already walked."""
    params = SamplingParams(max_new_tokens=8, temperature=0.0)
    try:
        streams = await llm.submit(WARMUP_PROMPT, params)
    except InvalidRequestError as error:
        logger.warning("No warm-up generation: %s", error)  # a context of a few tokens
        return
    for stream in streams:
        async for chunk in stream:
            if chunk.finish is not None and chunk.finish.type == "abort":
                raise EngineDeadError(f"the warm-up generation failed: {chunk.finish.message}")


async def _until_stopped(state: ServerState, llm: TextService, stop: asyncio.Event) -> int:
    while llm.is_healthy:
        try:
            await asyncio.wait_for(stop.wait(), HEALTH_POLL_S)
        except TimeoutError:
            continue
        await _drain(state, llm)
        return 0
    logger.error("The engine has stopped; exiting.")
    return 1


async def _drain(state: ServerState, llm: TextService) -> None:
    """Refuse new requests, let the open ones finish, abort those that do not in time."""
    state.drain()
    timeout_s = state.config.drain_timeout_s
    logger.info("Draining: %d open sequences, at most %.0f s", llm.num_open, timeout_s)
    deadline_s = time.monotonic() + timeout_s
    while llm.num_open and llm.is_healthy:
        if time.monotonic() >= deadline_s:
            logger.warning("Aborting %d sequences after %.0f s", llm.num_open, timeout_s)
            llm.abort_all()
            break
        await asyncio.sleep(DRAIN_POLL_S)
    logger.info("Drained.")


def _server_args(engine_config: EngineConfig, server_config: ServerConfig) -> str:
    values = asdict(engine_config) | asdict(server_config)
    for name in SECRETS:
        if values[name] is not None:
            values[name] = "***"
    shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return f"ServerArgs({shown})"


def _set_up_logging(config: ServerConfig) -> None:
    logging.basicConfig(
        level=logging.WARNING,
        format="[%(asctime)s] %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        force=True,
    )
    logging.getLogger("jaxserve").setLevel(config.log_level.upper())
    if config.log_level_http is not None:
        logging.getLogger("jaxserve.access").setLevel(config.log_level_http.upper())
    logging.getLogger("aiohttp.server").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Not that a body could not be read to its end after the answer: the answer said so."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, web.RequestPayloadError)


if __name__ == "__main__":
    sys.exit(main())
