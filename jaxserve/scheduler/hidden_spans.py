"""Which of a step's tokens leave hidden states that somebody asked for, each exactly once."""

from collections.abc import Iterable, Mapping

import numpy as np

from jaxserve.scheduler.sequence import Sequence


class HiddenPlanner:
    """Plans which hidden states a step brings to the host.

    It does nothing until a sequence that wants some has taken a slot.
    """

    def __init__(self) -> None:
        self._is_wanted = False

    def note(self, seq: Sequence) -> None:
        """Tell it of a sequence that has just taken a slot."""
        self._is_wanted |= seq.next_hidden_state is not None

    def plan(
        self, rows: Iterable[Sequence], q_starts: np.ndarray
    ) -> tuple[Mapping[int, slice], np.ndarray | None]:
        """The wanted states of a step that is about to be launched.

        Moves ``next_hidden_state`` on.  Call it before ``num_computed`` moves.

        Args:
            rows: the sequence of each row.
            q_starts: i32[B + 1]; the step's tokens [q_starts[b], q_starts[b + 1]) are those of row
                b after its ``num_computed``.

        Returns:
            By row, which entries of ``StepResult.hidden`` are its own; and
            ``StepInputs.hidden_tokens``, None when nobody wants any.
        """
        if not self._is_wanted:
            return {}, None
        spans: dict[int, slice] = {}
        tokens: list[np.ndarray] = []
        count = 0
        for row, seq in enumerate(rows):
            start = seq.next_hidden_state
            if start is None:
                continue
            offset = int(q_starts[row]) - seq.num_computed
            stop = int(q_starts[row + 1]) - offset
            if stop <= start:
                continue
            seq.next_hidden_state = stop
            if seq.request.sampling.hidden_states == "last":
                start = stop - 1
            tokens.append(np.arange(start + offset, stop + offset, dtype=np.int32))
            spans[row] = slice(count, count + stop - start)
            count += stop - start
        return (spans, np.concatenate(tokens)) if tokens else ({}, None)
