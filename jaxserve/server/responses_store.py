"""Responses kept in memory, so that they can be got, continued and cancelled later."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from aiohttp import web

from jaxserve.errors import InvalidRequestError, JaxserveError
from jaxserve.server.json_body import JsonObject

MAX_RESPONSES = 10_000
MAX_BYTES = 256 * 2**20
CONTINUABLE = ("completed", "incomplete")


class ResponseNotFoundError(JaxserveError):
    """No response with that id is stored."""

    status = 404


@dataclass(slots=True)
class StoredResponse:
    """One response: the items of its own request, and its object as it is now.

    ``task`` generates a background response; None once it has ended, and for all others.
    """

    items: list[JsonObject]
    response: JsonObject
    num_bytes: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def uid(self) -> str:
        return str(self.response["id"])


class ResponseStore:
    """The responses used last, as many as fit.

    Args:
        is_enabled: ``--enable-response-store``; without it nothing is kept.
        max_responses, max_bytes: beyond either the ones not used for longest are forgotten.
            A background response that still runs stays.
    """

    def __init__(
        self, *, is_enabled: bool, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES
    ) -> None:
        self.is_enabled = is_enabled
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, StoredResponse] = OrderedDict()
        self._num_bytes = 0

    def put(self, items: list[JsonObject], response: JsonObject) -> StoredResponse:
        """Keep ``response``, whose id is new."""
        record = StoredResponse(items, response)
        self._records[record.uid] = record
        self._weigh(record)
        return record

    def update(self, record: StoredResponse, response: JsonObject) -> None:
        """Replace the object of ``record``, unless it has been deleted."""
        record.response = response
        if self._records.get(record.uid) is record:
            self._weigh(record)

    def __contains__(self, uid: str) -> bool:
        return uid in self._records

    def get(self, uid: str) -> StoredResponse:
        """The response ``uid``.

        Raises:
            ResponseNotFoundError: it is not stored (any more).
        """
        record = self._records.get(uid)
        if record is None:
            raise ResponseNotFoundError(f"Response with id '{uid}' not found.{self._why_not()}")
        self._records.move_to_end(uid)
        return record

    def delete(self, uid: str) -> None:
        """Forget the response ``uid``; if it is still generated, that ends.

        Raises:
            ResponseNotFoundError: it is not stored (any more).
        """
        record = self.get(uid)
        if record.task is not None:
            record.task.cancel()
        self._forget(uid)

    def conversation(self, previous: str | None) -> list[JsonObject]:
        """All items up to and with the output of the response ``previous``, oldest first.

        Raises:
            InvalidRequestError: it, or one that it continues, is not stored or not finished.
        """
        turns: list[Sequence[JsonObject]] = []
        uid = previous
        while uid is not None:
            record = self._records.get(uid)
            if record is None:
                raise InvalidRequestError(
                    f"Previous response with id '{uid}' not found.{self._why_not()}"
                )
            status = record.response["status"]
            if status not in CONTINUABLE:
                raise InvalidRequestError(
                    f"Previous response with id '{uid}' is {status}; only one that is "
                    f"{' or '.join(CONTINUABLE)} can be continued."
                )
            self._records.move_to_end(uid)
            output = record.response["output"]
            assert isinstance(output, list)
            turns.append([*record.items, *output])
            earlier = record.response["previous_response_id"]
            uid = None if earlier is None else str(earlier)
        return [item for turn in reversed(turns) for item in turn]

    async def close(self, app: web.Application) -> None:
        """Cancel what is generated in the background; an ``on_shutdown`` of the application."""
        tasks = [record.task for record in self._records.values() if record.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _why_not(self) -> str:
        if self.is_enabled:
            return " Old responses are forgotten when the store is full."
        return " Responses are stored only with --enable-response-store; send the whole input."

    def _weigh(self, record: StoredResponse) -> None:
        self._num_bytes -= record.num_bytes
        record.num_bytes = len(orjson.dumps([record.items, record.response]))
        self._num_bytes += record.num_bytes
        self._records.move_to_end(record.uid)
        self._evict()

    def _evict(self) -> None:
        while len(self._records) > self._max_responses or self._num_bytes > self._max_bytes:
            oldest = next((u for u, r in self._records.items() if r.task is None), None)
            if oldest is None or oldest == next(reversed(self._records)):
                return
            self._forget(oldest)

    def _forget(self, uid: str) -> None:
        self._num_bytes -= self._records.pop(uid).num_bytes


RESPONSES: web.AppKey[ResponseStore] = web.AppKey("responses", ResponseStore)
