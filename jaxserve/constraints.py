"""Sequences whose tokens a grammar decides: masks before a step, forced tokens after it.

What can be sampled depends on every token before.  So the rows of such sequences are deferred:
their step is launched while the tokens of the step before are on their way, and sampled when
these are known, under masks that are made while the device computes the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxserve.batch import MIN_LOGPROB, TokenMasks
from jaxserve.constrained import (
    ALL_ALLOWED,
    BITS_PER_WORD,
    GrammarError,
    Matcher,
    fill_masks,
)
from jaxserve.request import FinishReason, Request, SamplingParams, TokenLogprob, TokenOutput
from jaxserve.scheduler import BatchPlan, Scheduler
from jaxserve.step_times import StepTimes


@dataclass(frozen=True, slots=True)
class _Follower:
    matcher: Matcher
    sampling: SamplingParams


class Constraints:
    """The matchers of the sequences that are alive, by rid.  Used by the engine thread alone.

    Args:
        times: tells when forced tokens are worth a step of their own.
        vocab_size: width of the model's logits.
        eos_token_ids: the first one ends an output whose grammar is finished.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        times: StepTimes,
        *,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self._scheduler = scheduler
        self._times = times
        self._eos_token_ids = eos_token_ids
        self._num_words = -(-vocab_size // BITS_PER_WORD)
        self._bits = np.zeros((0, self._num_words), np.uint32)
        self._followers: dict[str, _Follower] = {}

    def add(self, request: Request, matcher: Matcher) -> list[TokenOutput]:
        """Constrain a sequence that the scheduler has just taken in.

        Returns:
            The tokens that its grammar forces at the start, if any.
        """
        self._followers[request.rid] = _Follower(matcher, request.sampling)
        if not request.sampling.max_new_tokens:
            return []
        nothing = TokenOutput(rid=request.rid, token_ids=())
        try:
            start = self._continued(nothing, matcher.forced_tokens())
        except GrammarError as error:
            return [self._abort(request.rid, error)]
        return [start] if start is not nothing else []

    def drop(self, rid: str) -> None:
        """Forget a sequence that has ended, constrained or not."""
        self._followers.pop(rid, None)

    def deferred_rows(self, plan: BatchPlan) -> list[int]:
        """The rows of a plan that are to be sampled after its launch."""
        followers = self._followers
        if not followers:
            return []
        samples = plan.inputs.sampling.samples
        rows = enumerate(plan.rows)
        return [row for row, seq in rows if seq.rid in followers and samples[row]]

    def masks(
        self, plan: BatchPlan, rows: Sequence[int]
    ) -> tuple[TokenMasks | None, list[TokenOutput]]:
        """What these rows of a launched plan may sample; those may anything that still think.

        Returns:
            ``None`` when no row is left; and the last outputs of those sequences whose grammar
            cannot be followed any further.
        """
        followed: dict[int, Matcher] = {}
        free: list[int] = []  # of these no mask is needed any more, or not yet
        for row in rows:
            follower = self._followers.get(plan.rows[row].rid)
            if follower is not None and follower.matcher.is_active:
                followed[row] = follower.matcher
            else:
                free.append(row)
        ordered = [*followed, *free]
        failed = self._fill(list(followed.values()), len(free))
        aborted = [
            self._abort(plan.rows[ordered[index]].rid, error) for index, error in failed.items()
        ]
        kept = [index for index in range(len(ordered)) if index not in failed]
        if not kept:
            return None, aborted
        bits = self._bits[kept] if failed else self._bits[: len(ordered)]
        return TokenMasks(np.array([ordered[index] for index in kept], np.int32), bits), aborted

    def follow(self, outputs: list[TokenOutput]) -> list[TokenOutput]:
        """Take in the tokens of a step, and append those that can only be what they are.

        They are appended if that is cheaper than to sample them; else a mask will leave the
        sampler no choice.

        Returns:
            The outputs, those of constrained sequences with the appended tokens.
        """
        if not self._followers:
            return outputs
        followed = list(outputs)
        forced: dict[int, tuple[int, ...]] = {}
        for index, output in enumerate(outputs):
            follower = self._followers.get(output.rid)
            if follower is None or not output.token_ids or output.finish is not None:
                continue
            try:
                follower.matcher.accept(output.token_ids)
                forced[index] = follower.matcher.forced_tokens()
            except GrammarError as error:
                followed[index] = _joined(output, self._abort(output.rid, error))
                continue
            if follower.matcher.is_spent:
                del forced[index], self._followers[output.rid]
        # The first token of a row costs nothing: a step is on its way that can sample it.
        num_forced = sum(len(token_ids) - 1 for token_ids in forced.values() if token_ids)
        num_rows = self._scheduler.num_running
        is_worth_it = bool(num_forced) and self._times.is_worth_appending(num_forced, num_rows)
        for index, token_ids in forced.items():
            token_ids = token_ids if is_worth_it else ()
            followed[index] = self._continued(followed[index], token_ids)
        return followed

    def _fill(self, matchers: Sequence[Matcher], num_free: int) -> dict[int, GrammarError]:
        """Fill one row of ``_bits`` for each matcher, and free ones after them.

        Returns:
            The errors by index.
        """
        count = len(matchers)
        if len(self._bits) < count + num_free:
            self._bits = np.zeros((count + num_free, self._num_words), np.uint32)
        self._bits[count : count + num_free] = ALL_ALLOWED
        try:
            fill_masks(matchers, self._bits[:count])
        except GrammarError:
            return self._fill_one_by_one(matchers)
        return {}

    def _fill_one_by_one(self, matchers: Sequence[Matcher]) -> dict[int, GrammarError]:
        errors: dict[int, GrammarError] = {}
        for index, matcher in enumerate(matchers):
            try:
                fill_masks([matcher], self._bits[index : index + 1])
            except GrammarError as error:
                errors[index] = error
        return errors

    def _continued(self, output: TokenOutput, forced: tuple[int, ...]) -> TokenOutput:
        """The output with these tokens appended to it, and with its end if that is all."""
        matcher = self._followers[output.rid].matcher
        if forced:
            output = self._appended(output, forced)
            if output.finish is not None:
                return output
            try:
                matcher.accept(forced)
            except GrammarError as error:
                return _joined(output, self._abort(output.rid, error))
        return self._ended(output) if matcher.is_finished else output

    def _ended(self, output: TokenOutput) -> TokenOutput:
        """End a sequence whose grammar allows no more text, with EOS, wanted by it or not."""
        last = output.token_ids[-1:]
        if last and last[0] in self._eos_token_ids:
            return self._appended(output, (), FinishReason("stop", matched=last[0]))
        eos = self._eos_token_ids[0]
        return self._appended(output, (eos,), FinishReason("stop", matched=eos))

    def _appended(
        self, output: TokenOutput, token_ids: tuple[int, ...], finish: FinishReason | None = None
    ) -> TokenOutput:
        sampling = self._followers[output.rid].sampling
        logprobs = _certain(token_ids, sampling)
        return _joined(output, self._scheduler.append(output.rid, token_ids, logprobs, finish))

    def _abort(self, rid: str, error: GrammarError) -> TokenOutput:
        reason = FinishReason("abort", message=str(error), status_code=error.status)
        output = self._scheduler.abort(rid, reason)
        assert output is not None, "a constrained sequence that is not alive"
        return output


def _joined(first: TokenOutput, second: TokenOutput) -> TokenOutput:
    return second._replace(
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        prompt_logprobs=first.prompt_logprobs + second.prompt_logprobs,
        hidden_states=first.hidden_states,  # appended tokens are computed later
    )


def _certain(token_ids: tuple[int, ...], sampling: SamplingParams) -> tuple[TokenLogprob, ...]:
    """The logprobs of tokens that nothing else could stand in place of."""
    if sampling.num_logprobs is None:
        return ()
    return tuple(
        TokenLogprob(
            token_id,
            0.0,
            ((token_id, 0.0),) if sampling.num_logprobs else (),
            tuple(
                (other, 0.0 if other == token_id else MIN_LOGPROB)
                for other in sampling.logprob_token_ids
            ),
        )
        for token_id in token_ids
    )
