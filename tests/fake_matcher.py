"""A deliberate fake of ``jaxserve.constrained.Matcher``: a grammar by output position."""

from collections.abc import Sequence

import numpy as np

from jaxserve.errors import GrammarError

EOS = 256  # of the tiny checkpoint
ANY = frozenset(range(3, 250))


class FakeMatcher:
    """Position ``i`` of the output must be in ``steps[i]``; then only EOS may come.

    Args:
        may_end_at: positions at which EOS is allowed too.
        is_forcing: tell of tokens that must come next.
        starts_after: until this token has been accepted, anything may come.
        breaks_at: position that the grammar cannot be followed beyond.
        is_lifted: nothing is constrained any more once ``starts_after`` has come.
    """

    def __init__(
        self,
        steps: Sequence[frozenset[int]],
        *,
        may_end_at: frozenset[int] = frozenset(),
        is_forcing: bool = True,
        starts_after: int | None = None,
        breaks_at: int | None = None,
        is_lifted: bool = False,
    ) -> None:
        self._steps = steps
        self._may_end_at = may_end_at
        self._is_forcing = is_forcing
        self._starts_after = starts_after
        self._breaks_at = breaks_at
        self._is_lifted = is_lifted
        self._position = 0
        self._has_ended = False

    @property
    def is_active(self) -> bool:
        return self._starts_after is None

    @property
    def is_spent(self) -> bool:
        return self._is_lifted and self.is_active

    @property
    def is_finished(self) -> bool:
        is_over = self._has_ended or self._position == len(self._steps)
        return self.is_active and is_over and not self._is_lifted

    def accept(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if not self.is_active:
                if token_id == self._starts_after:
                    self._starts_after = None
                continue
            if token_id not in self._allowed():
                raise GrammarError(f"token {token_id} is not allowed here")
            self._has_ended = token_id == EOS
            self._position += token_id != EOS

    def forced_tokens(self) -> tuple[int, ...]:
        forced: list[int] = []
        if not (self.is_active and self._is_forcing):
            return ()
        for position in range(self._position, len(self._steps)):
            allowed = self._steps[position]
            if len(allowed) > 1 or position in self._may_end_at:
                break
            forced += allowed
        return tuple(forced)

    def fill_mask(self, row: np.ndarray) -> None:
        if self._position == self._breaks_at:
            raise GrammarError("the grammar is too complex")
        row.fill(0)
        for token_id in self._allowed():
            row[token_id // 32] |= np.uint32(1 << token_id % 32)

    def _allowed(self) -> frozenset[int]:
        if self._position == len(self._steps):
            return frozenset({EOS})
        ends = {EOS} if self._position in self._may_end_at else set()
        return self._steps[self._position] | ends


def fill_fake_masks(matchers: Sequence[FakeMatcher], out: np.ndarray) -> None:
    """In place of ``jaxserve.constrained.fill_masks``, which knows what is inside a matcher."""
    for matcher, row in zip(matchers, out, strict=True):
        matcher.fill_mask(row)
