"""Regular expressions searched in a text that grows, in bounded time per character.

Python's ``re`` would search the whole text again after every token, and some patterns take it
exponential time.  Here a pattern becomes a nondeterministic automaton that is stepped over each
character once: all its states are followed side by side, and every match that may still come is
known with the place where it would begin (https://swtch.com/~rsc/regexp/regexp1.html).

The syntax is ``re``'s, read by its own parser, without what no automaton can do: look-around,
back-references, atomic groups.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

from jaxserve.errors import InvalidRequestError

MAX_STATES = 1000  # of one pattern, its repetitions written out
MAX_MOVES = 5000  # of one pattern: pairs of a state and one that it reaches without a character
MAX_REMEMBERED = 50_000  # steps of one pattern

_CLASS_FLAGS = re.IGNORECASE | re.ASCII | re.DOTALL
_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d",
    op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w",
    op.CATEGORY_NOT_WORD: r"\W",
}
_UNSUPPORTED = {
    op.ASSERT: "look-around",
    op.ASSERT_NOT: "look-around",
    op.GROUPREF: "a back-reference",
    op.GROUPREF_IGNORE: "a back-reference",
    op.GROUPREF_EXISTS: "a conditional group",
    op.ATOMIC_GROUP: "an atomic group",
    op.POSSESSIVE_REPEAT: "a possessive repeat",
}


class Match(NamedTuple):
    """Where in the text a pattern was found."""

    start: int
    end: int


# What stands on one side of a position.  UNKNOWN: the text goes on, nobody knows how.
_EDGE, _NEWLINE, _WORD, _OTHER, _UNKNOWN = range(5)


def _kind(character: str) -> int:
    if character == "\n":
        return _NEWLINE
    return _WORD if character.isalnum() or character == "_" else _OTHER


def _holds(held: tuple[Any, int], before: int, after: int) -> bool:
    """Whether an assertion without width, under its flags, is true between two characters."""
    assertion, flags = held
    if assertion in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
        is_line = assertion is op.AT_BEGINNING and flags & re.MULTILINE
        return before == _EDGE or (bool(is_line) and before == _NEWLINE)
    if assertion in (op.AT_END, op.AT_END_STRING):
        is_line = assertion is op.AT_END and flags & re.MULTILINE
        # The text ends here, for now: a stop pattern that waited for the real end would be none.
        return after in (_EDGE, _UNKNOWN) or (bool(is_line) and after == _NEWLINE)
    if after == _UNKNOWN:
        return False
    return ((before == _WORD) != (after == _WORD)) == (assertion is op.AT_BOUNDARY)


@dataclass(slots=True)
class _State:
    """``free``: states reached without a character, each under an assertion or None."""

    free: list[tuple[int, tuple[Any, int] | None]] = field(default_factory=list)
    moves: list[tuple[Callable[[str], object], int]] = field(default_factory=list)


class _Builder:
    """Thompson's construction.  State 0 is the start."""

    def __init__(self) -> None:
        self.states = [_State()]

    def new(self) -> int:
        if len(self.states) >= MAX_STATES:
            raise ValueError(
                f"its repetitions written out have more than {MAX_STATES} parts; repeat less often"
            )
        self.states.append(_State())
        return len(self.states) - 1

    def join(self, source: int, target: int, assertion: tuple[Any, int] | None = None) -> None:
        self.states[source].free.append((target, assertion))

    def sequence(self, items: Iterable[tuple[Any, Any]], start: int, flags: int) -> int:
        """Build ``items`` after state ``start``; return the state after them."""
        for code, argument in items:
            start = self._item(code, argument, start, flags)
        return start

    def _item(self, code: Any, argument: Any, start: int, flags: int) -> int:
        if code in _UNSUPPORTED:
            raise ValueError(f"{_UNSUPPORTED[code]} is not supported in stop_regex")
        if code in (op.MAX_REPEAT, op.MIN_REPEAT):
            low, high, items = argument
            return self._repeat((low, high), items, start, flags)
        if code is op.SUBPATTERN:
            _, added, removed, items = argument
            return self.sequence(items, start, (flags | added) & ~removed)
        if code is op.BRANCH:
            end = self.new()
            for items in argument[1]:
                self.join(self.sequence(items, start, flags), end)
            return end
        end = self.new()
        if code is op.AT:
            self.join(start, end, (argument, flags))
        else:
            test = re.compile(_one_character(code, argument), flags & _CLASS_FLAGS).match
            self.states[start].moves.append((test, end))
        return end

    def _repeat(self, times: tuple[Any, Any], items: Any, start: int, flags: int) -> int:
        low, high = times
        for _ in range(low):
            start = self.sequence(items, start, flags)
        if high is op.MAXREPEAT:
            loop, end = self.new(), self.new()
            self.join(start, loop)
            self.join(self.sequence(items, loop, flags), loop)
            self.join(loop, end)
            return end
        end = self.new()
        for _ in range(high - low):
            self.join(start, end)
            start = self.sequence(items, start, flags)
        self.join(start, end)
        return end


def _one_character(code: Any, argument: Any) -> str:
    """A pattern of what matches one character."""
    if code is op.ANY:
        return "."
    if code is op.LITERAL:
        return re.escape(chr(argument))
    if code is op.NOT_LITERAL:
        return f"[^{re.escape(chr(argument))}]"
    assert code is op.IN, code
    return f"[{''.join(_class_item(*item) for item in argument)}]"


def _class_item(code: Any, argument: Any) -> str:
    if code is op.NEGATE:
        return "^"
    if code is op.CATEGORY:
        return _CATEGORIES[argument]
    ends = (argument, argument) if code is op.LITERAL else argument
    return "-".join(f"\\U{ord_:08x}" for ord_ in ends)


class StopRegex:
    """A pattern to be searched in growing texts; shared by all of them.

    Raises:
        InvalidRequestError: not a pattern of this syntax, or one that costs too much.
    """

    def __init__(self, pattern: str) -> None:
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                parsed = _parser.parse(pattern)  # "[[" may come to mean something else
            builder = _Builder()
            self._accepting = builder.sequence(parsed, 0, parsed.state.flags)
            self._states = builder.states
            self._check_moves()
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequestError(f"invalid stop_regex '{pattern}': {error}") from error
        self._steps: dict[tuple[int, int, str], tuple[int, ...]] = {}
        self._accepts: dict[tuple[int, int, int], bool] = {}

    @property
    def num_states(self) -> int:
        """What following a text costs at most, per character."""
        return len(self._states)

    def targets(self, state: int, before: int, character: str) -> tuple[int, ...]:
        """The states that ``character`` leads to from ``state``."""
        key = (state, before, character)
        found = self._steps.get(key)
        if found is None:
            if len(self._steps) >= MAX_REMEMBERED:
                self._steps.clear()
            found = tuple(
                dict.fromkeys(
                    target
                    for reached in self._closure(state, before, _kind(character))
                    for test, target in self._states[reached].moves
                    if test(character)
                )
            )
            self._steps[key] = found
        return found

    def accepts(self, state: int, before: int, after: int) -> bool:
        """Whether a match ends in ``state``, at a place with these neighbours."""
        key = (state, before, after)
        found = self._accepts.get(key)
        if found is None:
            found = self._accepts[key] = self._accepting in self._closure(*key)
        return found

    @property
    def looks_ahead(self) -> bool:
        """Whether the character after a match can decide whether it is one."""
        return any(
            assertion is not None and assertion[0] in (op.AT_BOUNDARY, op.AT_NON_BOUNDARY)
            for state in self._states
            for _, assertion in state.free
        )

    def _closure(self, state: int, before: int, after: int) -> Iterator[int]:
        return self._reach(state, lambda held: held is None or _holds(held, before, after))

    def _reach(self, state: int, may_pass: Callable[[Any], bool]) -> Iterator[int]:
        seen, unseen = {state}, [state]
        while unseen:
            here = unseen.pop()
            yield here
            for target, assertion in self._states[here].free:
                if target not in seen and may_pass(assertion):
                    seen.add(target)
                    unseen.append(target)

    def _check_moves(self) -> None:
        num_moves = 0
        for state in range(len(self._states)):
            for reached in self._reach(state, lambda held: True):
                num_moves += 1
                if num_moves > MAX_MOVES:
                    raise ValueError("it has too many optional parts in a row; make some required")
                if state == 0 and reached == self._accepting:
                    raise ValueError("it matches the empty text, so it would stop at once")


@lru_cache(maxsize=512)
def compile_stop_regex(pattern: str) -> StopRegex:
    """The automaton of ``pattern``.

    Raises:
        InvalidRequestError: see ``StopRegex``.
    """
    return StopRegex(pattern)


def compile_stop_regexes(patterns: Sequence[str]) -> tuple[StopRegex, ...]:
    """The automata of one request.

    Raises:
        InvalidRequestError: one is wrong, or all together cost too much.
    """
    compiled = tuple(map(compile_stop_regex, patterns))
    num_states = sum(each.num_states for each in compiled)
    if num_states > MAX_STATES:
        raise InvalidRequestError(
            f"invalid stop_regex '{patterns[-1]}': all patterns together have {num_states} parts, "
            f"at most {MAX_STATES} are followed; send fewer or shorter ones"
        )
    return compiled


class RegexSearch:
    """One text, character by character.  Positions count from its beginning."""

    def __init__(self, regex: StopRegex) -> None:
        self._regex = regex
        self._looks_ahead = regex.looks_ahead
        self._position = 0
        self._before = _EDGE
        # Every state that some match to come is in → where the earliest of them begins.
        self._threads: dict[int, int] = {}

    @property
    def begins(self) -> int:
        """Where the earliest match that may still come begins; the end of the text if none."""
        return min(self._threads.values(), default=self._position)

    def push(self, text: str) -> Match | None:
        """Go on in the text; return the match that ends first, the longest of those."""
        for character in text:
            match = self._ended(_kind(character)) if self._looks_ahead else None
            match = match or self._step(character)
            if match is not None:
                return match
        return None

    def end(self) -> Match | None:
        """No more text comes; a match may have waited for that."""
        return self._ended(_EDGE)

    def _step(self, character: str) -> Match | None:
        targets, before = self._regex.targets, self._before
        threads: dict[int, int] = {}
        for state, start in self._threads.items():
            for target in targets(state, before, character):
                if start < threads.get(target, self._position):
                    threads[target] = start
        for target in targets(0, before, character):
            threads.setdefault(target, self._position)
        self._threads = threads
        self._position += 1
        self._before = _kind(character)
        return self._ended(_UNKNOWN)

    def _ended(self, after: int) -> Match | None:
        if not self._threads:
            return None
        accepts, before = self._regex.accepts, self._before
        starts = [start for state, start in self._threads.items() if accepts(state, before, after)]
        return Match(min(starts), self._position) if starts else None
