"""What is put into the engine thread's mailbox."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jaxserve.constrained import Matcher
from jaxserve.errors import JaxserveError
from jaxserve.request import Request, TokenOutput

Deliver = Callable[[TokenOutput], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Subscription:
    """Who wants a sequence's outputs, and on which loop."""

    deliver: Deliver
    loop: asyncio.AbstractEventLoop


@dataclass(frozen=True, slots=True)
class Submit:
    """A request, and whom its outputs go to."""

    request: Request
    subscription: Subscription
    constraint: Matcher | None  # decides which tokens may come


@dataclass(frozen=True, slots=True)
class Abort:
    """End a sequence."""

    rid: str


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """Something to do between two steps."""

    action: Callable[[], T]
    done: Future[T]

    def answer(self) -> None:
        """Do it; errors that a caller may make go to the caller."""
        try:
            self.done.set_result(self.action())
        except JaxserveError as error:
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True)
class Stop:
    """The last message."""


Message = Submit | Abort | Call[Any] | Stop
