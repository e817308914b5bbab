"""The engine thread: mailbox → plan → launch → deliver the step before.

Callers live on event loops; the engine lives on one thread of its own.  What crosses the border
are frozen records: ``Request`` in, ``TokenOutput`` out, so that the border could become a
process's.  Nothing but this file would change.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from jaxserve.config import CUDA_TABLE_WIDTHS, EngineConfig, resolve
from jaxserve.engine_report import EngineReport
from jaxserve.errors import EngineDeadError, JaxserveError
from jaxserve.executor import (
    ModelRunner,
    PendingStep,
    build_runner,
    device_info,
    enable_compilation_cache,
    keep_freed_memory,
    make_model,
    plan_memory,
    settle_backend,
)
from jaxserve.metrics import EngineStats, Metrics
from jaxserve.model_config import ModelConfig
from jaxserve.request import FinishReason, Request, TokenOutput
from jaxserve.scheduler import BatchPlan, Scheduler, SchedulerConfig, make_buckets
from jaxserve.weights import ModelSource

logger = logging.getLogger(__name__)

Deliver = Callable[[TokenOutput], None]


@dataclass(frozen=True, slots=True)
class _Subscription:
    """Who wants a sequence's outputs, and on which loop."""

    deliver: Deliver
    loop: asyncio.AbstractEventLoop


@dataclass(frozen=True, slots=True)
class _Submit:
    request: Request
    subscription: _Subscription


@dataclass(frozen=True, slots=True)
class _Abort:
    rid: str


@dataclass(frozen=True, slots=True)
class _FlushCache:
    done: Future[bool]


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Message = _Submit | _Abort | _FlushCache | _Stop


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step on the device whose tokens have not been fetched."""

    plan: BatchPlan
    step: PendingStep


class Engine:
    """Owns the scheduler, the runner and the thread that drives them.

    ``submit``, ``abort`` and ``flush_cache`` may be called from any thread and never block.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        metrics: Metrics,
        *,
        config: EngineConfig,
        max_total_num_tokens: int,
    ) -> None:
        self.config = config
        self.max_total_num_tokens = max_total_num_tokens
        self.error: BaseException | None = None
        self._scheduler = scheduler
        self._runner = runner
        self._mailbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._subscriptions: dict[str, _Subscription] = {}
        self._report = EngineReport(scheduler, metrics, config, max_total_num_tokens)
        self._is_stopping = False
        self._lock = threading.Lock()  # a submit is either in the mailbox or refused at death
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """The thread runs and will answer."""
        return self.error is None and not self._is_stopping

    @property
    def num_recompiles(self) -> int:
        """Programs compiled since warm-up ended; each one is a defect."""
        return self._runner.compile_counter.since_freeze

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Queue a request; call it on the event loop that ``deliver`` is to be called on.

        ``deliver`` gets the outputs in order, those of all rows of a step in one loop callback;
        the last one has a ``finish``.  What the scheduler refuses arrives as an abort with the
        status code and message of the error.

        Raises:
            EngineDeadError: the engine has stopped.
        """
        subscription = _Subscription(deliver, asyncio.get_running_loop())
        with self._lock:
            if not self.is_alive:
                raise EngineDeadError(self._death_message())
            self._mailbox.put(_Submit(request, subscription))

    def abort(self, rid: str) -> None:
        """End a sequence; idempotent.  If it was alive, its last output says so."""
        self._mailbox.put(_Abort(rid))

    def flush_cache(self) -> Future[bool]:
        """Forget all cached prefixes; False when anything is running or waiting."""
        done: Future[bool] = Future()
        done.set_running_or_notify_cancel()  # a caller that goes away must not cancel it
        with self._lock:
            if self.is_alive:
                self._mailbox.put(_FlushCache(done))
            else:
                done.set_exception(EngineDeadError(self._death_message()))
        return done

    def stats(self) -> EngineStats:
        """The state after the last step, without taking a lock."""
        return self._report.stats

    def shutdown(self) -> None:
        """Stop the thread; sequences that are alive get an abort.  Idempotent."""
        self._mailbox.put(_Stop())
        self._thread.join()

    def _main(self) -> None:
        try:
            self._run()
        except Exception as error:
            logger.exception("the engine died")
            self._close(error)
        else:
            self._close(None)

    def _run(self) -> None:
        pending: _Launched | None = None
        while True:
            self._read_mailbox(block=pending is None and not self._scheduler.has_work)
            if self._is_stopping:
                return
            plan = self._scheduler.schedule()
            launched = _Launched(plan, self._runner.launch(plan.inputs)) if plan else None
            if plan is not None:
                self._report.launched(plan)
            elif pending is None and self._scheduler.has_work:
                raise RuntimeError("the scheduler has work and plans none of it")
            if self.config.disable_overlap_schedule and launched is not None:
                self._finish_step(launched)
                launched = None
            if pending is not None:  # overlaps with the step just launched
                self._finish_step(pending)
            pending = launched

    def _finish_step(self, launched: _Launched) -> None:
        result = launched.step.fetch()
        outputs = self._scheduler.process(launched.plan, result)
        self._report.finished(launched.plan, len(outputs))
        self._deliver(outputs)

    def _read_mailbox(self, *, block: bool) -> None:
        if block:
            self._report.idle()
            self._handle(self._mailbox.get())
        while not self._mailbox.empty():
            self._handle(self._mailbox.get())

    def _handle(self, message: _Message) -> None:
        match message:
            case _Submit(request, subscription):
                self._add(request, subscription)
            case _Abort(rid):
                output = self._scheduler.abort(rid)
                if output is not None:
                    self._report.refresh()
                    self._deliver([output])
            case _FlushCache(done):
                is_flushed = self._scheduler.flush_cache()
                self._report.refresh()
                done.set_result(is_flushed)
            case _Stop():
                self._is_stopping = True

    def _add(self, request: Request, subscription: _Subscription) -> None:
        self._subscriptions[request.rid] = subscription
        try:
            self._scheduler.add(request)
        except JaxserveError as error:
            self._deliver([_refusal(request.rid, str(error), error.status)])

    def _deliver(self, outputs: list[TokenOutput]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Deliver, TokenOutput]]] = {}
        for output in outputs:
            subscription = self._subscriptions[output.rid]
            if output.finish is not None:
                del self._subscriptions[output.rid]
            by_loop.setdefault(subscription.loop, []).append((subscription.deliver, output))
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_call_all, deliveries)
            except RuntimeError:  # the loop was closed: nobody is left to read
                for _, output in deliveries:
                    if output.finish is None:
                        self._scheduler.abort(output.rid)
                        self._subscriptions.pop(output.rid, None)

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
            if isinstance(late, _Submit):
                self._subscriptions[late.request.rid] = late.subscription
            elif isinstance(late, _FlushCache):
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


def build_engine(
    config: EngineConfig, source: ModelSource, model_config: ModelConfig, metrics: Metrics
) -> Engine:
    """Resolve the config for this device, plan its memory, load, compile, start.

    Raises:
        ConfigError: a flag that this model or device cannot be served with.
        WeightLoadError: the checkpoint does not fit the model.
        DeviceHangError: the device does not answer.
    """
    cache_dir = enable_compilation_cache(config.compilation_cache_dir)
    device = device_info(config.tp_size)
    if device.platform == "cpu":
        keep_freed_memory()
    asked = config.attention_backend
    config = resolve(config, model_config, device)
    model = make_model(config, model_config, device.platform)
    attention = settle_backend(asked, config, model_config, model.plan, device)
    config = replace(config, attention_backend=attention.name)
    assert config.context_length and config.chunked_prefill_size
    assert config.max_running_requests and config.prefill_max_requests
    memory = plan_memory(
        config,
        model_config,
        weight_bytes=model.num_bytes,
        free_bytes=device.free_bytes,
        platform=device.platform,
    )
    buckets = make_buckets(
        chunked_prefill_size=config.chunked_prefill_size,
        max_running_requests=config.max_running_requests,
        prefill_max_requests=config.prefill_max_requests,
        max_pages_per_row=-(-config.context_length // config.page_size),
        pages_per_row=() if device.platform == "cpu" else CUDA_TABLE_WIDTHS,
        extend_tokens=config.precompile_token_paddings,
        decode_rows=config.precompile_bs_paddings,
    )
    logger.info("device: %s, %s; attention: %s (%s)", device.platform, device.name,
                attention.name, attention.reason)  # fmt: skip
    logger.info("memory plan: %s", memory)
    logger.info("buckets: extend tokens %s x %d rows, decode rows %s, table widths %s; "
                "compilation cache: %s", buckets.extend_tokens, buckets.extend_rows,
                buckets.decode_rows, buckets.pages_per_row, cache_dir or "off")  # fmt: skip
    runner = build_runner(
        config, model_config, source, device, num_pages=memory.num_pages, buckets=buckets.all()
    )
    metrics.compiled(runner.num_buckets, runner.compile_s)
    scheduler = Scheduler(
        SchedulerConfig.from_engine(config),
        num_pages=memory.num_pages,
        buckets=buckets,
        eos_token_ids=model_config.eos_token_ids,
    )
    return Engine(scheduler, runner, metrics, config=config, max_total_num_tokens=memory.num_tokens)
