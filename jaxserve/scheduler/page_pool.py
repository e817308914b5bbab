"""The free list of KV page ids."""

from collections.abc import Iterable

from jaxserve.batch import NULL_PAGE


class PagePool:
    """Which page ids nobody owns.  Ids are in [1, num_pages); the null page never leaves.

    Raises:
        ValueError: fewer than two pages, more pages asked for than are free, or a page freed
            twice, all of which are mistakes of the caller.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 2:
            raise ValueError(f"a pool needs the null page and one more, got num_pages={num_pages}")
        self.num_pages = num_pages
        # Descending, so that the first allocations are the low ids: easier to read in a dump.
        self._free = list(range(num_pages - 1, NULL_PAGE, -1))
        self._is_free = bytearray([0] + [1] * (num_pages - 1))

    @property
    def num_free(self) -> int:
        """Pages that ``allocate`` can hand out now."""
        return len(self._free)

    def free_pages(self) -> tuple[int, ...]:
        """Every free id, the next to be handed out last."""
        return tuple(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` ids out of the pool."""
        if not 0 <= count <= len(self._free):
            raise ValueError(f"asked for {count} pages, {len(self._free)} are free; evict first")
        start = len(self._free) - count
        pages = self._free[start:]
        del self._free[start:]
        for page in pages:
            self._is_free[page] = 0
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Give ids back; they may be handed out again at once."""
        for page in pages:
            if not NULL_PAGE < page < self.num_pages:
                raise ValueError(f"page {page} is outside [1, {self.num_pages}); it has no owner")
            if self._is_free[page]:
                raise ValueError(f"page {page} is freed twice")
            self._is_free[page] = 1
            self._free.append(page)
