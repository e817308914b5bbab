"""Which running sequences take part in a step for tokens that were appended to some of them."""

from collections.abc import Iterable, Mapping

from jaxserve.scheduler.kv_manager import KVManager
from jaxserve.scheduler.plan import Chunk
from jaxserve.scheduler.sequence import Sequence


def catch_up_chunks(
    behind: Mapping[str, Sequence], rows: Iterable[Sequence], budget: int, max_rows: int
) -> tuple[list[Chunk], int]:
    """Chunks of those that are behind, then the newest token of each other row.

    Args:
        behind: running sequences with appended tokens, by rid; those first that wait longest.
        rows: running sequences that could decode; their newest tokens may be in flight.
        budget: most tokens to grant.

    Returns:
        The chunks, at most ``max_rows``, and what is left of the budget.
    """
    chunks: list[Chunk] = []
    for seq in [*behind.values(), *rows]:
        if not budget or len(chunks) == max_rows:
            break
        is_behind = seq.rid in behind
        granted = min(budget, seq.num_uncomputed) if is_behind else 1
        chunks.append(Chunk(seq, granted, is_first=False, is_behind=is_behind))
        budget -= granted
    return chunks, budget


def num_missing_pages(kv: KVManager, chunks: Iterable[Chunk]) -> int:
    """Pages that running sequences lack for these chunks."""
    return sum(kv.missing_pages(chunk.seq, chunk.num_tokens) for chunk in chunks)
