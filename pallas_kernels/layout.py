"""Where keys and values lie, and the letters that name their axes.

Axes: T tokens of a step, B rows, W pages per row, P pages of the pool, N query heads,
K key/value heads, G = N / K query heads per kv head, H head dim.

A pool is ``[P, K, page_size, H]``: one (page, head) tile is contiguous, so that a kernel
brings it in with one copy.  Page 0 is the null page: padding writes to it and reads from it,
and no row with a length owns it.  A *write slot* is ``page * page_size + offset``.
"""

from dataclasses import dataclass

import jax


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Static sizes of one layer's pool."""

    num_pages: int
    num_kv_heads: int
    page_size: int
    head_dim: int

    @classmethod
    def of(cls, pages: jax.Array) -> "KVLayout":
        """The layout of a pool ``[P, K, page_size, H]``."""
        if pages.ndim != 4:
            raise ValueError(
                f"a KV pool has shape [P, K, page_size, H]; got {pages.ndim} axes: {pages.shape}"
            )
        return cls(*pages.shape)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``[P, K, page_size, H]``."""
        return (self.num_pages, self.num_kv_heads, self.page_size, self.head_dim)
