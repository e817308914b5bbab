"""A helper process in which grammars are compiled for trial.

llguidance overflows its stack on long chains of definitions, which ends the process, and a few
schemas keep it busy for ever; neither can be caught from inside.  So every grammar is first
compiled here, with a deadline, and only what passed is compiled again by the server: a compiled
grammar is an object of llguidance in the memory of its process, and cannot be sent to another.
"""

import contextlib
import math
import os
import pickle
import selectors
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import IO, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from jaxserve.constrained.sources import JsonStyle
from jaxserve.constrained.vocabulary import Vocabulary
from jaxserve.errors import InvalidRequestError
from jaxserve.request import Grammar

START_S = 120.0  # for the process to import numpy and build the token table
_LENGTH = struct.Struct("<Q")


def limits() -> LLParserLimits:
    """What one grammar may cost: about 100 MB, and 20 ms for a mask."""
    return LLParserLimits(
        max_lexer_states=50_000,  # about 2 kB each
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def compile_matcher(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    """``text`` compiled, with its first mask computed: that is often the slowest one."""
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


class GuardTimeoutError(Exception):
    """The grammar was not compiled in time."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to the process.  ``timeout_s`` is for each grammar, in seconds."""

    vocabulary: Vocabulary
    style: JsonStyle
    timeout_s: float


class Guard:
    """Owns one helper process, which starts with the first grammar.  Used by one thread."""

    def __init__(self, vocabulary: Vocabulary, style: JsonStyle, timeout_s: float) -> None:
        self._setup = Setup(vocabulary.without_encoder(), style, timeout_s)
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def translate(self, grammar: Grammar) -> str:
        """``grammar`` for llguidance, which has compiled it once without harm.

        Raises:
            InvalidRequestError: it is wrong, cannot be enforced, or needs too much stack or memory.
            GuardTimeoutError: it took too long.
        """
        process = self._process or self._spawn()
        deadline_s = time.monotonic() + self._timeout_s
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            send(process.stdin, grammar)
        answer = receive(process.stdout, deadline_s)
        if answer is None:
            is_late = time.monotonic() >= deadline_s
            self.close()
            if is_late:
                raise GuardTimeoutError
            raise InvalidRequestError(
                f"invalid {grammar.kind}: compiling it takes too much memory or too deep a "
                "recursion; make it smaller, with shorter chains of definitions"
            )
        is_good, text = answer
        if not is_good:
            raise InvalidRequestError(text)
        return text

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jaxserve.constrained.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the server
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "OPENBLAS_NUM_THREADS": "1",  # numpy is only imported here
            },
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        send(self._process.stdin, self._setup)
        if receive(self._process.stdout, time.monotonic() + START_S) is None:
            self.close()
            raise GuardTimeoutError
        return self._process


def send(pipe: IO[bytes], value: object) -> None:
    """Write one message."""
    data = pickle.dumps(value)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def receive(pipe: IO[bytes], deadline_s: float = math.inf) -> Any:
    """The next message; None at the end of the pipe or after the deadline."""
    header = _read(pipe, _LENGTH.size, deadline_s)
    data = None if header is None else _read(pipe, int.from_bytes(header, "little"), deadline_s)
    return None if data is None else pickle.loads(data)


def _read(pipe: IO[bytes], size: int, deadline_s: float) -> bytes | None:
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(data) < size:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not selector.select(None if left_s == math.inf else left_s):
                return None
            more = os.read(pipe.fileno(), size - len(data))
            if not more:
                return None
            data += more
    return data
