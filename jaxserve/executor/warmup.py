"""Compile every program before the first request, and notice anything compiled after."""

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
from tqdm import tqdm

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)

_BACKEND_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """Counts what the process compiles, by listening to jax; ``since_freeze`` should stay 0."""

    def __init__(self) -> None:
        self.total = 0
        self._frozen_at: int | None = None
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    @property
    def since_freeze(self) -> int:
        """Programs compiled after ``freeze``; 0 before it."""
        return 0 if self._frozen_at is None else self.total - self._frozen_at

    def freeze(self) -> None:
        """From here on nothing should be compiled."""
        self._frozen_at = self.total

    def close(self) -> None:
        """Stop listening: jax tells every listener of every engine in the process."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event != _BACKEND_COMPILE_EVENT:
            return
        self.total += 1
        if self._frozen_at is not None:
            logger.warning(
                "a program was compiled after warm-up (%.2f s); every request waited for it",
                duration_secs,
            )


def compile_all(
    keys: Iterable[Key], lower: Callable[[Key], Any], *, num_threads: int, what: str
) -> Mapping[Key, Any]:
    """Compile ``lower(key)`` for every key, in parallel threads, with a progress bar.

    Tracing and lowering hold the GIL and stay on this thread; compiling does not.
    """
    started = time.monotonic()
    todo = tuple(keys)
    with (
        ThreadPoolExecutor(num_threads, thread_name_prefix="compile") as pool,
        tqdm(total=len(todo), desc=f"Compiling {what}", unit="program") as bar,
    ):
        futures = {}
        for key in todo:
            future = pool.submit(lower(key).compile)
            future.add_done_callback(lambda _: bar.update())
            futures[key] = future
        compiled = {key: future.result() for key, future in futures.items()}
    logger.info("compiled %d %s in %.1f s", len(todo), what, time.monotonic() - started)
    return compiled
