"""Grammars compiled beside the event loop, each once."""

import asyncio
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, replace
from queue import SimpleQueue

from llguidance import LLMatcher

from jaxserve.constrained.guard import Guard, GuardTimeoutError, compile_matcher
from jaxserve.constrained.matcher import Matcher
from jaxserve.constrained.sources import JsonStyle
from jaxserve.constrained.vocabulary import Vocabulary
from jaxserve.constrained.workers import Workers
from jaxserve.errors import InvalidRequestError
from jaxserve.request import Grammar, GrammarKind, Thought


@dataclass(frozen=True, slots=True)
class GrammarStats:
    """Counts since the start.  ``compile_s`` is the time spent compiling, in seconds."""

    num_compiled: int = 0
    num_cache_hits: int = 0
    num_failed: int = 0
    num_timeouts: int = 0
    compile_s: float = 0.0


@dataclass(frozen=True)
class CompiledGrammar:
    """A grammar ready to be followed by any number of sequences.  ``compile_s`` in seconds."""

    kind: GrammarKind
    compile_s: float
    _start: LLMatcher
    _vocabulary: Vocabulary

    def new_matcher(self, thought: Thought | None = None) -> Matcher:
        """A matcher at the start of the grammar, or of the reasoning before it."""
        return Matcher(self._start.deep_copy(), self._vocabulary, thought)


# Compiled grammars of these together take about half a gigabyte at the very most.
MAX_CACHED_CHARS = 4 << 19


class _TimedOut:
    pass


_Built = CompiledGrammar | str | _TimedOut


class GrammarCompiler:
    """Compiles grammars on threads of its own and keeps the most recently used.

    One per LLM; ``compile`` may be awaited on any event loop.

    Args:
        timeout_s: how long a request waits for its grammar, in seconds.
        cache_size: how many compiled grammars are kept; fewer if they are very large.
        num_threads: how many grammars are compiled at the same time.
        whitespace_pattern: a regex for the white space between the parts of JSON; None for any.
        disable_any_whitespace: JSON without white space; excludes ``whitespace_pattern``.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        timeout_s: float = 60.0,
        cache_size: int = 256,
        num_threads: int = 2,
        whitespace_pattern: str | None = None,
        disable_any_whitespace: bool = False,
    ) -> None:
        self._vocabulary = vocabulary
        self._timeout_s = timeout_s
        self._cache_size = cache_size
        style = JsonStyle(whitespace_pattern, disable_any_whitespace)
        self._guards: SimpleQueue[Guard] = SimpleQueue()
        for _ in range(num_threads):
            self._guards.put(Guard(vocabulary, style, timeout_s))
        self._num_threads = num_threads
        self._workers = Workers(num_threads, "grammar-compiler")
        self._cache: OrderedDict[tuple[str, str], Future[_Built]] = OrderedDict()
        self._stats = GrammarStats()
        self._lock = threading.Lock()

    async def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The compiled form of ``grammar``, from the cache if it was asked for before.

        Raises:
            InvalidRequestError: the grammar is wrong, cannot be enforced, or took longer than the
                timeout.
        """
        key = (grammar.kind, grammar.source)
        future = self._find_or_submit(key, grammar)
        try:
            result = await asyncio.wait_for(
                asyncio.shield(asyncio.wrap_future(future)), self._timeout_s
            )
        except TimeoutError:
            result = _TimedOut()
        if isinstance(result, CompiledGrammar):
            return result
        if isinstance(result, str):
            raise InvalidRequestError(result)
        self._forget(key, future)
        raise InvalidRequestError(
            f"Grammar preprocessing timed out: the {grammar.kind} was not compiled within "
            f"{self._timeout_s:g} s; simplify it, or raise --grammar-timeout-s"
        )

    def thought_matcher(self, thought: Thought | None) -> Matcher:
        """A matcher of reasoning alone: after it anything may be generated."""
        return Matcher(None, self._vocabulary, thought)

    def stats(self) -> GrammarStats:
        """What has been compiled so far."""
        return self._stats

    def close(self) -> None:
        """End the threads and their processes, without waiting for a grammar being compiled."""
        for _ in range(self._num_threads):
            self._workers.submit(lambda: self._guards.get().close())
        self._workers.close()

    @property
    def _cached_chars(self) -> int:
        return sum(len(source) for _, source in self._cache)

    def _find_or_submit(self, key: tuple[str, str], grammar: Grammar) -> "Future[_Built]":
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
                self._stats = replace(self._stats, num_cache_hits=self._stats.num_cache_hits + 1)
                return found
            future = self._workers.submit(lambda: self._build(grammar))
            self._cache[key] = future
            while len(self._cache) > self._cache_size or self._cached_chars > MAX_CACHED_CHARS:
                self._cache.popitem(last=False)
            return future

    def _forget(self, key: tuple[str, str], future: "Future[_Built]") -> None:
        future.cancel()
        with self._lock:
            self._stats = replace(self._stats, num_timeouts=self._stats.num_timeouts + 1)
            if self._cache.get(key) is future:
                del self._cache[key]

    def _build(self, grammar: Grammar) -> _Built:
        """On a worker thread.  A str is what is wrong with the grammar."""
        start_s = time.perf_counter()
        guard = self._guards.get()
        try:
            result = self._compiled(guard, grammar, start_s)
        except InvalidRequestError as error:
            result = str(error)
        except GuardTimeoutError:
            result = _TimedOut()
        finally:
            self._guards.put(guard)
        with self._lock:
            stats, is_good = self._stats, isinstance(result, CompiledGrammar)
            self._stats = replace(
                stats,
                num_compiled=stats.num_compiled + is_good,
                num_failed=stats.num_failed + isinstance(result, str),
                compile_s=stats.compile_s + time.perf_counter() - start_s,
            )
        return result

    def _compiled(self, guard: Guard, grammar: Grammar, start_s: float) -> _Built:
        text = guard.translate(grammar)
        has_json = grammar.kind in ("json_schema", "structural_tag") or "%json" in grammar.source
        vocabulary = self._vocabulary
        matcher = compile_matcher(
            vocabulary.tokenizer if has_json else vocabulary.text_tokenizer, text
        )
        if matcher.is_error():  # the helper had no error: forced text is cut differently there
            return f"invalid {grammar.kind}: {matcher.get_error()}"
        elapsed_s = time.perf_counter() - start_s
        return CompiledGrammar(grammar.kind, elapsed_s, matcher, self._vocabulary)
