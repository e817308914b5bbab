"""The rows of OpenAI's endpoints."""

from jaxserve.server import openai_chat, openai_completions, openai_models, score
from jaxserve.server.chat_types import CHAT_UNSUPPORTED, ChatBody
from jaxserve.server.http_errors import Dialect
from jaxserve.server.openai_answers import ChatCompletion, Completion, ModelCard, ModelList, Scores
from jaxserve.server.openai_types import COMPLETION_UNSUPPORTED, CompletionBody
from jaxserve.server.route import EVENTS, Route, Status

ROUTES = (
    Route(
        methods=("GET",), path="/v1/models", handler=openai_models.list_models,
        dialect=Dialect.OPENAI, answer=ModelList,
        summary="The served model.", status=Status.DIFFERS,
        why="`owned_by` is `jaxserve`.",
    ),
    Route(
        methods=("GET",), path="/v1/models/{model:.+}", handler=openai_models.get_model,
        dialect=Dialect.OPENAI, answer=ModelCard,
        summary="The served model, or 404 `model_not_found`.",
    ),
    Route(
        methods=("POST",), path="/v1/completions", handler=openai_completions.completions,
        dialect=Dialect.OPENAI, starts_work=True, body=CompletionBody,
        refuses=COMPLETION_UNSUPPORTED, answer=Completion,
        summary="Complete a prompt.", status=Status.DIFFERS,
        why="`seed` is always honoured. `suffix` is a 400. `best_of` is OpenAI's: the likeliest "
        "`n` of so many samples, not with `stream` (SGLang ignores both).",
        media_types=("application/json", EVENTS),
    ),
    Route(
        methods=("POST",), path="/v1/chat/completions", handler=openai_chat.chat_completions,
        dialect=Dialect.OPENAI, starts_work=True, body=ChatBody, refuses=CHAT_UNSUPPORTED,
        answer=ChatCompletion, summary="Answer a conversation.", status=Status.DIFFERS,
        why="`seed` is always honoured. `tools` with `tool_choice` \"auto\" need "
        "`--tool-call-parser`. `response_format` beside tools makes the answer either match it or "
        "call (SGLang: no calls). With `parallel_tool_calls` false there is one call at most.",
        media_types=("application/json", EVENTS),
    ),
    Route(
        methods=("POST",), path="/invocations", handler=openai_chat.chat_completions,
        dialect=Dialect.OPENAI, starts_work=True, body=ChatBody, refuses=CHAT_UNSUPPORTED,
        answer=ChatCompletion, summary="As /v1/chat/completions, for SageMaker.",
        media_types=("application/json", EVENTS),
    ),
    Route(
        methods=("POST",), path="/v1/score", handler=score.score, dialect=Dialect.OPENAI,
        starts_work=True, body=score.ScoreBody, refuses=score.SCORE_UNSUPPORTED,
        answer=Scores,
        summary="How likely given tokens are to come after a query and each of its items.",
        status=Status.DIFFERS,
        why="More than 64 `label_token_ids` are scored in several sequences per item.",
    ),
)  # fmt: skip
