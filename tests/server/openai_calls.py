"""How the tests of OpenAI's endpoints ask and read."""

import json

from aiohttp.test_utils import TestClient
from server.fake_llm import NUM_TO_EOS

HELLO = [{"role": "user", "content": "What is the weather in Rome?"}]
CHAT = {"messages": HELLO, "rid": "r", "model": "m"}


def said(*parts: str) -> tuple[str, ...]:
    """What a FakeLLM says in ``parts``, a token each, before its end-of-sequence token."""
    assert len(parts) <= NUM_TO_EOS
    return (*parts, *[""] * (NUM_TO_EOS - len(parts)))


async def post(client: TestClient, path: str, body: object, status: int = 200) -> dict:
    response = await client.post(f"/v1/{path}", json=body)
    answer = await response.json()
    assert response.status == status, answer
    return answer


async def raw_stream(client: TestClient, path: str, body: dict) -> list[str]:
    response = await client.post(f"/v1/{path}", json=body | {"stream": True})
    raw = await response.text()
    assert response.status == 200, raw
    *data, done, end = raw.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return data


async def stream(client: TestClient, path: str, body: dict) -> list[dict]:
    return [json.loads(e.removeprefix("data: ")) for e in await raw_stream(client, path, body)]


async def chat(client: TestClient, **fields: object) -> dict:
    """The only choice of a whole answer."""
    answer = await post(client, "chat/completions", CHAT | fields)
    (choice,) = answer["choices"]
    return choice | {"usage": answer["usage"]}


async def chat_deltas(client: TestClient, **fields: object) -> list[dict]:
    """The deltas of a streamed answer's only choice, without the role's; the last has
    ``finish_reason`` too."""
    role, *choices = [
        c["choices"][0] for c in await stream(client, "chat/completions", CHAT | fields)
    ]
    assert role["delta"] == {"role": "assistant", "content": "", "reasoning_content": None}
    assert all("reasoning_content" in choice["delta"] for choice in choices)
    assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)
    return [c["delta"] for c in choices[:-1]] + [{"finish_reason": choices[-1]["finish_reason"]}]
