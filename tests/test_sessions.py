"""Sessions: what a prompt that continues a request is made of."""

from dataclasses import dataclass, field

import pytest

from jaxserve import sessions
from jaxserve.errors import InvalidRequestError, OverloadedError
from jaxserve.request import FinishReason, SessionParams
from jaxserve.sessions import SessionStore

BOS = 1


@dataclass
class Turn:
    rid: str
    output_ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True


class Conversation:
    """A store with one session, spoken to by whole turns."""

    def __init__(self, capacity: int = 100, *, is_streaming: bool = False) -> None:
        self.now_s = 0.0
        self.store = SessionStore(lambda: self.now_s)
        self.id = self.store.open(capacity, is_streaming=is_streaming)

    def start(
        self, rid: str, ids: list[int], after: str | None = None, **params: object
    ) -> tuple[list[int], Turn]:
        wanted = SessionParams(id=self.id, rid=after, **params)  # type: ignore[arg-type]
        continuation = self.store.continued(wanted, ids, BOS)
        turn = Turn(rid)
        prompt_ids = list(continuation.prompt_ids)
        self.store.add(continuation, [turn])
        return prompt_ids, turn

    def end(self, turn: Turn, output: list[int], *, is_aborted: bool = False) -> None:
        turn.output_ids = output
        turn.finish = FinishReason("abort" if is_aborted else "length")
        self.store.ended(turn)

    def say(
        self,
        rid: str,
        ids: list[int],
        output: list[int],
        after: str | None = None,
        **params: object,
    ) -> list[int]:
        prompt_ids, turn = self.start(rid, ids, after, **params)
        self.end(turn, output)
        return prompt_ids


@pytest.fixture
def talk() -> Conversation:
    """a: prompt 1 5, output 6 7.  b continues it: 8, output 9."""
    talk = Conversation()
    assert talk.say("a", [BOS, 5], [6, 7]) == [BOS, 5]
    assert talk.say("b", [BOS, 8], [9], "a") == [BOS, 5, 6, 7, 8]  # with one BOS
    return talk


def test_a_turn_continues_prompt_and_output(talk: Conversation) -> None:
    assert talk.say("c", [10], [11], "b") == [BOS, 5, 6, 7, 8, 9, 10]
    assert talk.say("d", [20], [], "c") == [BOS, 5, 6, 7, 8, 9, 10, 11, 20]
    assert talk.say("e", [BOS, 30], []) == [BOS, 30]  # a conversation of its own


def test_branches_do_not_disturb_each_other(talk: Conversation) -> None:
    assert talk.say("c", [10], [11], "a") == [BOS, 5, 6, 7, 10]
    assert talk.say("d", [12], [], "b") == [BOS, 5, 6, 7, 8, 9, 12]
    assert talk.say("e", [13], [], "c") == [BOS, 5, 6, 7, 10, 11, 13]


@pytest.mark.parametrize(
    ("params", "prompt"),
    [
        ({"offset": 0}, [BOS, 5, 6, 7, 8, 9, 10]),
        ({"offset": -1}, [BOS, 5, 6, 7, 8, 10]),
        ({"offset": 2}, [BOS, 5, 10]),
        ({"offset": 99}, [BOS, 5, 6, 7, 8, 9, 10]),
        ({"offset": -99}, [10]),
        ({"drop_previous_output": True}, [BOS, 5, 6, 7, 8, 10]),
        ({"drop_previous_output": True, "offset": -2}, [BOS, 5, 6, 10]),
    ],
)
def test_what_is_kept(talk: Conversation, params: dict[str, object], prompt: list[int]) -> None:
    assert talk.say("c", [10], [11], "b", **params) == prompt
    assert talk.say("d", [12], [], "c") == [*prompt, 11, 12]


def test_replace_forgets_what_continued(talk: Conversation) -> None:
    talk.say("c", [10], [], "b")
    assert talk.say("d", [20], [21], "a", replace=True) == [BOS, 5, 6, 7, 20]
    for gone in ("b", "c"):
        with pytest.raises(InvalidRequestError, match=f"has no request '{gone}'. It never had, or"):
            talk.start("x", [1], gone)
    assert talk.say("e", [22], [], "d") == [BOS, 5, 6, 7, 20, 21, 22]
    talk.say("f", [30], [], None, replace=True)
    with pytest.raises(InvalidRequestError, match="has no request 'a'"):
        talk.start("x", [1], "a")


def test_replace_aborts_what_runs(talk: Conversation) -> None:
    _, child = talk.start("c", [10], "b")
    talk.start("d", [11], "b", replace=True)
    assert child.is_closed
    prompt, parent = talk.start("e", [12], "b")
    parent.output_ids = [13]
    prompt, _ = talk.start("f", [14], "e", replace=True)
    assert parent.is_closed
    assert prompt == [BOS, 5, 6, 7, 8, 9, 12, 13, 14]
    talk.store.ended(child)  # what ends later changes nothing
    talk.end(parent, [13, 15])
    assert talk.say("g", [16], [], "e", offset=-1) == [BOS, 5, 6, 7, 8, 9, 12, 13, 16]


def test_a_running_request_is_not_continued(talk: Conversation) -> None:
    _, turn = talk.start("c", [10], "b")
    with pytest.raises(InvalidRequestError, match="request 'c' of session .* has not finished"):
        talk.start("d", [11], "c")
    talk.end(turn, [])
    talk.start("d", [11], "c")


def test_a_refused_prompt_changes_nothing(talk: Conversation) -> None:
    talk.store.continued(SessionParams(id=talk.id, rid="a", replace=True), [3], BOS)
    assert talk.say("c", [10], [], "b") == [BOS, 5, 6, 7, 8, 9, 10]


def test_unknown_sessions(talk: Conversation) -> None:
    talk.store.close(talk.id)
    talk.store.close(talk.id)
    with pytest.raises(InvalidRequestError, match="session '.*' does not exist. It was never"):
        talk.start("c", [1])
    assert (talk.store.num_open, talk.store.num_tokens) == (0, 0)


def test_a_taken_id(talk: Conversation) -> None:
    assert talk.store.open(5, "mine") == "mine"
    with pytest.raises(
        InvalidRequestError, match="a session with the same id is still open: 'mine'"
    ):
        talk.store.open(5, "mine")


@pytest.mark.parametrize(
    ("capacity", "timeout_s", "message"),
    [
        (0, None, "capacity_of_str_len must be at least 1, got 0."),
        (1, 0.0, "timeout must be a number above 0, got 0.0."),
        (1, float("nan"), "timeout must be a number above 0, got nan."),
    ],
)
def test_wrong_values(capacity: int, timeout_s: float | None, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SessionStore().open(capacity, None, timeout_s)
    assert str(caught.value) == message


def test_capacity_is_of_a_whole_prompt() -> None:
    talk = Conversation(capacity=4)
    talk.say("a", [5], [6, 7])
    talk.say("b", [8], [], "a")
    with pytest.raises(
        InvalidRequestError, match=r"has 5 tokens with the session's own, .* opened for 4"
    ):
        talk.start("c", [8, 9], "a")
    talk.start("d", [8, 9], "a", offset=-1)


def test_idle_sessions_close_themselves() -> None:
    talk = Conversation()
    talk.id = talk.store.open(100, None, 10.0)
    talk.say("a", [5], [])
    talk.now_s = 9.0
    _, turn = talk.start("b", [6], "a")
    talk.now_s = 30.0
    assert talk.store.num_open == 2  # it has something to do
    talk.end(turn, [])
    talk.now_s = 41.0
    assert talk.store.num_open == 1
    with pytest.raises(InvalidRequestError, match="has timed out"):
        talk.start("c", [7], "b")


def test_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 2)
    store = SessionStore()
    store.open(1)
    store.open(1)
    with pytest.raises(OverloadedError, match="2 sessions are open, which is the most; close some"):
        store.open(1)


def test_they_hold_only_so_much(talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert talk.store.num_tokens == 2 * sessions.REQUEST_TOKENS + 6
    monkeypatch.setattr(sessions, "MAX_TOKENS", 100)
    with pytest.raises(OverloadedError, match="hold 134 tokens, at most 100 are kept; close some"):
        talk.start("c", [1])
    talk.store.close(talk.id)
    assert talk.store.num_tokens == 0


def test_samples_of_one_prompt_are_requests_of_their_own() -> None:
    talk = Conversation()
    turns = [Turn("a_0"), Turn("a_1")]
    talk.store.add(talk.store.continued(SessionParams(id=talk.id), [5], BOS), turns)
    talk.end(turns[0], [6])
    talk.end(turns[1], [7])
    assert talk.say("b", [8], [], "a_1") == [5, 7, 8]


def test_a_rid_that_is_used_again_means_the_newer_request(talk: Conversation) -> None:
    talk.say("b", [20], [21])
    assert talk.say("c", [22], [], "b") == [20, 21, 22]
    talk.store.close(talk.id)
    assert talk.store.num_tokens == 0


# --- streaming sessions ---


def test_a_rid_of_the_same_conversation_may_be_used_again(talk: Conversation) -> None:
    """Each of these left the tree of requests with a loop, or with a request that is not there."""
    assert talk.say("b", [10], [11], "b") == [BOS, 5, 6, 7, 8, 9, 10]
    assert talk.say("b", [12], [13], "b") == [BOS, 5, 6, 7, 8, 9, 10, 11, 12]
    assert talk.say("c", [20], [21], "a") == [BOS, 5, 6, 7, 20]
    assert talk.say("c", [22], [23], "a") == [BOS, 5, 6, 7, 22]
    assert talk.say("c", [24], [25], "b")[-2:] == [13, 24]
    talk.say("d", [30], [], "a", replace=True)
    for gone in ("b", "c"):
        with pytest.raises(InvalidRequestError, match="has no request"):
            talk.start("e", [1], gone)
    assert talk.say("d", [31], [], "d", replace=True) == [BOS, 5, 6, 7, 30, 31]
    talk.say("f", [40], [], "d", replace=True)
    talk.store.close(talk.id)
    assert talk.store.num_tokens == 0


def test_a_request_elsewhere_under_a_used_rid_is_not_replaced(talk: Conversation) -> None:
    talk.say("x", [40], [41])
    talk.say("b", [42], [43], "x")  # the b that continued a is gone
    talk.say("c", [20], [21], "a", replace=True)
    assert talk.say("d", [44], [], "b") == [40, 41, 42, 43, 44]
    talk.say("e", [45], [], "x", replace=True)
    talk.store.close(talk.id)
    assert talk.store.num_tokens == 0


@pytest.fixture
def line() -> Conversation:
    """a: prompt 1 5, output 6 7.  b goes on from it: 8, output 9."""
    line = Conversation(is_streaming=True)
    line.say("a", [BOS, 5], [6, 7])
    assert line.say("b", [BOS, 8], [9]) == [BOS, 5, 6, 7, 8]
    return line


def test_a_streaming_session_goes_on_from_its_last_request(line: Conversation) -> None:
    assert line.say("c", [10], [11]) == [BOS, 5, 6, 7, 8, 9, 10]
    assert line.say("d", [12], [], "c") == [BOS, 5, 6, 7, 8, 9, 10, 11, 12]
    assert line.say("c", [13], []) == [BOS, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    _, turn = line.start("c", [14])
    line.end(turn, [15], is_aborted=True)
    assert line.say("c", [16], []) == [BOS, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16]
    assert line.store.num_streaming == 1
    line.store.open(5)
    assert (line.store.num_streaming, line.store.num_open) == (1, 2)
    line.store.close(line.id)
    assert (line.store.num_streaming, line.store.num_tokens) == (0, 0)


def test_an_aborted_request_of_a_streaming_session_has_never_been(line: Conversation) -> None:
    held = line.store.num_tokens
    _, turn = line.start("c", [10])
    line.end(turn, [11], is_aborted=True)
    assert line.store.num_tokens == held
    assert line.say("d", [12], []) == [BOS, 5, 6, 7, 8, 9, 12]
    fresh = Conversation(is_streaming=True)
    _, turn = fresh.start("a", [5])
    fresh.end(turn, [6], is_aborted=True)
    assert fresh.say("a", [7], [], None) == [7]


@pytest.mark.parametrize(
    ("after", "params", "message"),
    [
        (None, {"replace": True}, "Streaming sessions do not support replace. They only grow"),
        (None, {"drop_previous_output": True}, "do not support drop_previous_output. They only"),
        (None, {"offset": 1}, "Streaming sessions do not support offset. They only grow at their"),
        ("a", {}, "go on from their last request, which is 'b'; session_params.rid was 'a'. Leave"),
    ],
)
def test_a_streaming_session_only_grows(
    line: Conversation, after: str | None, params: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        line.start("c", [10], after, **params)
    assert line.say("c", [10], [], offset=0) == [BOS, 5, 6, 7, 8, 9, 10]


def test_a_streaming_session_runs_one_request_at_a_time(line: Conversation) -> None:
    _, turn = line.start("c", [10])
    with pytest.raises(InvalidRequestError, match="Streaming session already has an active requ"):
        line.start("d", [11])
    line.end(turn, [])
    with pytest.raises(InvalidRequestError, match="Streaming sessions do not support n above 1"):
        line.store.continued(SessionParams(id=line.id), [1], BOS, 2)
