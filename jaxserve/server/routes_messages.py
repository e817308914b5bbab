"""The rows of Anthropic's messages API."""

from jaxserve.server import messages
from jaxserve.server.foreign_answers import MessageObject, TokenCount
from jaxserve.server.http_errors import Dialect
from jaxserve.server.messages_types import MESSAGES_UNSUPPORTED, MessagesBody, TokenCountBody
from jaxserve.server.route import EVENTS, Route, Status

ROUTES = (
    Route(
        methods=("POST",), path="/v1/messages", handler=messages.create_message,
        dialect=Dialect.MESSAGES, starts_work=True, body=MessagesBody,
        refuses=MESSAGES_UNSUPPORTED,
        answer=MessageObject, summary="Answer a conversation, in Anthropic's API.",
        media_types=("application/json", EVENTS), status=Status.DIFFERS,
        why="`max_tokens` is shortened to what fits in the context (stop_reason "
        "`model_context_window_exceeded`). `thinking.budget_tokens` is enforced with "
        "--enable-strict-thinking, else checked only. "
        "Tools are your own only; an `is_error` result is shown to the model with `Error: ` "
        "before it. A key may also come as `x-api-key`.",
    ),
    Route(
        methods=("POST",), path="/v1/messages/count_tokens", handler=messages.count_tokens,
        dialect=Dialect.MESSAGES, body=TokenCountBody,
        refuses=MESSAGES_UNSUPPORTED,
        answer=TokenCount, summary="How many tokens the prompt of such a request has.",
    ),
)  # fmt: skip
