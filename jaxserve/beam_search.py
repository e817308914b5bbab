"""Beam search over log-probabilities, as SGLang 0.5.23 does it; no model in it.

Every step extends each beam by its likeliest tokens.  Of all these candidates the ``2 width``
likeliest are looked at, best first: one that is a stop token ends its beam, the first ``width``
others go on.  The search is over at the token limit; the beams that have ended are ranked by their
logprob per token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from operator import itemgetter

TopTokens = Sequence[tuple[int, float]]  # (token id, logprob), most likely first


@dataclass(frozen=True, slots=True)
class Beam:
    """One output.  ``logprob`` is the sum of its tokens'; ``matched`` the stop token at its end."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    matched: int | None = None

    @property
    def score(self) -> float:
        """What beams are ranked by: the logprob per token."""
        return self.logprob / max(1, len(self.token_ids))


class BeamSearch:
    """The beams of one prompt.

    Args:
        width: beams that go on from a step, and results there are at most.
        max_new_tokens: length at which every beam ends, at least 1.
        stop_token_ids: each ends its beam.
    """

    def __init__(self, width: int, max_new_tokens: int, stop_token_ids: Iterable[int]) -> None:
        self._width = width
        self._max_new_tokens = max_new_tokens
        self._stop_token_ids = frozenset(stop_token_ids)
        self._ended: list[Beam] = []
        self.frontier: list[Beam] = [Beam()]  # what goes on; at first nothing but the prompt

    @property
    def num_candidates(self) -> int:
        """How many of the likeliest tokens ``advance`` wants for each beam of the frontier."""
        return 2 * self._width

    @property
    def is_over(self) -> bool:
        """True when nothing goes on."""
        return not self.frontier

    def advance(self, tops: Sequence[TopTokens]) -> None:
        """Extend every beam by one token.

        Args:
            tops: the likeliest next tokens of each beam of the frontier, in its order.
        """
        candidates = [  # not yet beams: few of them become any
            (beam.logprob + logprob, beam, token_id)
            for beam, top in zip(self.frontier, tops, strict=True)
            for token_id, logprob in top
        ]
        if len(self.frontier[0].token_ids) + 1 >= self._max_new_tokens:
            self._ended += map(_extended, nlargest(self._width, candidates, key=itemgetter(0)))
            self.frontier = []
            return
        self.frontier = []
        for beam in map(_extended, nlargest(self.num_candidates, candidates, key=itemgetter(0))):
            token_id = beam.token_ids[-1]
            if token_id in self._stop_token_ids:
                self._ended.append(Beam(beam.token_ids, beam.logprob, token_id))
            else:
                self.frontier.append(beam)
                if len(self.frontier) == self._width:
                    break
        if len(self.frontier) < self._width or self._is_decided():
            self.stop()

    def stop(self) -> None:
        """End every beam where it is."""
        self._ended += self.frontier
        self.frontier = []

    def best(self, num_results: int) -> list[Beam]:
        """The beams that have ended, best first; at most ``width``."""
        ranked = sorted(self._ended, key=lambda beam: beam.score, reverse=True)
        return ranked[: min(num_results, self._width)]

    def _is_decided(self) -> bool:
        """Whether no beam can still get among the results, however it goes on.

        A logprob never rises, and the most that a score can is by being spread over more tokens.
        """
        results = self.best(self._width)
        if len(results) < self._width:
            return False
        best_score = max(map(_logprob, self.frontier)) / self._max_new_tokens
        return results[-1].score >= best_score


def _extended(candidate: tuple[float, Beam, int]) -> Beam:
    logprob, beam, token_id = candidate
    return Beam((*beam.token_ids, token_id), logprob)


def _logprob(beam: Beam) -> float:
    return beam.logprob
