"""What the bodies of APIs that are translated to chat have in common."""

from jaxserve.server.json_body import JsonObject
from jaxserve.server.openai_types import COMMON_UNSUPPORTED, CommonBody

_NOT_HERE = "only the answers of /v1/chat/completions carry it"
FOREIGN_UNSUPPORTED = COMMON_UNSUPPORTED | {
    "return_token_ids": _NOT_HERE,
    "return_prompt_token_ids": _NOT_HERE,
    "return_cached_tokens_details": _NOT_HERE,
    "return_meta_info": _NOT_HERE,
    "return_hidden_states": _NOT_HERE,
}


def common_fields(body: CommonBody) -> JsonObject:
    """The sampling fields that were sent, as chat takes them; a stream's options are not chat's."""
    return {
        name: getattr(body, name)
        for name in CommonBody.model_fields
        if name in body.model_fields_set and name != "stream_options"
    }
