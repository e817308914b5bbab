"""One sequence's place in its grammar, and the masks of a step's rows."""

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher

from jaxserve.constrained.thought import ThoughtFollower, set_bit
from jaxserve.constrained.vocabulary import Vocabulary
from jaxserve.errors import GrammarError
from jaxserve.request import Thought


class Matcher:
    """Follows one sequence through its reasoning and its grammar.  Used by one thread at a time.

    Args:
        grammar: of the answer; None: anything may be answered.
        thought: the reasoning before the answer; None: there is none.
    """

    def __init__(
        self, grammar: LLMatcher | None, vocabulary: Vocabulary, thought: Thought | None = None
    ) -> None:
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._thought = (
            None
            if thought is None
            else ThoughtFollower(thought, vocabulary, has_grammar=grammar is not None)
        )

    @property
    def is_active(self) -> bool:
        """False while anything may be generated, so that no mask is needed."""
        if self._thought is not None and not self._thought.is_over:
            return not self._thought.is_free
        return self._grammar is not None

    @property
    def is_spent(self) -> bool:
        """True when anything may be generated from here to the end."""
        return self._grammar is None and (self._thought is None or self._thought.is_over)

    @property
    def is_finished(self) -> bool:
        """True when nothing but an end-of-sequence token may follow, or one has been accepted."""
        grammar = self._answering
        return grammar is not None and grammar.is_stopped() and not grammar.is_error()

    @property
    def may_end(self) -> bool:
        """True when the output up to here is complete, though it might go on."""
        grammar = self._answering
        return grammar is not None and grammar.is_accepting()

    @property
    def _answering(self) -> LLMatcher | None:
        """The grammar, if it decides what may come next, or does so together with a thought."""
        thought = self._thought
        return self._grammar if thought is None or thought.is_over or thought.is_rival else None

    def accept(self, token_ids: Sequence[int]) -> None:
        """Step over tokens that have been generated.

        Raises:
            GrammarError: the grammar does not allow them here, or became too complex to follow.
        """
        thought, grammar = self._thought, self._grammar
        for token_id in token_ids:
            if thought is not None and not thought.is_over and thought.take(token_id):
                continue
            if grammar is None:
                return
            if self.is_finished and token_id in self._vocabulary.eos_token_ids:
                continue  # the end after the end
            if not grammar.consume_token(token_id):
                raise _failure(grammar, f"token {token_id} is not allowed here")

    def forced_tokens(self) -> tuple[int, ...]:
        """The tokens that must come next, if only one continuation is possible.

        They are not accepted yet.  Empty when the grammar is finished: an end-of-sequence token
        is not forced text.
        """
        if self._thought is not None and not self._thought.is_over:
            return self._thought.forced_tokens()
        if self._grammar is None or self._grammar.is_stopped():
            return ()
        return tuple(self._grammar.compute_ff_tokens())

    def fill_mask(self, row: np.ndarray) -> None:
        """Write the tokens allowed next into ``row``, u32[num_mask_words].

        Raises:
            GrammarError: the grammar became too complex to follow.
        """
        grammar = self._answering
        if grammar is not None:
            grammar.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self._complete(row)

    def _complete(self, row: np.ndarray) -> None:
        """Finish a row that llguidance has filled if a grammar decides about it."""
        grammar = self._answering
        if grammar is not None and grammar.is_error():
            raise _failure(grammar, "no mask")
        if self._thought is not None and self._thought.is_rival:
            set_bit(row, self._thought.start_id)
        elif grammar is None and self._thought is not None:
            self._thought.fill(row)


def _failure(grammar: LLMatcher, what: str) -> GrammarError:
    detail = grammar.get_error().partition("<")[0].strip() or what
    return GrammarError(
        f"the output cannot be continued as its grammar demands: {detail}; simplify the grammar"
    )


def fill_masks(matchers: Sequence[Matcher], out: np.ndarray) -> None:
    """Write each matcher's allowed tokens into its row of ``out``.

    A row takes up to 0.3 ms; several are computed at the same time where there are processors.

    Args:
        out: u32[len(matchers), num_mask_words], C-contiguous; bit i of word w is token 32 w + i.

    Raises:
        GrammarError: a grammar became too complex to follow; the rows after it may be unfilled.
    """
    assert out.dtype == np.uint32 and out.flags.c_contiguous and len(out) == len(matchers)
    active = [
        (grammar, i)
        for i, matcher in enumerate(matchers)
        if (grammar := matcher._answering) is not None
    ]
    executor = matchers[active[0][1]]._vocabulary.executor if len(active) > 1 else None
    if executor is None:
        for row, matcher in zip(out, matchers, strict=True):
            matcher.fill_mask(row)
        return
    executor.unsafe_compute_mask_ptr(active, out.ctypes.data, out.strides[0], len(out))
    for row, matcher in zip(out, matchers, strict=True):
        matcher._complete(row)
