"""What is not built says so: every refused endpoint, in the words of its API."""

import pytest
from aiohttp.test_utils import TestClient

from jaxserve.server.http_errors import Dialect
from jaxserve.server.refused import ROUTES as REFUSED
from jaxserve.server.route import Status

NOT_BUILT = [row for row in REFUSED if row.body is None]
each_row = pytest.mark.parametrize("row", NOT_BUILT, ids=lambda row: row.path)


@each_row
async def test_a_501_that_says_what_is_missing(client: TestClient, row) -> None:
    assert row.status is Status.REFUSED
    for method in row.methods:
        response = await client.request(method, row.path.replace("{method}", "x"), json={})
        assert response.status == 501
        answer = await response.json()
        assert answer["message"] == f"{row.path} is not supported: {row.why}."
        kind = "NotImplementedError" if row.dialect is Dialect.OPENAI else "501"
        assert (answer["object"], answer["type"], answer["code"]) == ("error", kind, 501)


EMBEDDING = (
    "This model does not appear to be an embedding model by default. This server has no "
    "`--is-embedding`: it serves models that generate text; ask one that serves an embedding model."
)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/encode", EMBEDDING),
        ("/classify", EMBEDDING),
        ("/judge", EMBEDDING),
        ("/v1/embeddings", EMBEDDING),
        ("/v1/classify", "The served model is not a classifier; serve one that is."),
        ("/v1/rerank", "The served model is not a reranker; serve one that is, or rank by POST "
         "/v1/score."),
    ],
)  # fmt: skip
async def test_endpoints_of_other_models(client: TestClient, path: str, message: str) -> None:
    response = await client.post(path, json={"model": "m", "input": "a", "text": "a"})
    assert response.status == 400
    answer = await response.json()
    if path.startswith("/v1/"):
        expected = {"type": "BadRequestError", "param": None, "code": 400}
        assert answer == {"object": "error", "message": message, **expected}
    else:
        assert answer == {"error": {"message": message}}
    assert (await client.post(path, data=b"{", headers={"Content-Type": "application/json"})
            ).status == 400  # fmt: skip
