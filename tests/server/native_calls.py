"""Calls of /generate that several test files share."""

import json

from aiohttp.test_utils import TestClient

SHORT = {"max_new_tokens": 3, "temperature": 0}
TEXT = " Paris is the"


async def generate(client: TestClient, body: object, status: int = 200) -> object:
    response = await client.post("/generate", json=body)
    answer = await response.json()
    assert response.status == status, answer
    return answer


def events(raw: str) -> list[dict]:
    *data, done, end = raw.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in data]


async def stream(client: TestClient, body: dict) -> list[dict]:
    response = await client.post("/generate", json=body | {"stream": True})
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    return events(await response.text())
