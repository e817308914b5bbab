"""One sequence's place in its reasoning, up to where the answer begins."""

import re
from enum import Enum, auto

import numpy as np

from jaxserve.constrained.vocabulary import ALL_ALLOWED, BITS_PER_WORD, Vocabulary
from jaxserve.request import Thought

MAX_HEADER_BYTES = 256  # between the reasoning and the answer


class _Place(Enum):
    UNDECIDED = auto()  # the output may still turn out to begin with the answer
    INSIDE = auto()
    BEHIND = auto()  # past the end mark, the answer has not begun
    OVER = auto()


class ThoughtFollower:
    """Follows one sequence through its reasoning.  Used by one thread at a time.

    Args:
        has_grammar: the answer is constrained.  It then begins with a token of its own: one that
            ends the mark and has the answer's first characters too is not allowed.
    """

    def __init__(self, thought: Thought, vocabulary: Vocabulary, *, has_grammar: bool) -> None:
        self._thought = thought
        self._vocabulary = vocabulary
        self._end = vocabulary.text(thought.end_ids).strip()
        self._start = vocabulary.text(thought.start_ids).strip()
        pattern = thought.answer_pattern
        self._answer = None if pattern is None else re.compile(pattern.encode())
        # The grammar decides about the first token, together with the one that starts a thought.
        self._competes = has_grammar and pattern is None and bool(thought.start_ids)
        is_cut = has_grammar and pattern is None
        self._running_over = vocabulary.running_over(self._end) if is_cut else {}
        self._place = _Place.UNDECIDED if thought.start_ids else _Place.INSIDE
        if self._competes and len(thought.start_ids) > 1:
            self._place = _Place.OVER  # its first token does not tell it from an answer
        self._text = b""  # the last of it, as far as a mark may reach back
        self._recent: tuple[int, ...] = ()
        self._num_tokens = 0

    @property
    def is_over(self) -> bool:
        """True when what comes next is the answer."""
        return self._place is _Place.OVER

    @property
    def is_rival(self) -> bool:
        """True when ``start_id`` may come next or what the answer's grammar allows."""
        return self._competes and self._place is _Place.UNDECIDED

    @property
    def start_id(self) -> int:
        """The token that starts the reasoning of a rival."""
        return self._thought.start_ids[0]

    @property
    def is_free(self) -> bool:
        """True when any token may come next."""
        if self._place is not _Place.INSIDE:
            return not self.is_rival
        return not (self._is_used_up or self._thought.is_strict or self._overrunning())

    def take(self, token_id: int) -> bool:
        """Step over a token; False when it is the answer's first and not of the reasoning."""
        self._num_tokens += 1
        text = self._text + self._vocabulary.text((token_id,))
        if self.is_rival:
            is_start = token_id == self.start_id
            self._place = _Place.INSIDE if is_start else _Place.OVER
            return is_start
        if self._place is _Place.UNDECIDED:
            self._decide(text.lstrip())
        elif self._place is _Place.INSIDE:
            self._recent = (*self._recent, token_id)[-len(self._thought.end_ids) :]
            self._look_for_end(text)
        else:
            self._look_for_answer(text)
        return True

    def forced_tokens(self) -> tuple[int, ...]:
        """What is left of the end mark, once the budget is used up."""
        if self._place is not _Place.INSIDE or not self._is_used_up:
            return ()
        return self._thought.end_ids[self._num_matched() :]

    def fill(self, row: np.ndarray) -> None:
        """Write the tokens allowed next into ``row``, u32[num_mask_words]; not for a rival."""
        forced = self.forced_tokens()
        if forced:
            row.fill(0)
            set_bit(row, forced[0])
            return
        row.fill(ALL_ALLOWED)
        if self._place is not _Place.INSIDE:
            return
        refused = [*self._overrunning()]
        if self._thought.is_strict:
            refused += self._vocabulary.eos_token_ids
            refused += () if self._thought.call_id is None else (self._thought.call_id,)
        for token_id in refused:
            word, bit = divmod(token_id, BITS_PER_WORD)
            row[word] &= ~np.uint32(1 << bit)

    @property
    def _is_used_up(self) -> bool:
        return self._thought.budget is not None and self._num_tokens >= self._thought.budget

    def _num_matched(self) -> int:
        """How many tokens of the end mark the output ends with."""
        end_ids, recent = self._thought.end_ids, self._recent
        lengths = range(min(len(end_ids) - 1, len(recent)), 0, -1)
        return next((k for k in lengths if recent[-k:] == end_ids[:k]), 0)

    def _overrunning(self) -> tuple[int, ...]:
        if not self._running_over or not self._text:
            return ()
        return tuple(
            token_id
            for length, token_ids in self._running_over.items()
            if self._text.endswith(self._end[:length])
            for token_id in token_ids
        )

    def _decide(self, text: bytes) -> None:
        self._text = text
        if text.startswith(self._start):
            self._place = _Place.INSIDE
            self._look_for_end(text[len(self._start) :])
        elif not self._start.startswith(text):
            self._leave(text)

    def _look_for_end(self, text: bytes) -> None:
        before, mark, rest = text.partition(self._end) if self._end else (text, b"", b"")
        if mark or self._recent == self._thought.end_ids:
            self._leave(rest)
        else:
            self._text = before[-len(self._end) :]

    def _leave(self, text: bytes) -> None:
        self._recent = ()
        self._place = _Place.OVER
        if self._answer is not None:
            self._place = _Place.BEHIND
            self._look_for_answer(text)

    def _look_for_answer(self, text: bytes) -> None:
        self._text = text[-MAX_HEADER_BYTES:]
        if self._answer is not None and self._answer.search(text):
            self._place = _Place.OVER
        elif self._start and text.endswith(self._start):
            self._place, self._text = _Place.INSIDE, b""  # there is more of it


def set_bit(row: np.ndarray, token_id: int) -> None:
    """Allow one token more in a row of a mask, u32[num_mask_words]."""
    word, bit = divmod(token_id, BITS_PER_WORD)
    row[word] |= np.uint32(1 << bit)
