"""The streams that are open: started together, found by their rids."""

import itertools
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxserve.admission import sample_seed
from jaxserve.constrained import Matcher
from jaxserve.errors import InvalidRequestError, JaxserveError
from jaxserve.metrics import Metrics
from jaxserve.model_parts import TokenEngine
from jaxserve.request import HEALTH_CHECK_RID, Request, check_rid
from jaxserve.text import Detokenizer, Tokenizer
from jaxserve.text_stream import TextStream


class OpenStreams:
    """Starts streams, and knows them until they end.

    Args:
        engine: where their tokens come from.
        tokenizer: what makes text of them.
        metrics: what counts them.
        on_end: told of every stream that ends.
    """

    def __init__(
        self,
        engine: TokenEngine,
        tokenizer: Tokenizer,
        metrics: Metrics,
        *,
        on_end: Callable[[TextStream], None],
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._on_end = on_end
        self._serial = itertools.count()
        self._open: dict[str, TextStream] = {}

    def __len__(self) -> int:
        return len(self._open)

    def start(
        self, rid: str | None, template: Request, matchers: Sequence[Matcher | None]
    ) -> list[TextStream]:
        """Start one stream per matcher; all of them, or none.

        Args:
            rid: made up when None.  Several streams get rid_0, rid_1, ….
            template: what they have in common; its own rid does not count.

        Raises:
            InvalidRequestError: a rid is open already.
            JaxserveError: the engine takes no more.
        """
        streams: list[TextStream] = []
        sampling = template.sampling
        try:
            for index, stream_rid in enumerate(self._new_rids(rid, len(matchers))):
                request = replace(
                    template,
                    # Unique for ever: a late output of an ended stream never meets a new one
                    # whose client chose the same rid.
                    rid=f"{stream_rid}#{next(self._serial)}",
                    sampling=replace(sampling, seed=sample_seed(sampling.seed, index)),
                )
                streams.append(self._start(stream_rid, index, request, matchers[index]))
        except JaxserveError:
            for stream in streams:
                stream.close()
            raise
        return streams

    def abort(self, rid_prefix: str) -> None:
        """Have the engine end every stream whose rid starts so."""
        for rid, stream in list(self._open.items()):
            if rid.startswith(rid_prefix):
                self._engine.abort(stream.request.rid)

    def _new_rids(self, rid: str | None, n: int) -> list[str]:
        base = rid or uuid.uuid4().hex
        check_rid(base)
        rids = [base] if n == 1 else [f"{base}_{i}" for i in range(n)]
        taken = [each for each in rids if each in self._open]
        if taken:
            raise InvalidRequestError(f"Duplicate request ID detected: {', '.join(taken)}")
        return rids

    def _start(self, rid: str, index: int, request: Request, matcher: Matcher | None) -> TextStream:
        is_counted = not rid.startswith(HEALTH_CHECK_RID)
        stream = TextStream(
            rid,
            index,
            request,
            Detokenizer(self._tokenizer, request.prompt_ids, request.sampling),
            abort=self._engine.abort,
            forget=self._forget,
            metrics=self._metrics if is_counted else None,
        )
        self._engine.submit(request, stream.deliver, matcher)
        self._open[rid] = stream
        if is_counted:
            self._metrics.request_started(
                time.perf_counter() - request.arrival_s, has_grammar=matcher is not None
            )
        return stream

    def _forget(self, rid: str) -> None:
        stream = self._open.pop(rid, None)
        if stream is not None:
            self._on_end(stream)
