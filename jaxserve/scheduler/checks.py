"""The invariants of the scheduler's containers, asserted.  For tests: it walks everything."""

from collections.abc import Mapping

from jaxserve.scheduler.sequence import Sequence, Status
from jaxserve.scheduler.waiting_line import WaitingLine

ByRid = Mapping[str, Sequence]


def check_containers(alive: ByRid, running: ByRid, behind: ByRid, line: WaitingLine) -> None:
    """Assert that each sequence is where its status and its counters say."""
    waiting = line.sequences()
    found = {**running, **{seq.rid: seq for seq in waiting}}
    assert found == alive, "a sequence is in no container or in an unindexed one"
    assert len(found) == len(running) + len(waiting), "a sequence is in both"
    assert all(seq.status is Status.RUNNING for seq in running.values())
    assert all(seq.status is Status.WAITING for seq in waiting)
    half = [index for index, seq in enumerate(waiting) if seq.is_half_prefilled]
    assert half in ([], [0]), "a half-prefilled sequence is not first in line"
    assert sum(seq.num_prompt for seq in waiting) == line.num_prompt_tokens, "a wrong count"
    assert behind.items() <= running.items(), "one that is behind does not run"
    for seq in running.values():
        if seq.rid in behind:
            assert not seq.num_inflight and seq.num_uncomputed > 0, "nothing to catch up with"
            continue
        expected = seq.num_tokens + (seq.num_inflight - 1 if seq.wants_sample else 0)
        assert seq.num_computed == expected, "a decoding row's counters differ"
