"""Information and control: model and server info, cache, abort, metrics."""

import asyncio
import dataclasses

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from jaxserve.config import GIB, SECRETS
from jaxserve.server.http_errors import json_response
from jaxserve.server.json_body import JsonObject, parse, parse_query, read_object
from jaxserve.server.state import STATE, VERSION, ServerState

FLUSH_POLL_S = 0.05
# Flags that clients read and that have one value here.
ONLY_SGLANGS = {
    "dp_size": 1,
    "pp_size": 1,
    "ep_size": 1,
    "nnodes": 1,
    "node_rank": 0,
    "is_embedding": False,
    "enable_lora": False,
    "quantization": None,
    "kv_cache_dtype": "auto",
    "disaggregation_mode": "null",
    "disaggregation_bootstrap_port": None,
    "speculative_algorithm": None,
    "enable_dp_attention": False,
    "load_balance_method": "round_robin",
    "trust_remote_code": False,
    "tokenizer_mode": "auto",
    "skip_tokenizer_init": False,
}
FLUSH_TEXT = (
    "Cache flushed.\nPlease check backend logs for more details. (When there are running or "
    "waiting requests, the operation will not be performed.)\n"
)


class FlushQuery(BaseModel):
    """/flush_cache?…"""

    timeout: float = Field(0.0, ge=0, le=3600, description="Seconds to wait for idleness.")


class AbortBody(BaseModel):
    """POST /abort_request."""

    model_config = ConfigDict(extra="ignore")

    rid: str = Field("", description="Beginning of the rids to abort; an unknown one is no error.")
    abort_all: bool = Field(False, description="Abort everything.")


async def root(request: web.Request) -> web.Response:
    """GET /: a line for people and for tools that look whether something is there."""
    return web.Response(text="jaxserve is running")


async def model_info(request: web.Request) -> web.Response:
    """GET /model_info: always the 0.5 shape."""
    return json_response(_model_info(request.app[STATE]))


async def get_model_info(request: web.Request) -> web.Response:
    """GET /get_model_info: the 0.5 shape, or with ``--api-compat 0.3`` exactly two keys."""
    state = request.app[STATE]
    full = _model_info(state)
    if state.config.api_compat == "0.3":
        return json_response({key: full[key] for key in ("model_path", "is_generation")})
    return json_response(full)


def _model_info(state: ServerState) -> JsonObject:
    info = state.llm.info
    return {
        "model_path": info.model_path,
        "served_model_name": state.served_model_name,
        "tokenizer_path": info.tokenizer_path,
        "is_generation": info.is_generation,
        "preferred_sampling_params": state.config.preferred_sampling_params,
        "weight_version": info.weight_version,
        "load_format": info.load_format,
        "reasoning_parser": info.reasoning_parser,
        "tool_call_parser": info.tool_call_parser,
        "disaggregation_mode": "null",
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": info.model_type,
        "architectures": list(info.architectures),
    }


def server_args(state: ServerState) -> JsonObject:
    """All flags as the server runs with them; keys and passwords are not shown."""
    args = {**dataclasses.asdict(state.llm.config), **dataclasses.asdict(state.config)}
    info = state.llm.info
    return args | {
        "model_path": info.model_path,
        "tokenizer_path": info.tokenizer_path,
        "served_model_name": state.served_model_name,
        **{name: "***" for name in SECRETS if args[name] is not None},
        **{name: value for name, value in ONLY_SGLANGS.items() if name not in args},
    }


async def get_server_args(request: web.Request) -> web.Response:
    """GET /get_server_args."""
    return json_response(server_args(request.app[STATE]))


async def server_info(request: web.Request) -> web.Response:
    """GET /server_info, /get_server_info: flags, sizes and what the engine does now."""
    state = request.app[STATE]
    args, info, stats = server_args(state), state.llm.info, state.llm.stats()
    engine = args | {
        "world_size": args["tp_size"],
        "effective_max_running_requests_per_dp": args["max_running_requests"],
        "last_gen_throughput": stats.gen_throughput,
        "avg_spec_accept_length": None,
        "memory_usage": {
            "weight": round(stats.weight_bytes / GIB, 2),
            "kvcache": round(stats.kv_cache_bytes / GIB, 2),
            "token_capacity": info.max_total_num_tokens,
            "graph": 0.0,
        },
        "num_running_reqs": stats.num_running,
        "num_waiting_reqs": stats.num_waiting,
        "num_used_tokens": stats.num_used_tokens,
        "num_evictable_tokens": stats.num_evictable_tokens,
        "num_available_tokens": stats.num_available_tokens,
        "cache_hit_rate": stats.cache_hit_rate,
        "num_retractions": stats.num_retractions,
    }
    return json_response(
        args
        | {
            "launch_command": state.launch_command,
            "scheduler_info": {
                "max_total_num_tokens": info.max_total_num_tokens,
                "max_req_input_len": info.max_req_input_len,
            },
            "max_total_num_tokens": info.max_total_num_tokens,
            "startup_time": state.startup_s,
            "kv_events": None,
            "internal_states": [engine],
            "version": VERSION,
            "frontend": "python",
        }
    )


async def get_weight_version(request: web.Request) -> web.Response:
    """GET /get_weight_version."""
    return json_response({"weight_version": request.app[STATE].llm.info.weight_version})


async def get_memory_pool_size(request: web.Request) -> web.Response:
    """GET or POST /get_memory_pool_size: the KV pool's size in tokens, a bare integer."""
    return json_response(request.app[STATE].llm.info.max_total_num_tokens)


async def flush_cache(request: web.Request) -> web.Response:
    """GET or POST /flush_cache?timeout=seconds: 200, or 400 while anything runs or waits."""
    llm = request.app[STATE].llm
    timeout_s = parse_query(FlushQuery, request).timeout
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not (flushed := await llm.flush_cache()) and loop.time() < deadline_s:
        await asyncio.sleep(FLUSH_POLL_S)
    return web.Response(text=FLUSH_TEXT, status=200 if flushed else 400)


async def abort_request(request: web.Request) -> web.Response:
    """POST /abort_request: abort the rids that start with ``rid``, or all.  Always 200."""
    llm = request.app[STATE].llm
    body = parse(AbortBody, await read_object(request))
    if body.abort_all:
        llm.abort_all()
    elif body.rid:
        llm.abort(body.rid)
    return web.Response()


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus text."""
    llm = request.app[STATE].llm
    llm.metrics.step(llm.stats())
    return web.Response(
        body=llm.metrics.render(), headers={"Content-Type": llm.metrics.content_type}
    )
