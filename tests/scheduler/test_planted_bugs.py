"""The simulator must see each of the mistakes that are easy to make in a paged scheduler.

Each is planted in the real code; a simulator that stays green on one of them proves nothing.
"""

from dataclasses import replace
from typing import Any

import pytest
from scheduler_sim.simulator import Simulation, make_world

from jaxserve.batch import StepResult
from jaxserve.request import TokenOutput
from jaxserve.scheduler import BatchPlan, Scheduler, outputs
from jaxserve.scheduler.kv_manager import KVManager
from jaxserve.scheduler.plan import Chunk, PlanBuilder
from jaxserve.scheduler.radix_tree import RadixTree
from jaxserve.scheduler.sequence import Sequence, Status
from jaxserve.scheduler.waiting_line import WaitingLine

MAX_WORLDS = 200


def is_caught(*, is_checked: bool) -> bool:
    """Whether some world breaks; without ``is_checked`` by tokens, hangs and leaks alone."""
    for seed in range(MAX_WORLDS):
        simulation = Simulation(make_world(seed))
        if not is_checked:
            simulation.scheduler.check = lambda: None
        try:
            simulation.run()
        except AssertionError:
            return True
        except (ValueError, KeyError):
            continue  # a crash is easy to notice; the law must be seen broken
    return False


def commit_uncomputed_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """On release the last token counts as computed, though it was only sampled."""
    original = KVManager.release

    def release(self: KVManager, seq: Sequence) -> None:
        seq.num_computed = min(seq.num_tokens, len(seq.pages) * self.page_size)
        seq.tokens.append(0)  # so that the real release keeps the true last token
        original(self, seq)
        seq.tokens.pop()

    monkeypatch.setattr(KVManager, "release", release)


def forget_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that the tree held already is neither taken over nor freed."""
    monkeypatch.setattr(KVManager, "_adopt", lambda self, seq, start, tree_pages: None)


def forget_unlock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ever unlocked, so nothing can be evicted."""
    monkeypatch.setattr(RadixTree, "unlock", lambda self, node: None)


def evict_locked_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eviction does not look at the lock."""

    def is_current(self: RadixTree, entry: tuple[int, int, object]) -> bool:
        return entry[2].parent is not None and not entry[2].children

    monkeypatch.setattr(RadixTree, "_is_current", is_current)


def retract_mid_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence is retracted while a step of it is in flight."""
    original = Scheduler._plan_decode

    def plan_decode(self: Scheduler, rows: list[Sequence]) -> BatchPlan | None:
        launched, self._num_launched = self._num_launched, 0
        try:
            return original(self, rows)
        finally:
            self._num_launched = launched

    monkeypatch.setattr(Scheduler, "_plan_decode", plan_decode)


def match_whole_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fully cached prompt leaves no token to compute."""
    monkeypatch.setattr(
        RadixTree, "_matchable", lambda self, tokens, most: len(tokens) // self._page_size
    )


def emit_surplus_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token of the step launched before a stop token was seen is delivered."""
    original = Scheduler.process

    def process(self: Scheduler, plan: BatchPlan, result: StepResult) -> list[TokenOutput]:
        surplus = [
            TokenOutput(rid=seq.rid, token_ids=(int(result.token_ids[row]),))
            for row, seq in enumerate(plan.rows)
            if seq.status is Status.FINISHED
        ]
        return original(self, plan, result) + surplus

    monkeypatch.setattr(Scheduler, "process", process)


def retracted_before_half_prefilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retracted sequence overtakes one that holds pages while it waits."""
    original = WaitingLine.rejoin

    def rejoin(self: WaitingLine, seq: Sequence) -> None:
        original(self, seq)
        self.lead(seq)

    monkeypatch.setattr(WaitingLine, "rejoin", rejoin)


def forget_to_catch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After tokens are appended, the next step goes on from the last sampled one."""
    original = Scheduler.append

    def append(self: Scheduler, *args: object) -> TokenOutput:
        output = original(self, *args)
        self._behind.clear()
        return output

    monkeypatch.setattr(Scheduler, "append", append)


def catch_up_all_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token left to compute is taken for the one that was sampled last."""
    original = Scheduler._advance_running

    def advance_running(self: Scheduler, chunk: Chunk) -> None:
        original(self, chunk)
        if chunk.seq.num_uncomputed == 1:
            self._behind.pop(chunk.seq.rid, None)

    monkeypatch.setattr(Scheduler, "_advance_running", advance_running)


def forget_to_count_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's penalties do not hear of appended tokens."""
    original = PlanBuilder.extend

    def extend(self: PlanBuilder, chunks: list[Chunk]) -> BatchPlan:
        return original(self, [replace(chunk, is_behind=False) for chunk in chunks])

    monkeypatch.setattr(PlanBuilder, "extend", extend)


def append_past_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop token among appended ones does not end the sequence there."""
    original = Scheduler.append

    def append(self: Scheduler, rid: str, token_ids: tuple[int, ...]) -> TokenOutput:
        with monkeypatch.context() as patch:
            patch.setattr(outputs, "ending", lambda seq, token_id: None)
            return original(self, rid, token_ids)

    monkeypatch.setattr(Scheduler, "append", append)


def share_between_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix is found whoever put it there."""
    find, insert = RadixTree._find, RadixTree.insert

    def find_any(self: RadixTree, tokens: Any, most: int, namespace: str) -> Any:
        return find(self, tokens, most, "")

    def insert_anywhere(
        self: RadixTree, below: Any, tokens: Any, pages: list[int], namespace: str
    ) -> Any:
        return insert(self, below, tokens, pages, "")

    monkeypatch.setattr(RadixTree, "_find", find_any)
    monkeypatch.setattr(RadixTree, "insert", insert_anywhere)


def hold_pages_in_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """``retract_all`` forgets the half-prefilled sequence."""

    def retract_all(self: Scheduler) -> int:
        count = len(self._running)
        while self._running:
            self._retract_youngest()
        return count

    monkeypatch.setattr(Scheduler, "retract_all", retract_all)


def give_up_after_the_last_retraction(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the only running sequence has made room, nobody is told."""

    def schedule(self: Scheduler) -> BatchPlan | None:
        plan = self._next_plan()
        self._num_launched += plan is not None
        return plan

    monkeypatch.setattr(Scheduler, "schedule", schedule)


BUGS = [
    forget_to_catch_up,
    catch_up_all_but_one,
    forget_to_count_appended,
    append_past_the_end,
    share_between_namespaces,
    hold_pages_in_a_pause,
    give_up_after_the_last_retraction,
    commit_uncomputed_tail,
    forget_duplicates,
    forget_unlock,
    evict_locked_leaves,
    retract_mid_flight,
    match_whole_prompt,
    emit_surplus_token,
    retracted_before_half_prefilled,
]


@pytest.mark.parametrize("plant", BUGS)
@pytest.mark.parametrize("is_checked", [True, False], ids=["checked", "unchecked"])
def test_simulator_catches(plant, is_checked, monkeypatch):
    plant(monkeypatch)
    assert is_caught(is_checked=is_checked)


def test_no_false_alarm():
    for seed in range(10):
        Simulation(make_world(seed)).run()
