"""The rows of Ollama's API."""

from jaxserve.server import ollama
from jaxserve.server.foreign_answers import OllamaChatAnswer, OllamaGenerateAnswer
from jaxserve.server.http_errors import Dialect
from jaxserve.server.ollama_types import (
    CHAT_UNSUPPORTED,
    GENERATE_UNSUPPORTED,
    OllamaChatBody,
    OllamaGenerateBody,
)
from jaxserve.server.route import Route, Status, refused

_DIFFERS = (
    "`options.num_ctx` is no limit: a prompt that does not fit is a 400, never cut. "
    "`options.num_predict` is 2048 by default and shortened to what fits. Samplers that there are "
    "not (mirostat, tfs_z, typical_p, a repeat_last_n other than -1) and unknown options are a 400."
)

ROUTES = (
    Route(
        methods=("POST",), path="/api/chat", handler=ollama.chat, dialect=Dialect.OLLAMA,
        starts_work=True, body=OllamaChatBody, refuses=CHAT_UNSUPPORTED,
        answer=OllamaChatAnswer, summary="Answer a conversation, in Ollama's API.",
        media_types=("application/json", ollama.LINES), status=Status.DIFFERS, why=_DIFFERS,
    ),
    Route(
        methods=("POST",), path="/api/generate", handler=ollama.generate, dialect=Dialect.OLLAMA,
        starts_work=True, body=OllamaGenerateBody, refuses=GENERATE_UNSUPPORTED,
        answer=OllamaGenerateAnswer, summary="Answer a prompt, in Ollama's API.",
        media_types=("application/json", ollama.LINES), status=Status.DIFFERS,
        why=f"{_DIFFERS} `context`, `template`, `suffix` and `images` are a 400.",
    ),
    Route(
        methods=("GET",), path="/api/tags", handler=ollama.list_models, dialect=Dialect.OLLAMA,
        summary="The served model, as Ollama lists it.",
    ),
    Route(
        methods=("POST",), path="/api/show", handler=ollama.show, dialect=Dialect.OLLAMA,
        body=dict[str, object], summary="The served model: template, context, capabilities.",
        status=Status.DIFFERS, why="Any name is the served model.",
    ),
    Route(
        methods=("GET",), path="/api/ps", handler=ollama.list_running, dialect=Dialect.OLLAMA,
        summary="The served model, as Ollama lists loaded ones.", status=Status.ADDED,
    ),
    Route(
        methods=("GET",), path="/api/version", handler=ollama.version, dialect=Dialect.OLLAMA,
        summary="The version of jaxserve.", status=Status.ADDED,
    ),
    refused(
        ("POST",), "/api/embed", "the model generates text and makes no embeddings",
        dialect=Dialect.OLLAMA,
    ),
)  # fmt: skip
