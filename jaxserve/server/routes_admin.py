"""The rows of the endpoints for information and control."""

from jaxserve.config import ServerConfig
from jaxserve.server import admin, control, loads, openapi
from jaxserve.server.route import Auth, Route, Status

TEXT = ("text/plain",)


def _has_metrics(config: ServerConfig) -> bool:
    return config.enable_metrics


def _has_documents(config: ServerConfig) -> bool:
    return not config.disable_openapi_doc


ROUTES = (
    Route(
        methods=("GET",), path="/", handler=admin.root, media_types=TEXT,
        summary="A line for people and for tools that look whether something is there.",
        status=Status.DIFFERS, why="Says `jaxserve is running`.",
    ),
    Route(
        methods=("GET",), path="/model_info", handler=admin.model_info, answer=dict[str, object],
        summary="Model path, names, type, architectures, weight version.",
    ),
    Route(
        methods=("GET",), path="/get_model_info", handler=admin.get_model_info,
        answer=dict[str, object],
        summary="As /model_info.", status=Status.DIFFERS,
        why="With `--api-compat 0.3` exactly `model_path` and `is_generation`.",
    ),
    Route(
        methods=("GET",), path="/server_info", handler=admin.server_info, answer=dict[str, object],
        summary="All flags, sizes, and what the engine does now.",
    ),
    Route(
        methods=("GET",), path="/get_server_info", handler=admin.server_info,
        answer=dict[str, object],
        summary="As /server_info.",
    ),
    Route(
        methods=("GET",), path="/get_server_args", handler=admin.get_server_args,
        answer=dict[str, object],
        summary="All flags.", status=Status.DIFFERS, why="Keys are shown as `***`.",
    ),
    Route(
        methods=("GET", "POST"), path="/get_memory_pool_size", handler=admin.get_memory_pool_size,
        answer=int,
        summary="Size of the KV pool in tokens, a bare integer.",
    ),
    Route(
        methods=("GET", "POST"), path="/flush_cache", handler=admin.flush_cache, auth=Auth.ADMIN,
        summary="Empty the prefix cache; 400 while anything runs or waits.", media_types=TEXT,
        query=admin.FlushQuery,
    ),
    Route(
        methods=("GET",), path="/v1/loads", handler=loads.loads,
        answer=dict[str, object],
        summary="How loaded the server is.", media_types=("application/json", "text/plain"),
        query=loads.LoadsQuery,
        status=Status.DIFFERS,
        why="`num_waiting_uncached_tokens` counts whole prompts: what of them is cached is known "
        "when they start. `speculative`, `lora` and `disaggregation` are null.",
    ),
    Route(
        methods=("GET",), path="/get_load", handler=loads.get_load,
        answer=list[dict[str, int]],
        summary="As sglang-router asks for it: requests and tokens per rank.",
    ),
    Route(
        methods=("GET",), path="/get_weight_version", handler=admin.get_weight_version,
        answer=dict[str, str],
        summary="The label of the weights.",
    ),
    Route(
        methods=("GET", "POST"), path="/configure_logging", handler=control.configure_logging,
        auth=Auth.ADMIN, body=control.LoggingBody, body_is_optional=True,
        refuses=control.LOGGING_UNSUPPORTED, media_types=(),
        summary="Change what is logged.", status=Status.DIFFERS,
        why="Requests are not dumped to files: those fields are a 400.",
    ),
    Route(
        methods=("GET", "POST"), path="/start_profile", handler=control.start_profile,
        auth=Auth.ADMIN, body=control.ProfileBody, body_is_optional=True,
        refuses=control.PROFILE_UNSUPPORTED, media_types=TEXT,
        summary="Start a jax.profiler trace, for TensorBoard or Perfetto.",
        status=Status.DIFFERS,
        why="`profile_by_stage`, `profile_stages`, `merge_profiles` and `detailed_annotations` "
        "are a 400, and so are the activities MEM and RPD.",
    ),
    Route(
        methods=("GET", "POST"), path="/stop_profile", handler=control.stop_profile,
        auth=Auth.ADMIN, media_types=TEXT, summary="End the trace and write it.",
    ),
    Route(
        methods=("GET", "POST"), path="/freeze_gc", handler=control.freeze_gc, auth=Auth.ADMIN,
        media_types=TEXT, summary="Keep the garbage collector from what exists now.",
        status=Status.DIFFERS, why="The server has done it by itself when it becomes ready.",
    ),
    Route(
        methods=("POST", "PUT"), path="/set_internal_state", handler=control.set_internal_state,
        answer=list[bool],
        auth=Auth.ADMIN, body=control.InternalStateBody, summary="`[true]`.",
        status=Status.DIFFERS,
        why="Nothing of SGLang's list exists here: each name is a 400 that says why.",
    ),
    Route(
        methods=("POST",), path="/abort_request", handler=admin.abort_request, auth=Auth.ADMIN,
        body=admin.AbortBody,
        summary="Abort the requests whose rid starts with `rid`, or all.", media_types=(),
        status=Status.DIFFERS, why="An empty rid alone aborts nothing; in SGLang everything.",
    ),
    Route(
        methods=("GET",), path="/openapi.json", handler=openapi.openapi_json,
        answer=dict[str, object], summary="This document.", is_enabled=_has_documents,
        status=Status.DIFFERS, why="OpenAPI 3.1. `--disable-openapi-doc` takes it away.",
    ),
    Route(
        methods=("GET",), path="/docs", handler=openapi.docs_page, media_types=("text/html",),
        summary="A page to read and try the API.", is_enabled=_has_documents,
        status=Status.DIFFERS, why="It loads nothing from elsewhere.",
    ),
    Route(
        methods=("GET",), path="/metrics", handler=admin.metrics, auth=Auth.OPEN,
        summary="Prometheus text.", media_types=TEXT, is_enabled=_has_metrics,
        status=Status.DIFFERS, why="On by default; `--no-enable-metrics` takes it away.",
    ),
)  # fmt: skip
