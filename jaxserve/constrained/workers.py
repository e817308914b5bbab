"""Daemon threads for work that cannot be interrupted."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

STACK_BYTES = 16 << 20


class Workers:
    """A pool of daemon threads.

    concurrent.futures' own pool waits for its threads when the process ends, so one grammar that
    takes for ever would keep the process alive.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._num_threads = num_threads
        self._name = name
        for _ in range(num_threads):
            self._start_thread()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run ``job`` on some thread.  A future that is cancelled before that is skipped."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(job())
            finally:
                if not future.done():
                    future.set_exception(RuntimeError(f"a {self._name} thread failed; see its log"))

        self._jobs.put(run)
        return future

    def close(self) -> None:
        """Let the threads end after what is queued.  Does not wait."""
        for _ in range(self._num_threads):
            self._jobs.put(None)

    def _start_thread(self) -> None:
        usual = threading.stack_size(STACK_BYTES)
        threading.Thread(target=self._run, name=self._name, daemon=True).start()
        threading.stack_size(usual)

    def _run(self) -> None:
        is_closed = False
        try:
            while (job := self._jobs.get()) is not None:
                job()
            is_closed = True
        finally:
            if not is_closed:  # a defect: its traceback ends this thread, another takes over
                self._start_thread()
