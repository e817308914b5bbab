"""GET /v1/models: the served model."""

import time

from aiohttp import web

from jaxserve.server.http_errors import json_response
from jaxserve.server.json_body import JsonObject
from jaxserve.server.state import STATE, ServerState


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models."""
    return json_response({"object": "list", "data": [model_card(request.app[STATE])]})


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}."""
    card = model_card(request.app[STATE])
    name = request.match_info["model"]
    if name == card["id"]:
        return json_response(card)
    error = {
        "message": f"The model '{name}' does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    return json_response({"error": error}, 404)


def model_card(state: ServerState) -> JsonObject:
    """What OpenAI's clients are told of the served model."""
    name = state.served_model_name
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "jaxserve",
        "root": name,
        "parent": None,
        "max_model_len": state.llm.info.context_len,
    }
