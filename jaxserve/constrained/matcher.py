"""One sequence's place in its grammar, and the masks of a step's rows."""

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher

from jaxserve.constrained.vocabulary import BITS_PER_WORD, Vocabulary
from jaxserve.errors import GrammarError

ALL_ALLOWED = 0xFFFFFFFF


class Matcher:
    """Follows one sequence through its grammar.  Used by one thread at a time.

    Until the output has contained ``starts_after`` (the end of the reasoning) it is not active:
    every token is accepted and none is masked.  With ``starts_with`` (the beginning of the
    reasoning) the first token decides: it is that one, or the grammar holds from there on.
    """

    def __init__(
        self,
        grammar: LLMatcher,
        vocabulary: Vocabulary,
        starts_after: tuple[int, ...] = (),
        starts_with: int | None = None,
    ) -> None:
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._starts_after = starts_after
        self._starts_with = starts_with if starts_after else None
        self._recent: tuple[int, ...] = ()
        self._is_active = not starts_after or starts_with is not None

    @property
    def is_active(self) -> bool:
        """False while anything may be generated: before ``starts_after`` has been."""
        return self._is_active

    @property
    def is_finished(self) -> bool:
        """True when nothing but an end-of-sequence token may follow, or one has been accepted."""
        return self._is_active and self._grammar.is_stopped() and not self._grammar.is_error()

    @property
    def may_end(self) -> bool:
        """True when the output up to here is complete, though it might go on."""
        return self._is_active and self._grammar.is_accepting()

    def accept(self, token_ids: Sequence[int]) -> None:
        """Step over tokens that have been generated.

        Raises:
            GrammarError: the grammar does not allow them here, or became too complex to follow.
        """
        for token_id in token_ids:
            may_reason, self._starts_with = self._starts_with, None
            if token_id == may_reason:
                self._is_active = False
            if not self._is_active:
                self._look_for_start(token_id)
            elif self.is_finished and token_id in self._vocabulary.eos_token_ids:
                continue  # the end after the end
            elif not self._grammar.consume_token(token_id):
                raise self._failure(f"token {token_id} is not allowed here")

    def forced_tokens(self) -> tuple[int, ...]:
        """The tokens that must come next, if only one continuation is possible.

        They are not accepted yet.  Empty when the grammar is finished: an end-of-sequence token
        is not forced text.
        """
        if not self._is_active or self._starts_with is not None or self._grammar.is_stopped():
            return ()
        return tuple(self._grammar.compute_ff_tokens())

    def _look_for_start(self, token_id: int) -> None:
        wanted = self._starts_after
        self._recent = (*self._recent, token_id)[-len(wanted) :]
        self._is_active = self._recent == wanted

    def _failure(self, what: str) -> GrammarError:
        detail = self._grammar.get_error().partition("<")[0].strip() or what
        return GrammarError(
            f"the output cannot be continued as its grammar demands: {detail}; simplify the grammar"
        )

    def fill_mask(self, row: np.ndarray) -> None:
        """Write the tokens allowed next into ``row``, u32[num_mask_words].

        Raises:
            GrammarError: the grammar became too complex to follow.
        """
        if self._is_active:
            self._grammar.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self._complete(row)

    def _complete(self, row: np.ndarray) -> None:
        """Finish a row that llguidance has filled if the matcher is active."""
        if not self._is_active:
            row.fill(ALL_ALLOWED)
            return
        if self._grammar.is_error():
            raise self._failure("no mask")
        if self._starts_with is not None:
            word, bit = divmod(self._starts_with, BITS_PER_WORD)
            row[word] |= np.uint32(1 << bit)


def fill_masks(matchers: Sequence[Matcher], out: np.ndarray) -> None:
    """Write each matcher's allowed tokens into its row of ``out``.

    A row takes up to 0.3 ms; several are computed at the same time where there are processors.

    Args:
        out: u32[len(matchers), num_mask_words], C-contiguous; bit i of word w is token 32 w + i.

    Raises:
        GrammarError: a grammar became too complex to follow; the rows after it may be unfilled.
    """
    assert out.dtype == np.uint32 and out.flags.c_contiguous and len(out) == len(matchers)
    active = [(matcher._grammar, i) for i, matcher in enumerate(matchers) if matcher.is_active]
    executor = matchers[active[0][1]]._vocabulary.executor if len(active) > 1 else None
    if executor is None:
        for row, matcher in zip(out, matchers, strict=True):
            matcher.fill_mask(row)
        return
    executor.unsafe_compute_mask_ptr(active, out.ctypes.data, out.strides[0], len(out))
    for row, matcher in zip(out, matchers, strict=True):
        matcher._complete(row)
