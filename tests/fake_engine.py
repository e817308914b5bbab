"""A deliberate fake of ``jaxserve.engine.Engine``: answers are chosen by the test."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from jaxserve.config import EngineConfig
from jaxserve.constrained import GrammarCompiler, Matcher
from jaxserve.errors import EngineDeadError
from jaxserve.llm import LLM
from jaxserve.metrics import EngineStats, Metrics
from jaxserve.model_parts import ModelInfo, ModelParts
from jaxserve.request import FinishReason, Request, TokenLogprob, TokenOutput
from jaxserve.text import Tokenizer

Deliver = Callable[[TokenOutput], None]
T = TypeVar("T")

ANSWER = "Paris is 你好 the capital. END more"  # some tokens are parts of a character


class FakeEngine:
    """Delivers one token of ``answer(request)`` per turn of the loop, while ``is_running``."""

    def __init__(self, answer: Callable[[Request], Sequence[int]], eos: Sequence[int]) -> None:
        self.answer = answer
        self.eos = eos
        self.is_alive = True
        self.is_running = True
        self.requests: list[Request] = []
        self.constraints: list[Matcher | None] = []
        self.aborted: list[str] = []
        self.calls: list[object] = []  # of pause, resume and the profiler
        self.is_paused = False
        self._alive: dict[str, tuple[Deliver, asyncio.AbstractEventLoop]] = {}

    def submit(self, request: Request, deliver: Deliver, constraint: Matcher | None = None) -> None:
        if not self.is_alive:
            raise EngineDeadError("the engine died: RuntimeError: planned")
        self.requests.append(request)
        self.constraints.append(constraint)
        loop = asyncio.get_running_loop()
        self._alive[request.rid] = (deliver, loop)
        loop.call_soon(self._turn, request, list(self.answer(request)), 0)

    def _turn(self, request: Request, tokens: list[int], at: int) -> None:
        if request.rid not in self._alive:
            return
        deliver, loop = self._alive[request.rid]
        if not self.is_running:
            loop.call_later(0.001, self._turn, request, tokens, at)
            return
        sampling = request.sampling
        ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self.eos)}
        limit = min(len(tokens), sampling.max_new_tokens or 0)
        token_ids = (tokens[at],) if at < limit else ()
        finish = FinishReason("length") if at + 1 >= limit else None
        if token_ids and token_ids[0] in ends:
            finish = FinishReason("stop", matched=token_ids[0])
        deliver(self._output(request, token_ids, finish))
        if finish is None:
            loop.call_soon(self._turn, request, tokens, at + 1)
        else:
            del self._alive[request.rid]

    def _output(
        self, request: Request, token_ids: tuple[int, ...], finish: FinishReason | None
    ) -> TokenOutput:
        count = request.sampling.num_logprobs
        logprobs = tuple(
            TokenLogprob(i, -0.5, tuple((i + k, -0.5 - k) for k in range(count)))
            for i in token_ids
            if count is not None
        )
        return TokenOutput(
            rid=request.rid, token_ids=token_ids, logprobs=logprobs, finish=finish, num_cached=3
        )

    def abort(self, rid: str) -> None:
        self.aborted.append(rid)
        self._end(rid, FinishReason("abort", message="Aborted"))

    def fail(self, rid: str, message: str, status: int) -> None:
        """End a sequence as the engine does when it gives it up."""
        self._end(rid, FinishReason("abort", message=message, status_code=status))

    def _end(self, rid: str, finish: FinishReason) -> None:
        if rid in self._alive:
            deliver, loop = self._alive.pop(rid)
            output = TokenOutput(rid=rid, token_ids=(), finish=finish)
            if not loop.is_closed():  # as a test's own is, when its fixtures are torn down
                loop.call_soon_threadsafe(deliver, output)

    def flush_cache(self) -> Future[bool]:
        done: Future[bool] = Future()
        done.set_result(not self._alive)
        return done

    def pause(self, mode: str) -> Future[int]:
        self.is_paused = True
        return self._called(mode, 1)

    def resume(self) -> Future[None]:
        self.is_paused = False
        return self._called("resume", None)

    def start_profile(
        self,
        output_dir: str | None = None,
        num_steps: int | None = None,
        start_step: int | None = None,
    ) -> Future[None]:
        return self._called((output_dir, num_steps, start_step), None)

    def stop_profile(self) -> Future[None]:
        return self._called("stop", None)

    def _called(self, what: object, result: T) -> Future[T]:
        self.calls.append(what)
        done: Future[T] = Future()
        done.set_result(result)
        return done

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._alive))

    def shutdown(self) -> None:
        self.is_alive = False
        for rid in list(self._alive):
            self.fail(rid, "the engine is shutting down", 503)


def fake_llm(
    tokenizer: Tokenizer,
    answer: Callable[[Request], Sequence[int]],
    *,
    context_len: int = 64,
    max_total_num_tokens: int = 1000,
    random_seed: int | None = 0,
    grammars: GrammarCompiler | None = None,
) -> tuple[LLM, FakeEngine]:
    """An LLM around a ``FakeEngine``."""
    engine = FakeEngine(answer, tokenizer.eos_token_ids)
    info = ModelInfo(
        model_path="fake",
        tokenizer_path="fake",
        context_len=context_len,
        max_total_num_tokens=max_total_num_tokens,
        vocab_size=tokenizer.vocab_size,
        hidden_size=4,
        model_type="llama",
        architectures=("LlamaForCausalLM",),
        load_format="dummy",
        chat_template=tokenizer.chat_template,
    )
    parts = ModelParts(
        engine=engine,
        tokenizer=tokenizer,
        info=info,
        config=EngineConfig(random_seed=random_seed),
        metrics=Metrics("fake"),
        grammars=grammars,
    )
    return LLM.from_parts(parts), engine
