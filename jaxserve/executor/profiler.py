"""Traces of the device and of the host, for TensorBoard and Perfetto."""

import logging
import os
import tempfile
from dataclasses import dataclass

import jax

from jaxserve.errors import InvalidRequestError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Trace:
    output_dir: str
    first_step: int  # number of the first step in it
    last_step: int | None


class Profiler:
    """At most one trace at a time, at once or over a range of steps.  Steps count from 1."""

    def __init__(self) -> None:
        self._num_launched = 0
        self._num_finished = 0
        self._trace: _Trace | None = None
        self._is_recording = False

    def start(
        self,
        output_dir: str | None = None,
        num_steps: int | None = None,
        start_step: int | None = None,
    ) -> None:
        """Trace into a folder, which is made; until ``stop`` or for some steps.

        Args:
            output_dir: None: a new temporary folder, named in the log.
            num_steps: steps after which the trace ends by itself.
            start_step: number of the first step to trace, counted from the start of the engine;
                the next one, if None or past.

        Raises:
            InvalidRequestError: a trace is running or waits for its first step, ``num_steps`` is
                below 1, or the folder cannot be made.
        """
        if self._trace is not None:
            raise InvalidRequestError(
                f"profiling into {self._trace.output_dir} is in progress; call /stop_profile first"
            )
        if num_steps is not None and num_steps < 1:
            raise InvalidRequestError(f"num_steps must be at least 1, got {num_steps}")
        first = max(start_step or 0, self._num_launched + 1)
        last = None if num_steps is None else first + num_steps - 1
        folder = output_dir or tempfile.mkdtemp(prefix="jaxserve-profile-")
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise InvalidRequestError(
                f"cannot write a profile to {folder!r}: {error.strerror}; "
                "give an output_dir that the server may write to"
            ) from error
        self._trace = _Trace(folder, first, last)
        if start_step is None:
            self._record()

    def stop(self) -> None:
        """End the trace and write it.

        Raises:
            InvalidRequestError: there is none.
        """
        if self._trace is None:
            raise InvalidRequestError("no profiling is in progress; call /start_profile first")
        folder, self._trace = self._trace.output_dir, None
        if not self._is_recording:
            return
        self._is_recording = False
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError):  # a full disk must not end the engine
            logger.exception("the profile could not be written to %s", folder)
        else:
            logger.info("profile written to %s", folder)

    def launching(self) -> None:
        """A step is about to be launched."""
        self._num_launched += 1
        trace = self._trace
        if trace is not None and not self._is_recording and self._num_launched >= trace.first_step:
            self._record()

    def finished(self) -> None:
        """The oldest step that was launched is done."""
        self._num_finished += 1
        trace = self._trace
        last = None if trace is None else trace.last_step
        if last is not None and self._num_finished >= last:
            self.stop()

    def _record(self) -> None:
        assert self._trace is not None
        logger.info("profiling into %s", self._trace.output_dir)
        jax.profiler.start_trace(self._trace.output_dir)
        self._is_recording = True
