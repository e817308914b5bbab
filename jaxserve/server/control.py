"""What changes how the server runs: logging, profiles, garbage collection."""

import asyncio
import gc
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from jaxserve.errors import InvalidRequestError
from jaxserve.server.http_errors import json_response
from jaxserve.server.json_body import parse, read_optional_object, refuse_unsupported
from jaxserve.server.state import STATE

_NO_DUMPS = "requests are not dumped to files"
LOGGING_UNSUPPORTED = {
    "dump_requests_folder": _NO_DUMPS,
    "dump_requests_threshold": _NO_DUMPS,
    "dump_requests_exclude_meta_keys": _NO_DUMPS,
    "crash_dump_folder": _NO_DUMPS,
}
_ONE_TRACE = "a trace is one file of all steps, with the host's and the device's events"
PROFILE_UNSUPPORTED = {
    "profile_by_stage": _ONE_TRACE,
    "profile_stages": _ONE_TRACE,
    "merge_profiles": _ONE_TRACE,
    "detailed_annotations": _ONE_TRACE,
}
INTERNAL_STATE = {
    "pp_max_micro_batch_size": "there is no pipeline parallelism",
    "speculative_accept_threshold_single": "there is no speculative decoding",
    "speculative_accept_threshold_acc": "there is no speculative decoding",
}


def _in_lower_case(level: object) -> object:
    return level.lower() if isinstance(level, str) else level


class LoggingBody(BaseModel):
    """POST /configure_logging: what is absent stays as it is."""

    model_config = ConfigDict(extra="ignore")

    log_requests: bool | None = Field(None, description="Log every sequence.")
    log_requests_level: int | None = Field(None, ge=0, le=3, description="As the flag.")
    log_requests_format: Literal["text", "json"] | None = Field(None, description="As the flag.")
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"] | None,
        BeforeValidator(_in_lower_case),
        Field(description="Of all of the server's own lines; in any case."),
    ] = None


class ProfileBody(BaseModel):
    """POST /start_profile: the events of the host and of the device are in the trace always."""

    model_config = ConfigDict(extra="ignore")

    output_dir: str | None = Field(
        None, description="Where the trace goes; else --profile-dir, else a temporary folder."
    )
    num_steps: int | None = Field(None, ge=1, description="Stop by itself after so many steps.")
    start_step: int | None = Field(
        None, ge=0, description="The step to start with, counted since start-up."
    )
    activities: list[Literal["CPU", "GPU"]] | None = Field(
        None, description="Changes nothing; MEM and RPD are refused."
    )
    with_stack: bool | None = Field(
        None, description="Changes nothing: a trace always has the host's Python calls."
    )
    record_shapes: bool | None = Field(
        None, description="Changes nothing: a trace has the shapes that XLA writes into it."
    )
    profile_id: str | None = Field(None, description="Name of a subfolder.")
    profile_prefix: str | None = Field(None, description="Goes before that name.")


class InternalStateBody(BaseModel):
    """POST /set_internal_state: there is nothing of SGLang's list to set."""

    model_config = ConfigDict(extra="ignore")

    server_args: dict[str, float] = Field({}, description="Name → number.")


async def configure_logging(request: web.Request) -> web.Response:
    """GET or POST /configure_logging."""
    raw = await read_optional_object(request)
    refuse_unsupported(raw, LOGGING_UNSUPPORTED)
    body = parse(LoggingBody, raw)
    state = request.app[STATE]
    log = state.request_log
    if body.log_requests is not None:
        log = replace(log, is_on=body.log_requests)
    if body.log_requests_level is not None:
        log = replace(log, level=body.log_requests_level)
    if body.log_requests_format is not None:
        log = replace(log, format=body.log_requests_format)
    if body.log_level is not None:
        logging.getLogger("jaxserve").setLevel(body.log_level.upper())
    state.log_requests(log)
    return web.Response()


async def start_profile(request: web.Request) -> web.Response:
    """GET or POST /start_profile, with or without a body."""
    raw = await read_optional_object(request)
    refuse_unsupported(raw, PROFILE_UNSUPPORTED)
    body = parse(ProfileBody, raw)
    state = request.app[STATE]
    folder = body.output_dir or state.config.profile_dir
    name = "-".join(part for part in (body.profile_prefix, body.profile_id) if part)
    if name:
        if Path(name).name != name or folder is None:
            raise InvalidRequestError(
                "profile_prefix and profile_id name a subfolder of output_dir: no slashes, and "
                f"output_dir must be given; got {name!r}"
            )
        folder = str(Path(folder) / name)
    await state.llm.start_profile(folder, num_steps=body.num_steps, start_step=body.start_step)
    return web.Response(text="Start profiling.\n")


async def stop_profile(request: web.Request) -> web.Response:
    """GET or POST /stop_profile."""
    await request.app[STATE].llm.stop_profile()
    return web.Response(text="Stop profiling. This will take some time.\n")


async def freeze_gc(request: web.Request) -> web.Response:
    """GET or POST /freeze_gc: what exists now is never walked by the garbage collector again."""
    _ = request.app[STATE].llm
    await asyncio.to_thread(gc.collect)
    gc.freeze()
    return web.Response(text="Garbage collection frozen.\n")


async def set_internal_state(request: web.Request) -> web.Response:
    """POST or PUT /set_internal_state: true for nothing to set, else a 400 that names it."""
    body = parse(InternalStateBody, await read_optional_object(request))
    for name in body.server_args:
        reason = INTERNAL_STATE.get(name, "it cannot be changed while the server runs")
        raise InvalidRequestError(f"`{name}` cannot be set: {reason}.")
    return json_response([True])
