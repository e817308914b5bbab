"""Endpoints of SGLang that are known and not built: each answers with what it lacks."""

from aiohttp import web

from jaxserve.errors import InvalidRequestError
from jaxserve.server.http_errors import Dialect
from jaxserve.server.json_body import read_object, read_v1_object
from jaxserve.server.route import Auth, Route, Status, refused

# SGLang's first sentence, which clients know; its second one names a flag that there is not.
NOT_AN_EMBEDDING_MODEL = (
    "This model does not appear to be an embedding model by default. This server has no "
    "`--is-embedding`: it serves models that generate text; ask one that serves an embedding model."
)
NO_RERANKER = "The served model is not a reranker; serve one that is, or rank by POST /v1/score."
NO_CLASSIFIER = "The served model is not a classifier; serve one that is."
WEIGHT_UPDATES = "the weights of a running server cannot be changed"
LORA = "there are no LoRA adapters"
MEMORY_SAVER = "memory cannot be released while the server runs"
HICACHE = "the prefix cache has no host or storage tier"
NGRAM = "there is no speculative decoding"
EXPERTS = "there is no expert parallelism"
DISAGGREGATION = "prefill and decode are not disaggregated"
REMOTE = "weights are not sent to other instances"
DUMPER = "tensors are not dumped"
GET_POST = ("GET", "POST")
POST = ("POST",)


async def embed(request: web.Request) -> web.StreamResponse:
    """POST or PUT /encode, /v1/embeddings on a model that generates."""
    return await _refuse_model(request, NOT_AN_EMBEDDING_MODEL)


async def classify(request: web.Request) -> web.StreamResponse:
    """POST or PUT /classify, /judge, /v1/classify on a model that generates."""
    native = not request.path.startswith("/v1/")
    return await _refuse_model(request, NOT_AN_EMBEDDING_MODEL if native else NO_CLASSIFIER)


async def rerank(request: web.Request) -> web.StreamResponse:
    """POST or PUT /v1/rerank on a model that generates."""
    return await _refuse_model(request, NO_RERANKER)


async def _refuse_model(request: web.Request, message: str) -> web.StreamResponse:
    is_v1 = request.path.startswith("/v1/")
    await (read_v1_object(request) if is_v1 else read_object(request))  # its errors go first
    raise InvalidRequestError(message)


def _other_model(methods: tuple[str, ...], path: str, kind: str) -> Route:
    handler = {"an embedding model": embed, "a reranker": rerank}.get(kind, classify)
    return Route(
        methods=methods, path=path, handler=handler, body=dict[str, object], media_types=(),
        dialect=Dialect.OPENAI if path.startswith("/v1/") else Dialect.NATIVE,
        summary=f"Needs {kind}: a 400 that says so.", status=Status.REFUSED,
        why=f"the served model generates text; it is not {kind}",
    )  # fmt: skip


def _all(lacks: str, *paths: str, methods: tuple[str, ...] = POST) -> tuple[Route, ...]:
    return tuple(refused(methods, path, lacks, auth=Auth.ADMIN) for path in paths)


ROUTES: tuple[Route, ...] = (
    _other_model(("POST", "PUT"), "/encode", "an embedding model"),
    _other_model(("POST", "PUT"), "/classify", "a reward model or classifier"),
    _other_model(("POST",), "/judge", "a reward model or classifier"),
    _other_model(("POST",), "/v1/embeddings", "an embedding model"),
    _other_model(("POST",), "/v1/classify", "a classifier"),
    _other_model(("POST", "PUT"), "/v1/rerank", "a reranker"),
    *_all(
        WEIGHT_UPDATES, "/update_weights", "/update_weights_from_disk",
        "/init_weights_update_group", "/destroy_weights_update_group", "/begin_weight_update",
        "/end_weight_update", "/update_weights_from_distributed", "/update_weights_from_tensor",
        "/update_weights_from_ipc", "/update_weight_version",
    ),
    *_all(WEIGHT_UPDATES, "/get_weights_by_name", "/weights_checker", methods=GET_POST),
    *_all(
        MEMORY_SAVER, "/release_memory_occupation", "/resume_memory_occupation", methods=GET_POST
    ),
    *_all(
        REMOTE, "/init_weights_send_group_for_remote_instance", "/send_weights_to_remote_instance"
    ),
    *_all(
        REMOTE, "/remote_instance_transfer_engine_info",
        "/get_remote_instance_transfer_engine_info", methods=("GET",),
    ),
    *_all(LORA, "/load_lora_adapter", "/load_lora_adapter_from_tensors", "/unload_lora_adapter"),
    *_all(HICACHE, "/hicache/storage-backend/clear"),
    *_all(HICACHE, "/hicache/storage-backend", methods=("GET", "PUT", "DELETE")),
    *_all(HICACHE, "/get_hicache_l3_cache_layout", methods=("GET",)),
    *_all(HICACHE, "/clear_hicache_storage_backend", methods=GET_POST),
    *_all(NGRAM, "/add_external_corpus", "/remove_external_corpus"),
    *_all(NGRAM, "/list_external_corpora", methods=("GET",)),
    *_all(
        EXPERTS, "/start_expert_distribution_record", "/stop_expert_distribution_record",
        "/dump_expert_distribution_record", methods=GET_POST,
    ),
    *_all(EXPERTS, "/scale_elastic_ep"),
    *_all(EXPERTS, "/is_scaling_elastic_ep", methods=("GET",)),
    *_all(DISAGGREGATION, "/pd_role_switch"),
    *_all(DUMPER, "/dumper/{method}"),
    *_all("there is no tracer", "/set_trace_level", methods=GET_POST),
    *_all("a server does not slow itself down", "/slow_down", methods=GET_POST),
    refused(
        ("POST",), "/v1/audio/transcriptions", "the model takes text only", dialect=Dialect.OPENAI
    ),
    refused(("GET",), "/v1/realtime", "the model takes text only", dialect=Dialect.OPENAI),
    refused(("POST",), "/v1/decisions", "decisions are not built", dialect=Dialect.OPENAI),
    refused(("POST",), "/v1/systemone", "decisions are not built", dialect=Dialect.OPENAI),
    refused(
        GET_POST, "/v1/files", "there is no batch API; send the requests one by one",
        dialect=Dialect.OPENAI,
    ),
    refused(
        GET_POST, "/v1/batches", "there is no batch API; send the requests one by one",
        dialect=Dialect.OPENAI,
    ),
)  # fmt: skip
