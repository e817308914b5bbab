"""Cases that go wrong in every way a GPU can make them, for the supervisor's tests."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from gpu.settings import Settings
from gpu.worker import Case, CheckError, SkipError, Values

BROKEN = "the context is gone"


def is_healthy() -> bool:
    return not Path(os.environ["BROKEN_MARK"]).exists()


def fine() -> Values:
    Path(os.environ["BROKEN_MARK"]).unlink(missing_ok=True)
    return {"answer": 42}


def wrong() -> NoReturn:
    raise CheckError("off by one", {"error": float("inf"), "limit": 1.0})


def raising() -> NoReturn:
    raise ZeroDivisionError("by zero")


def breaking() -> NoReturn:
    Path(os.environ["BROKEN_MARK"]).touch()
    raise RuntimeError(BROKEN)


def skipping() -> NoReturn:
    raise SkipError("no such thing here")


def unsupported() -> NoReturn:
    raise NotImplementedError("head_dim 80")


def hanging() -> Values:
    time.sleep(60)
    return {}


def crashing() -> NoReturn:
    print("segmentation fault, they say", flush=True)
    os._exit(139)


def crash_of_the_compiler() -> NoReturn:
    os._exit(134)


def leaving_a_child() -> Values:
    child = subprocess.Popen(["sleep", "60"])
    return {"child": child.pid}


def slow() -> Values:
    time.sleep(0.4)
    return {}


def cases(settings: Settings) -> Iterator[Case]:
    kinds = {
        "fine": Case("fine", fine),
        "wrong": Case("wrong", wrong),
        "raising": Case("raising", raising),
        "breaking": Case("breaking", breaking),
        "skipping": Case("skipping", skipping),
        "unsupported": Case("unsupported", unsupported),
        "hanging": Case("hanging", hanging),
        "crashing": Case("crashing", crashing),
        "compiler": Case("compiler", fine, crash_of_the_compiler),
        "slow": Case("slow", slow),
        "leaving": Case("leaving", leaving_a_child),
    }
    for index, name in enumerate(os.environ["FAKE_CASES"].split()):
        kind = kinds[name]
        yield Case(f"{index} {name}", kind.run, kind.lower)
