"""Where the embeddings that requests bring themselves stand in a step."""

from collections.abc import Iterable

import numpy as np

from jaxserve.batch import EMBED_TOKEN, EmbedRows
from jaxserve.scheduler.sequence import Sequence


def place_embeds(
    rows: Iterable[Sequence], q_starts: np.ndarray, token_ids: np.ndarray
) -> tuple[EmbedRows, ...]:
    """The embeddings of an EXTEND step, in the order of their places.

    Call it before ``num_computed`` moves.

    Args:
        rows: the sequence of each row.
        q_starts: i32[B + 1]; the step's tokens [q_starts[b], q_starts[b + 1]) are those of row
            b after its ``num_computed``.
        token_ids: i32[T], written: ``EMBED_TOKEN`` wherever there is an embedding.
    """
    found: list[EmbedRows] = []
    for row, seq in enumerate(rows):
        embeds = seq.request.embeds
        if embeds is None:
            continue
        start, first = int(q_starts[row]), seq.num_computed
        part = embeds[first : first + int(q_starts[row + 1]) - start]
        if len(part):
            token_ids[start : start + len(part)] = EMBED_TOKEN
            found.append(EmbedRows(start, part))
    return tuple(found)
