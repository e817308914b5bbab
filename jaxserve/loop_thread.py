"""An event loop in a thread of its own, for blocking calls into asynchronous code.

It works from a plain script and from inside a running loop (a notebook) alike.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from jaxserve.errors import EngineDeadError

T = TypeVar("T")

GRACE_S = 5.0


class LoopThread:
    """Starts with the first call; ``stop`` ends it for good."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_stopped = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return or raise what it does; an interrupted wait cancels it.

        Raises:
            EngineDeadError: after ``stop``.
        """
        loop = self._running_loop()
        if loop is None:
            coroutine.close()
            raise EngineDeadError("the LLM was shut down; make a new one")
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def iterate(self, source: AsyncGenerator[T, None]) -> Iterator[T]:
        """Items of ``source``, each asked for when it is wanted; leaving early closes it.

        Raises:
            EngineDeadError: after ``stop``.
        """
        try:
            while True:
                try:
                    yield self.run(_next(source))
                except StopAsyncIteration:
                    return
        finally:
            with suppress(EngineDeadError):  # stop() has closed it
                self.run(_close(source))

    def stop(self) -> None:
        """Let what runs come to its end, for a few seconds; then end the thread.  Idempotent."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            self._is_stopped = True
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(_finish_tasks(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _running_loop(self) -> asyncio.AbstractEventLoop | None:
        with self._lock:
            if self._loop is None and not self._is_stopped:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name=self._name, daemon=True
                )
                self._thread.start()
            return self._loop


async def _next(source: AsyncGenerator[T, None]) -> T:
    return await anext(source)


async def _close(source: AsyncGenerator[Any, None]) -> None:
    await source.aclose()


async def _finish_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        _, unfinished = await asyncio.wait(tasks, timeout=GRACE_S)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
