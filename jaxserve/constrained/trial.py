"""The helper process of guard.py: ``python -m jaxserve.constrained.trial``."""

import contextlib
import math
import resource
import signal
import sys
import threading
from pathlib import Path

from jaxserve.constrained.guard import Setup, compile_matcher, receive, send
from jaxserve.constrained.sources import Translator
from jaxserve.errors import InvalidRequestError
from jaxserve.request import Grammar

# Half of what the server's threads have: what fits here fits there.
STACK_BYTES = 4 << 20
MEMORY_BYTES = 1 << 30  # on top of what the process has when it starts
ORPHAN_S = 5


def main() -> None:
    """Answer grammars on standard input until it ends."""
    with contextlib.suppress(ValueError, OSError):  # not every system tells or limits memory
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


def _serve() -> None:
    setup = receive(sys.stdin.buffer)
    assert isinstance(setup, Setup)
    tokenizer = setup.vocabulary.tokenizer
    translator = Translator(
        setup.style,
        lambda text: compile_matcher(tokenizer, text).get_error(),
        setup.vocabulary.special_tokens,
    )
    send(sys.stdout.buffer, (True, "ready"))
    while (grammar := receive(sys.stdin.buffer)) is not None:
        # The server kills this process in time; the alarm is for when the server is gone.
        signal.alarm(math.ceil(setup.timeout_s) + ORPHAN_S)
        answer = _answer(translator, grammar)
        signal.alarm(0)
        send(sys.stdout.buffer, answer)


def _answer(translator: Translator, grammar: Grammar) -> tuple[bool, str]:
    try:
        return True, translator.translate(grammar)
    except InvalidRequestError as error:
        return False, str(error)
    except RecursionError:
        return False, f"invalid {grammar.kind}: nested too deeply; make it flatter"


if __name__ == "__main__":
    main()
