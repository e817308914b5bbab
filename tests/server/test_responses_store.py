"""Stored responses: got, continued, run in the background, cancelled, forgotten."""

import asyncio

import openai
import pytest
from aiohttp.test_utils import TestClient
from openai.types.responses import Response
from server.fake_llm import FakeLLM

from jaxserve.config import ServerConfig
from jaxserve.errors import InvalidRequestError
from jaxserve.request import FinishReason
from jaxserve.server.foreign_answers import DeletedResponse, InputItemList, ResponseObject
from jaxserve.server.responses_store import ResponseNotFoundError, ResponseStore

TEXT = " Paris is the"
ASK = {"model": "m", "input": "What?", "max_output_tokens": 3}
E6 = {"type": "invalid_request_error", "param": None}


@pytest.fixture
def config() -> ServerConfig:
    return ServerConfig(enable_response_store=True)


async def call(client: TestClient, method: str, path: str, body=None, status: int = 200) -> dict:
    response = await client.request(method, f"/v1/responses{path}", json=body)
    answer = await response.json()
    assert response.status == status, answer
    return answer


async def polled(client: TestClient, uid: str, *until: str) -> dict:
    async with asyncio.timeout(5):
        while True:
            answer = await call(client, "GET", f"/{uid}")
            if answer["status"] in until:
                return answer
            await asyncio.sleep(0.01)


async def test_a_response_is_got_and_deleted(client: TestClient) -> None:
    made = await call(client, "POST", "", ASK)
    assert made["store"] is True
    assert await call(client, "GET", f"/{made['id']}") == made
    gone = {"id": made["id"], "object": "response", "deleted": True}
    assert await call(client, "DELETE", f"/{made['id']}") == gone
    DeletedResponse.model_validate(gone)
    error = (await call(client, "GET", f"/{made['id']}", status=404))["error"]
    assert "not found. Old responses are forgotten" in error.pop("message")
    assert error == E6 | {"code": 404}


async def test_store_false_is_not_stored(client: TestClient) -> None:
    made = await call(client, "POST", "", ASK | {"store": False})
    assert made["store"] is False
    await call(client, "GET", f"/{made['id']}", status=404)


async def test_a_streamed_response_is_stored(client: TestClient) -> None:
    response = await client.post("/v1/responses", json=ASK | {"stream": True, "request_id": "r1"})
    assert "response.incomplete" in await response.text()
    assert (await call(client, "GET", "/r1"))["output"][0]["content"][0]["text"] == TEXT
    error = await call(client, "POST", "", ASK | {"request_id": "r1"}, 400)
    assert error["error"]["message"] == "request_id 'r1' is that of a stored response."
    error = await call(client, "GET", "/r1?stream=true", status=400)
    assert "its events are not kept" in error["error"]["message"]


async def test_conversations_go_on(client: TestClient, llm: FakeLLM) -> None:
    first = await call(client, "POST", "", ASK | {"instructions": "Be brief."})
    items = [{"role": "user", "content": "And?"}, {"role": "user", "content": "So?"}]
    second = await call(
        client, "POST", "", ASK | {"input": items, "previous_response_id": first["id"]}
    )
    await call(client, "POST", "", ASK | {"previous_response_id": second["id"]})
    said = [(message["role"], message["content"]) for message in llm.messages]
    # Instructions are those of each request alone.
    assert said == [
        ("user", "What?"), ("assistant", TEXT), ("user", "And?"), ("user", "So?"),
        ("assistant", TEXT), ("user", "What?"),
    ]  # fmt: skip
    await call(client, "DELETE", f"/{first['id']}")
    answer = await call(client, "POST", "", ASK | {"previous_response_id": second["id"]}, 400)
    assert f"Previous response with id '{first['id']}' not found." in answer["error"]["message"]


async def test_input_items_are_listed_in_pages(client: TestClient) -> None:
    items = [{"role": "user", "content": str(i)} for i in range(3)]
    items.append({"type": "function_call_output", "call_id": "c", "output": "x"})
    uid = (await call(client, "POST", "", ASK | {"input": items}))["id"]
    page = await call(client, "GET", f"/{uid}/input_items?order=asc&limit=2")
    assert page["data"][0] == {
        "id": f"{uid}_0", "type": "message", "role": "user",
        "content": [{"type": "input_text", "text": "0"}],
    }  # fmt: skip
    InputItemList.model_validate(page)
    assert (page["first_id"], page["last_id"], page["has_more"]) == (f"{uid}_0", f"{uid}_1", True)
    rest = await call(client, "GET", f"/{uid}/input_items?order=asc&after={uid}_1")
    assert [item["id"] for item in rest["data"]] == [f"{uid}_2", f"{uid}_3"]
    assert not rest["has_more"]
    newest = await call(client, "GET", f"/{uid}/input_items")
    assert newest["first_id"] == f"{uid}_3"
    for query, message in (
        ("limit=0", "limit must be in [1, 100], got '0'."),
        ("order=up", "order must be asc or desc, got 'up'."),
        ("after=x", "after must be the id of an item, got 'x'."),
    ):
        error = await call(client, "GET", f"/{uid}/input_items?{query}", status=400)
        assert error["error"]["message"] == message


# --- background ---


async def test_background_is_polled(client: TestClient, llm: FakeLLM) -> None:
    gate = asyncio.Event()
    llm.wait = gate.wait
    made = await call(client, "POST", "", ASK | {"background": True})
    Response.model_validate(made)
    ResponseObject.model_validate(made)
    assert (made["status"], made["output"], made["background"]) == ("queued", [], True)
    running = await polled(client, made["id"], "in_progress")
    answer = await call(client, "POST", "", ASK | {"previous_response_id": running["id"]}, 400)
    assert "is in_progress; only one that is completed or" in answer["error"]["message"]
    gate.set()
    done = await polled(client, made["id"], "incomplete")
    assert done["output"][0]["content"][0]["text"] == TEXT
    assert await call(client, "POST", f"/{made['id']}/cancel") == done
    assert not llm.open


@pytest.mark.parametrize("method", ["cancel", "delete"])
async def test_background_is_ended(client: TestClient, llm: FakeLLM, method: str) -> None:
    llm.wait = asyncio.Event().wait
    made = await call(client, "POST", "", ASK | {"background": True})
    assert list(llm.open) == [made["id"]]
    if method == "cancel":
        answer = await call(client, "POST", f"/{made['id']}/cancel")
        assert answer["status"] == "cancelled"
        assert answer == await call(client, "POST", f"/{made['id']}/cancel")
    else:
        await call(client, "DELETE", f"/{made['id']}")
        await asyncio.sleep(0)
    assert not llm.open
    assert llm.closed == [made["id"]]


async def test_background_fails_by_itself(client: TestClient, llm: FakeLLM) -> None:
    llm.abort_at[1] = FinishReason("abort", message="It is dead.", status_code=500)
    made = await call(client, "POST", "", ASK | {"background": True})
    failed = await polled(client, made["id"], "failed")
    assert failed["error"] == {"code": "server_error", "message": "It is dead."}
    Response.model_validate(failed)


async def test_what_is_wrong_with_background_is_told_at_once(client: TestClient) -> None:
    answer = await call(client, "POST", "", ASK | {"background": True, "stream": True}, 400)
    assert "`background` together with `stream` is not supported" in answer["error"]["message"]
    answer = await call(client, "POST", "", ASK | {"background": True, "store": False}, 400)
    assert "`background` is not supported without a store" in answer["error"]["message"]
    await call(client, "POST", "", ASK | {"background": True, "top_p": 2}, 400)


async def test_a_synchronous_response_cannot_be_cancelled(client: TestClient) -> None:
    made = await call(client, "POST", "", ASK)
    answer = await call(client, "POST", f"/{made['id']}/cancel", status=400)
    assert answer["error"]["message"] == "Cannot cancel a synchronous response."


async def test_shutdown_ends_the_background(client: TestClient, llm: FakeLLM) -> None:
    llm.wait = asyncio.Event().wait
    await call(client, "POST", "", ASK | {"background": True})
    await client.close()
    assert not llm.open


# --- bounds ---


def stored(uid: str, previous: str | None = None, text: str = "") -> dict:
    return {
        "id": uid, "status": "completed", "previous_response_id": previous,
        "output": [{"text": text}],
    }  # fmt: skip


def test_the_ones_not_used_for_longest_are_forgotten() -> None:
    store = ResponseStore(is_enabled=True, max_responses=3)
    for uid in "abc":
        store.put([], stored(uid))
    store.get("a")
    store.put([], stored("d"))
    assert [uid in store for uid in "abcd"] == [True, False, True, True]
    with pytest.raises(ResponseNotFoundError, match="'b' not found"):
        store.get("b")


def test_a_conversation_keeps_its_beginning() -> None:
    store = ResponseStore(is_enabled=True, max_responses=3)
    store.put([{"i": 0}], stored("a"))
    store.put([{"i": 1}], stored("b", "a"))
    store.put([], stored("x"))
    items = store.conversation("b")
    assert [item.get("i") for item in items if "i" in item] == [0, 1]
    store.put([], stored("y"))
    assert [uid in store for uid in "abxy"] == [True, True, False, True]


def test_bytes_are_bounded() -> None:
    store = ResponseStore(is_enabled=True, max_bytes=1000)
    for uid in "abcd":
        store.put([], stored(uid, text="x" * 300))
    assert [uid in store for uid in "abcd"] == [False, False, True, True]
    record = store.get("d")
    store.update(record, stored("d", text="x" * 5000))  # one alone may be larger
    assert [uid in store for uid in "cd"] == [False, True]
    store.delete("d")
    store.update(record, stored("d"))
    assert "d" not in store
    with pytest.raises(InvalidRequestError, match="'d' not found"):
        store.conversation("d")


async def test_the_official_client(client: TestClient, llm: FakeLLM) -> None:
    base_url = str(client.make_url("/v1"))
    async with openai.AsyncOpenAI(base_url=base_url, api_key="None") as ai:
        first = await ai.responses.create(model="m", input="What?", max_output_tokens=3)
        assert (await ai.responses.retrieve(first.id)).output_text == TEXT
        await ai.responses.create(model="m", input="And?", previous_response_id=first.id)
        assert len(llm.messages) == 3
        items = [item async for item in ai.responses.input_items.list(first.id)]
        assert items[0].content[0].text == "What?"
        llm.wait = asyncio.Event().wait
        job = await ai.responses.create(model="m", input="What?", background=True)
        assert (await ai.responses.cancel(job.id)).status == "cancelled"
        await ai.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await ai.responses.retrieve(first.id)
