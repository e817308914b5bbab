"""Sessions: trees of requests that a later prompt can continue.

A streaming one is a single line: a prompt goes on from the last request that was answered, one at a
time, and an aborted one has never been.

A session keeps token ids only.  That their keys and values are still on the device is the prefix
cache's business, as with every other prompt.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from jaxserve.errors import InvalidRequestError, OverloadedError
from jaxserve.request import FinishReason, SessionParams

MAX_SESSIONS = 4096
MAX_TOKENS = 2**24  # of all sessions together: 0.1 to 0.6 GB
REQUEST_TOKENS = 64  # what a request costs beside its tokens, in tokens


class Turn(Protocol):
    """A stream whose tokens become part of a session."""

    @property
    def rid(self) -> str: ...

    @property
    def output_ids(self) -> Sequence[int]:
        """All tokens so far."""

    @property
    def finish(self) -> FinishReason | None: ...

    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Node:
    """One request: ``num_kept`` tokens of what ``parent`` came to, then ``own_ids``.

    So a long conversation costs its length, not the sum of its prompts.  ``children`` are the
    requests that continue it, whether their rids mean a newer request by now or not.
    """

    rid: str
    parent: "_Node | None"
    num_kept: int
    own_ids: tuple[int, ...]
    turn: Turn | None  # while it runs
    ended_ids: tuple[int, ...] = ()  # the output, once it has ended
    children: list["_Node"] = field(default_factory=list)

    @property
    def output_ids(self) -> tuple[int, ...]:
        return self.ended_ids if self.turn is None else tuple(self.turn.output_ids)

    @property
    def num_tokens(self) -> int:
        return REQUEST_TOKENS + len(self.own_ids) + len(self.ended_ids)

    def prompt_ids(self) -> list[int]:
        """The request's whole prompt."""
        path: list[_Node] = []
        node: _Node | None = self
        while node is not None:
            path.append(node)
            node = node.parent
        token_ids: list[int] = []
        for node in reversed(path):
            del token_ids[node.num_kept :]
            token_ids += node.own_ids
            if node is not self:
                token_ids += node.output_ids
        return token_ids


@dataclass(slots=True, eq=False)
class _Session:
    capacity: int
    timeout_s: float | None
    used_s: float
    is_streaming: bool = False
    last: _Node | None = None  # of a streaming one, what the next prompt goes on from
    last_rid: str | None = None
    nodes: dict[str, _Node] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        return any(node.turn is not None for node in self.nodes.values())


@dataclass(frozen=True, slots=True, eq=False)
class Continuation:
    """A prompt that continues a session, before anything has been changed in it."""

    params: SessionParams
    parent: _Node | None
    num_kept: int
    own_ids: tuple[int, ...]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The whole prompt."""
        return tuple(_Node("", self.parent, self.num_kept, self.own_ids, None).prompt_ids())


class SessionStore:
    """All open sessions.  Lives on one thread.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: dict[str, _Session] = {}
        self._running: dict[str, tuple[str, _Node]] = {}  # by the stream's rid
        self._num_tokens = 0

    @property
    def num_open(self) -> int:
        """Sessions that are neither closed nor timed out."""
        self._close_idle()
        return len(self._sessions)

    @property
    def num_streaming(self) -> int:
        """Those of them that are streaming."""
        self._close_idle()
        return sum(session.is_streaming for session in self._sessions.values())

    @property
    def num_tokens(self) -> int:
        """What all sessions hold, as ``MAX_TOKENS`` limits it."""
        return self._num_tokens

    def open(
        self,
        capacity: int,
        session_id: str | None = None,
        timeout_s: float | None = None,
        *,
        is_streaming: bool = False,
    ) -> str:
        """Open a session and return its id.

        Args:
            capacity: tokens that a prompt of the session may have.
            session_id: made up when None.
            timeout_s: the session closes itself after so long without a request.
            is_streaming: every prompt goes on from the last.

        Raises:
            InvalidRequestError: the id is taken, or a value is out of its range.
            OverloadedError: too many are open.
        """
        self._close_idle()
        if capacity < 1:
            raise InvalidRequestError(f"capacity_of_str_len must be at least 1, got {capacity}.")
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidRequestError(f"timeout must be a number above 0, got {timeout_s}.")
        if session_id in self._sessions:
            raise InvalidRequestError(
                "Failed to open the session. Check if a session with the same id is still open: "
                f"{session_id!r}."
            )
        if len(self._sessions) >= MAX_SESSIONS:
            raise OverloadedError(
                f"{MAX_SESSIONS} sessions are open, which is the most; close some with "
                "/close_session, or open them with a timeout."
            )
        session_id = session_id or uuid.uuid4().hex
        self._sessions[session_id] = _Session(capacity, timeout_s, self._clock(), is_streaming)
        return session_id

    def close(self, session_id: str) -> None:
        """Forget a session; what it runs goes on.  Idempotent."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._forget(session, list(session.nodes))

    def continued(
        self,
        params: SessionParams,
        token_ids: Sequence[int],
        bos_token_id: int | None,
        num_samples: int = 1,
    ) -> Continuation:
        """``token_ids`` as what is sent after a request of the session.  Changes nothing.

        Raises:
            InvalidRequestError: no such session or request, one that still runs, the prompt is
                longer than the session's capacity, or a streaming session cannot do it.
            OverloadedError: all sessions together hold too much.
        """
        session = self._session(params.id)
        if session.is_streaming:
            _check_appends(session, params, num_samples)
            params = replace(params, rid=None)
        parent = session.last if session.is_streaming else self._parent(session, params)
        own_ids, num_kept = tuple(token_ids), 0
        if parent is not None:
            if own_ids and own_ids[0] == bos_token_id:
                own_ids = own_ids[1:]  # the conversation has one
            output_ids = () if params.drop_previous_output else parent.output_ids
            num_kept = len(parent.prompt_ids()) + len(output_ids)
            if params.offset:
                num_kept = slice(params.offset).indices(num_kept)[1]
        length = num_kept + len(own_ids)
        if length > session.capacity:
            raise InvalidRequestError(
                f"The prompt has {length} tokens with the session's own, and the session was "
                f"opened for {session.capacity} (capacity_of_str_len); open a larger one."
            )
        if self._num_tokens > MAX_TOKENS:
            raise OverloadedError(
                f"The open sessions hold {self._num_tokens} tokens, at most {MAX_TOKENS} are kept; "
                "close some with /close_session, or open them with a timeout."
            )
        return Continuation(params, parent, num_kept, own_ids)

    def add(self, continuation: Continuation, turns: Sequence[Turn]) -> None:
        """Make the streams that were started with a continuation part of its session."""
        params = continuation.params
        session = self._sessions[params.id]
        if params.replace:
            self._replace(session, continuation.parent, params.rid)
        for turn in turns:
            parent, own_ids = continuation.parent, continuation.own_ids
            node = _Node(turn.rid, parent, continuation.num_kept, own_ids, turn)
            if params.rid is not None and parent is not None:
                parent.children.append(node)
            self._make_room(session, turn.rid)
            session.nodes[turn.rid] = node
            self._running[turn.rid] = (params.id, node)
            self._num_tokens += node.num_tokens
        session.used_s = self._clock()

    def ended(self, turn: Turn) -> None:
        """Take over the output of a stream that has ended; nothing if it is in no session."""
        session_id, node = self._running.pop(turn.rid, (None, None))
        if session_id is None or node is None or node.turn is not turn:
            return
        node.turn = None
        node.ended_ids = tuple(turn.output_ids)
        session = self._sessions.get(session_id)
        if session is None or session.nodes.get(turn.rid) is not node:
            return
        self._num_tokens += len(node.ended_ids)
        session.used_s = self._clock()
        if session.is_streaming:
            self._keep_or_forget(session, node, turn)

    def _make_room(self, session: _Session, rid: str) -> None:
        """Have a rid that is used again mean the newer request."""
        older = session.nodes.pop(rid, None)
        if older is None:
            return
        if session.is_streaming:  # later requests consist of it: it still counts
            session.nodes[f"{rid} {len(session.nodes)}"] = older
        else:
            self._num_tokens -= older.num_tokens
            if older.parent is not None and not older.children:  # nothing consists of it
                older.parent.children.remove(older)

    def _keep_or_forget(self, session: _Session, node: _Node, turn: Turn) -> None:
        """Go on from a request that has ended, or from the one before it if it was aborted."""
        if turn.finish is not None and turn.finish.type != "abort":
            session.last, session.last_rid = node, turn.rid
        else:
            self._forget(session, [turn.rid])

    def _session(self, session_id: str) -> _Session:
        self._close_idle()
        session = self._sessions.get(session_id)
        if session is None:
            raise InvalidRequestError(
                f"Invalid request: session {session_id!r} does not exist. It was never opened, "
                "was closed, or has timed out; open one with /open_session."
            )
        return session

    def _parent(self, session: _Session, params: SessionParams) -> _Node | None:
        if params.rid is None:
            return None
        node = session.nodes.get(params.rid)
        if node is None:
            raise InvalidRequestError(
                f"Invalid request: session {params.id!r} has no request {params.rid!r}. It never "
                "had, or a request with replace=true has taken its place."
            )
        if node.turn is not None and not params.replace:
            raise InvalidRequestError(
                f"Invalid request: request {params.rid!r} of session {params.id!r} has not "
                "finished; wait for it, or take its place with replace=true."
            )
        return node

    def _replace(self, session: _Session, parent: _Node | None, rid: str | None) -> None:
        if rid is None or parent is None:
            gone = list(session.nodes.values())
        else:
            gone = []
            unseen = parent.children.copy()
            while unseen:
                node = unseen.pop()
                unseen += node.children
                if session.nodes.get(node.rid) is node:
                    gone.append(node)
            parent.children.clear()
            if parent.turn is not None:
                parent.turn.close()
        running = [node.turn for node in gone]
        self._forget(session, [node.rid for node in gone])
        for turn in running:
            if turn is not None:
                turn.close()

    def _forget(self, session: _Session, rids: Sequence[str]) -> None:
        for rid in rids:
            self._num_tokens -= session.nodes.pop(rid).num_tokens
            self._running.pop(rid, None)

    def _close_idle(self) -> None:
        now_s = self._clock()
        idle = [
            session_id
            for session_id, session in self._sessions.items()
            if session.timeout_s is not None
            and now_s - session.used_s > session.timeout_s
            and not session.is_running
        ]
        for session_id in idle:
            self.close(session_id)


def _check_appends(session: _Session, params: SessionParams, num_samples: int) -> None:
    """Refuse what a streaming session, which only grows at its end, cannot do."""
    if session.is_running:
        raise InvalidRequestError(
            "Streaming session already has an active request. Wait for its end, or abort it."
        )
    for name, is_asked_for in (
        ("replace", params.replace),
        ("drop_previous_output", params.drop_previous_output),
        ("offset", bool(params.offset)),
        ("n above 1", num_samples > 1),
    ):
        if is_asked_for:
            raise InvalidRequestError(
                f"Streaming sessions do not support {name}. They only grow at their end; open a "
                "session without streaming for it."
            )
    if params.rid not in (None, session.last_rid):
        raise InvalidRequestError(
            f"Streaming sessions go on from their last request, which is {session.last_rid!r}; "
            f"session_params.rid was {params.rid!r}. Leave rid away."
        )
