"""The keys: which of the two opens what, over every endpoint there is."""

import pytest
from aiohttp.test_utils import TestClient

from jaxserve.config import ServerConfig
from jaxserve.server.auth import OPEN_PREFIXES, needed_key
from jaxserve.server.route import Auth
from jaxserve.server.routes import ROUTES

ONLY_API = ServerConfig(api_key="a")
ONLY_ADMIN = ServerConfig(admin_api_key="b")
BOTH = ServerConfig(api_key="a", admin_api_key="b")
# API.md's list of what controls the server.
ADMIN_PATHS = {
    "/flush_cache", "/abort_request", "/pause_generation", "/continue_generation",
    "/start_profile", "/stop_profile", "/configure_logging", "/freeze_gc", "/set_internal_state",
    "/slow_down", "/start_expert_distribution_record", "/stop_expert_distribution_record",
    "/dump_expert_distribution_record", "/dumper/{method}", "/hicache/storage-backend/clear",
    "/hicache/storage-backend", "/get_hicache_l3_cache_layout", "/clear_hicache_storage_backend",
    "/add_external_corpus", "/remove_external_corpus", "/list_external_corpora", "/pd_role_switch",
    "/update_weights", "/update_weights_from_disk", "/init_weights_update_group",
    "/destroy_weights_update_group", "/begin_weight_update", "/end_weight_update",
    "/update_weights_from_distributed", "/update_weights_from_tensor", "/update_weights_from_ipc",
    "/update_weight_version", "/get_weights_by_name", "/release_memory_occupation",
    "/resume_memory_occupation", "/weights_checker", "/load_lora_adapter",
    "/load_lora_adapter_from_tensors", "/unload_lora_adapter",
    "/init_weights_send_group_for_remote_instance", "/send_weights_to_remote_instance",
}  # fmt: skip


@pytest.mark.parametrize("row", ROUTES, ids=lambda row: row.path)
def test_the_key_of_every_endpoint(row) -> None:
    keys = [needed_key(config, row.path, row) for config in (ONLY_API, ONLY_ADMIN, BOTH)]
    if row.path.startswith(OPEN_PREFIXES):
        assert (row.auth, keys) == (Auth.OPEN, [None, None, None])
    elif row.auth is Auth.ADMIN:
        assert keys == ["a", "b", "b"]
    else:
        assert (row.auth, keys) == (Auth.NORMAL, ["a", None, "a"])


def test_what_controls_the_server_is_of_the_admin_level() -> None:
    levels = {row.path: row.auth for row in ROUTES}
    assert {path for path in ADMIN_PATHS if levels[path] is not Auth.ADMIN} == set()


def test_without_keys_everything_is_open() -> None:
    assert {needed_key(ServerConfig(), row.path, row) for row in ROUTES} == {None}


@pytest.mark.parametrize("config", [BOTH])
@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/flush_cache", {"Authorization": "Bearer a"}, 401),
        ("/flush_cache", {"Authorization": "Bearer b"}, 200),
        ("/flush_cache", {"x-api-key": "b"}, 200),
        ("/flush_cache", {"x-api-key": "a"}, 401),
        ("/model_info", {"Authorization": "Bearer a"}, 200),
        ("/model_info", {"Authorization": "Bearer b"}, 401),
        ("/model_info", {"x-api-key": "a"}, 200),
        ("/model_info", {"Authorization": "bearer a"}, 401),
        ("/model_info", {"Authorization": "Bearer a "}, 200),  # HTTP strips the space
        ("/model_info", {}, 401),
        ("/model_info", {"Authorization": ""}, 401),
        ("/no/such/path", {"Authorization": "Bearer a"}, 404),
        ("/no/such/path", {}, 401),
        ("/health", {}, 200),
    ],
)
async def test_both_keys(client: TestClient, path: str, headers: dict, status: int) -> None:
    response = await client.get(path, headers=headers)
    assert response.status == status
    if status == 401:
        assert await response.json() == {"error": "Unauthorized"}


async def test_a_preflight_names_the_headers_that_were_asked_for(client: TestClient) -> None:
    asked = {"Access-Control-Request-Headers": "authorization,content-type", "Origin": "http://x"}
    response = await client.options("/v1/chat/completions", headers=asked)
    assert response.status == 200
    assert response.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert "POST" in response.headers["Access-Control-Allow-Methods"]
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in response.headers
