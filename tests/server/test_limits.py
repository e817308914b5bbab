"""The depth of JSON, counted on its bytes, against a count on the decoded value."""

import gzip
import io
import zlib

import orjson
import pytest
from aiohttp.test_utils import TestClient
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.config import ServerConfig
from jaxserve.server.limits import MAX_NESTING, is_too_deep

SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text('ab[]{}"\\', max_size=6)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('[{"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


def depth(value: object) -> int:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, items), default=0)
    return 0


@given(JSON)
def test_the_depth_of_any_json(value: object) -> None:
    raw, levels = orjson.dumps(value), depth(value)
    assert not is_too_deep(raw, levels)
    assert levels == 0 or is_too_deep(raw, levels - 1)


def nested(levels: int) -> bytes:
    return b'{"text": "a", "x": %b%b}' % (b"[" * (levels - 1), b"]" * (levels - 1))


async def test_a_body_too_deep_is_refused(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    for path in ("/generate", "/v1/completions", "/v1/chat/completions"):
        response = await client.post(path, data=nested(MAX_NESTING + 1), headers=headers)
        assert response.status == 400
        assert (await response.json())["message"] == (
            "The body is nested too deep: at most 128 levels of objects and arrays"
        )
    assert (await client.post("/generate", data=nested(MAX_NESTING))).status == 200


@pytest.mark.parametrize("filler", [b" ", b"["])
async def test_a_long_body_is_read_as_a_short_one(client: TestClient, filler: bytes) -> None:
    body = b'{"text": "a", "x": "%b"}' % (filler * 2**20)
    assert (await client.post("/generate", data=io.BytesIO(body))).status == 200


@pytest.mark.parametrize("config", [ServerConfig(max_body_bytes=10_000)])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_body_is_limited_as_what_it_becomes(
    client: TestClient, coding: str
) -> None:
    compress = {"gzip": gzip.compress, "deflate": zlib.compress}[coding]
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    bomb = compress(b'{"text": "%b"}' % (b"a" * 1_000_000))
    assert len(bomb) < 10_000
    response = await client.post("/generate", data=bomb, headers=headers)
    assert response.status == 413
    fits = compress(b'{"text": "a", "sampling_params": {"max_new_tokens": 1}}')
    assert (await client.post("/generate", data=fits, headers=headers)).status == 200
