"""The engine thread: mailbox → plan → launch → deliver the step before.

Callers live on event loops; the engine lives on one thread of its own.  What crosses the border
are frozen records, ``Request`` in and ``TokenOutput`` out, and calls whose answers are futures.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from jaxserve.config import EngineConfig
from jaxserve.constrained import Matcher
from jaxserve.constraints import Constraints
from jaxserve.engine_mailbox import (
    Abort,
    Call,
    Deliver,
    Message,
    Stop,
    Submit,
    Subscription,
)
from jaxserve.engine_report import EngineReport
from jaxserve.engine_stats import EngineStats
from jaxserve.errors import EngineDeadError, JaxserveError
from jaxserve.executor import ModelRunner, PendingStep, Profiler
from jaxserve.request import FinishReason, PauseMode, Request, TokenOutput
from jaxserve.request_clock import RequestClock
from jaxserve.scheduler import BatchPlan, Scheduler
from jaxserve.step_times import StepTimes

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step on the device whose tokens have not been fetched."""

    plan: BatchPlan
    step: PendingStep
    launched_s: float
    deferred: list[int]  # rows that are not sampled yet


class Engine:
    """Owns the scheduler, the runner and the thread that drives them.

    Its methods may be called from any thread and never block, except ``shutdown``.  Those that
    return a future are carried out between two steps.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        constraints: Constraints,
        report: EngineReport,
        times: StepTimes,
        *,
        config: EngineConfig,
    ) -> None:
        self.config = config
        self.error: BaseException | None = None
        self._scheduler = scheduler
        self._runner = runner
        self._constraints = constraints
        self._report = report
        self._times = times
        self._clock = RequestClock(config.waiting_timeout_s, config.running_timeout_s)
        self._profiler = Profiler()
        self._mailbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._subscriptions: dict[str, Subscription] = {}
        self._pending: _Launched | None = None
        self._is_paused = False
        self._is_stopping = False
        self._lock = threading.Lock()  # a message is either in the mailbox or refused at death
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """The thread runs and will answer."""
        return self.error is None and not self._is_stopping

    @property
    def is_paused(self) -> bool:
        """No step is planned until ``resume``."""
        return self._is_paused

    @property
    def max_total_num_tokens(self) -> int:
        """Capacity of the KV pool."""
        return self._report.stats.max_total_num_tokens

    @property
    def num_recompiles(self) -> int:
        """Programs compiled since warm-up ended; each one is a defect."""
        return self._runner.compile_counter.since_freeze

    def submit(self, request: Request, deliver: Deliver, constraint: Matcher | None = None) -> None:
        """Queue a request; call it on the event loop that ``deliver`` is to be called on.

        ``deliver`` gets the outputs in order, those of all rows of a step in one loop callback;
        the last one has a ``finish``.  What the scheduler refuses arrives as an abort with the
        status code and message of the error.

        Args:
            constraint: decides which tokens may come; the engine thread uses it from now on.

        Raises:
            EngineDeadError: the engine has stopped.
        """
        subscription = Subscription(deliver, asyncio.get_running_loop())
        with self._lock:
            if not self.is_alive:
                raise EngineDeadError(self._death_message())
            self._mailbox.put(Submit(request, subscription, constraint))

    def abort(self, rid: str) -> None:
        """End a sequence; idempotent.  If it was alive, its last output says so."""
        self._mailbox.put(Abort(rid))

    def flush_cache(self) -> Future[bool]:
        """Forget all cached prefixes; False when anything is running or waiting."""
        return self._ask(self._scheduler.flush_cache)

    def pause(self, mode: PauseMode) -> Future[int]:
        """Plan no steps until ``resume``; requests that come meanwhile wait.

        ``abort`` ends every sequence, ``retract`` puts the running ones back into the queue and
        frees their KV, ``in_place`` lets them stand as they are.

        Returns:
            How many sequences were ended, put back, or stand.
        """
        return self._ask(lambda: self._pause(mode))

    def resume(self) -> Future[None]:
        """Undo ``pause``.  Idempotent."""
        return self._ask(self._resume)

    def start_profile(
        self,
        output_dir: str | None = None,
        num_steps: int | None = None,
        start_step: int | None = None,
    ) -> Future[None]:
        """Trace device and host; see ``Profiler.start``, whose errors the future raises."""
        return self._ask(lambda: self._profiler.start(output_dir, num_steps, start_step))

    def stop_profile(self) -> Future[None]:
        """End the trace and write it; see ``Profiler.stop``."""
        return self._ask(self._profiler.stop)

    def stats(self) -> EngineStats:
        """The state after the last step or a little earlier, without taking a lock."""
        return self._report.stats

    def shutdown(self) -> None:
        """Stop the thread; sequences that are alive get an abort.  Idempotent."""
        self._mailbox.put(Stop())
        self._thread.join()

    def _ask(self, action: Callable[[], T]) -> Future[T]:
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()  # a caller that goes away must not cancel it
        with self._lock:
            if self.is_alive:
                self._mailbox.put(Call(partial(self._carry_out, action), done))
            else:
                done.set_exception(EngineDeadError(self._death_message()))
        return done

    def _carry_out(self, action: Callable[[], T]) -> T:
        answer = action()
        self._report.refresh()  # before the caller has its answer and looks
        return answer

    # ---- the thread ----------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._run()
        except Exception as error:
            logger.exception("the engine died")
            self._close(error)
        else:
            self._close(None)

    def _run(self) -> None:
        while not self._is_stopping:
            is_idle = self._is_paused or not self._scheduler.has_work
            self._read_mailbox(block=is_idle and self._pending is None)
            if not self._is_stopping:
                self._turn()

    def _turn(self) -> None:
        """Launch the next step and settle the one before, which overlaps with it if it can."""
        outputs = self._end_late()
        pending = self._pending
        if pending is not None and self.config.disable_overlap_schedule:
            outputs += self._settle(pending)
            pending = None
        launched = None if self._is_paused else self._launch()
        if pending is not None:
            outputs += self._settle(pending)
        elif launched is None and self._scheduler.has_work and not self._is_paused:
            raise RuntimeError("the scheduler has work and plans none of it")
        if launched is not None and launched.deferred:
            launched, aborted = self._sample(launched)
            outputs += aborted
        self._pending = launched
        self._report.delivering(outputs)  # after the launch: nothing waits for it there
        self._deliver(outputs)

    def _launch(self) -> _Launched | None:
        start_s = time.perf_counter()
        plan = self._scheduler.schedule()
        if plan is None:
            return None
        deferred = self._constraints.deferred_rows(plan)
        if plan.num_new_sequences:
            self._clock.started(seq.rid for seq in plan.rows)
        self._profiler.launching()
        planned_s = time.perf_counter()
        step = self._runner.launch(plan.inputs, deferred)
        self._report.launched(plan, planned_s - start_s, self.num_recompiles)
        return _Launched(plan, step, planned_s, deferred)

    def _sample(self, launched: _Launched) -> tuple[_Launched, list[TokenOutput]]:
        """Sample the deferred rows of the newest step, now that all tokens before are known."""
        plan, step = launched.plan, launched.step
        rows = plan.awaited(launched.deferred)
        masks, aborted = self._constraints.masks(plan, rows)
        if masks is not None:
            step = self._runner.sample(step, plan.inputs, masks)
        if len(rows) < len(launched.deferred):
            plan = plan.without(sorted({*launched.deferred}.difference(rows)))
        return _Launched(plan, step, launched.launched_s, []), aborted

    def _settle(self, launched: _Launched) -> list[TokenOutput]:
        """Wait for a step and take in its tokens."""
        self._pending = None
        asked_s = time.perf_counter()
        result = launched.step.fetch()
        fetched_s = time.perf_counter()
        bucket = launched.plan.inputs.bucket
        self._times.finished(bucket, launched.launched_s, asked_s, fetched_s)
        outputs = self._scheduler.process(launched.plan, result)
        outputs = self._constraints.follow(outputs)
        self._report.finished(launched.plan, outputs, launched.launched_s, fetched_s)
        self._profiler.finished()
        return outputs

    def _end_late(self) -> list[TokenOutput]:
        late = (self._scheduler.abort(rid, reason) for rid, reason in self._clock.late())
        return [output for output in late if output is not None]

    def _read_mailbox(self, *, block: bool) -> None:
        if block:
            self._report.idle()
            message = self._mailbox.get()
            self._report.woken()
            self._handle(message)
        while not self._mailbox.empty():
            self._handle(self._mailbox.get())

    def _handle(self, message: Message) -> None:
        match message:
            case Submit():
                self._add(message)
            case Abort(rid):
                self._abort(rid)
            case Call():
                message.answer()
            case Stop():
                self._is_stopping = True

    def _add(self, message: Submit) -> None:
        request = message.request
        self._subscriptions[request.rid] = message.subscription
        try:
            displaced = self._scheduler.add(request)
        except JaxserveError as error:
            self._deliver([_refusal(request.rid, str(error), error.status)])
            return
        self._deliver([] if displaced is None else [displaced])
        self._clock.added(request.rid, request.arrival_s)
        if message.constraint is not None:
            forced = self._constraints.add(request, message.constraint)
            self._report.count(forced)
            self._deliver(forced)

    def _abort(self, rid: str) -> None:
        output = self._scheduler.abort(rid)
        if output is not None:
            self._report.refresh()
            self._deliver([output])

    def _pause(self, mode: PauseMode) -> int:
        if self._pending is not None:
            self._deliver(self._settle(self._pending))
        self._is_paused = True
        self._clock.stop()
        self._report.is_paused = True
        match mode:
            case "abort":
                rids = list(self._subscriptions)
                for rid in rids:
                    self._abort(rid)
                return len(rids)
            case "retract":
                return self._scheduler.retract_all()
            case "in_place":
                return self._scheduler.num_running

    def _resume(self) -> None:
        self._is_paused = False
        self._clock.go_on()
        self._report.is_paused = False

    def _deliver(self, outputs: list[TokenOutput]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Deliver, TokenOutput]]] = {}
        if self._clock.has_started:
            outputs = [self._clock.stamped(output) for output in outputs]
        for output in outputs:
            subscription = self._subscriptions[output.rid]
            if output.finish is not None:
                self._forget(output.rid)
            by_loop.setdefault(subscription.loop, []).append((subscription.deliver, output))
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_call_all, deliveries)
            except RuntimeError:  # the loop was closed: nobody is left to read
                for _, output in deliveries:
                    if output.finish is None:
                        self._scheduler.abort(output.rid)
                        self._forget(output.rid)

    def _forget(self, rid: str) -> None:
        self._subscriptions.pop(rid, None)
        self._constraints.drop(rid)
        self._clock.ended(rid)

    def _close(self, error: BaseException | None) -> None:
        """Refuse what is in the mailbox, end what is alive, and never continue.

        The thread's last act, so it happens once, after a shutdown and after a death alike.
        """
        with self._lock:
            self._is_stopping = True
            self.error = error
        status = EngineDeadError.status if error else 503
        message = self._death_message()
        while not self._mailbox.empty():
            late = self._mailbox.get()
            if isinstance(late, Submit):
                self._subscriptions[late.request.rid] = late.subscription
            elif isinstance(late, Call):
                late.done.set_exception(EngineDeadError(message))
        self._deliver([_refusal(rid, message, status) for rid in list(self._subscriptions)])
        self._runner.close()

    def _death_message(self) -> str:
        if self.error is None:
            return "the engine is shutting down"
        return f"the engine died: {type(self.error).__name__}: {self.error}"


def _refusal(rid: str, message: str, status: int) -> TokenOutput:
    return TokenOutput(
        rid=rid,
        token_ids=(),
        finish=FinishReason("abort", message=message, status_code=status),
    )


def _call_all(deliveries: list[tuple[Deliver, TokenOutput]]) -> None:
    for deliver, output in deliveries:
        deliver(output)
