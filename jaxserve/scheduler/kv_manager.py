"""The sole owner of the page pool and the radix tree; it alone changes a sequence's pages.

A sequence's tokens and who owns the page under each of them:

    position      0                prefix.end*S              num_computed      len(pages)*S
                  |---------------------|--------------------------|---------------|
    owner         |  radix tree, locked |            the sequence (private)        |
    content       |      KV exists or will after steps launched    |  not written  |
                  |------ commit moves this border right ->|

    commit(n)     only whole pages below n, and n <= tokens whose ids are known and whose KV is
                  launched.  Sound because dispatch order is execution order: a later step that
                  reads the page cannot overtake the one that writes it.
    release       commits min(num_computed, num_tokens - 1): after a stop token one surplus step
                  is in flight, and it still writes position num_tokens - 1.
    duplicates    when the tree already holds an equal page, the sequence takes the tree's and
                  frees its own, at once: steps in flight that use it come before any reuse.

S is the page size.  Every page in [1, P) is free, in the tree, or private to one sequence.
"""

import time
from collections.abc import Callable, Iterable

import numpy as np

from jaxserve.batch import NULL_PAGE, PADDING_SLOT
from jaxserve.errors import ContextLengthError, KVCacheFullError
from jaxserve.scheduler.page_pool import PagePool
from jaxserve.scheduler.radix_tree import RadixNode, RadixTree
from jaxserve.scheduler.sequence import Sequence


class KVManager:
    """Pages and slots: match, admit, grow, commit, release.

    ``page_table`` i32[num_slots, pages_per_row] mirrors the pages of the sequence in each slot,
    padded with the null page, so that a plan is one gather and not a loop over sequences.

    Args:
        on_evicted: told how many seconds each eviction took.
    """

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        num_slots: int,
        pages_per_row: int,
        is_caching: bool = True,
        on_evicted: Callable[[float], None] | None = None,
    ) -> None:
        self.page_size = page_size
        self._on_evicted = on_evicted
        self.is_caching = is_caching
        self.page_table = np.full((num_slots, pages_per_row), NULL_PAGE, dtype=np.int32)
        self._pool = PagePool(num_pages)
        self._tree = RadixTree(page_size)
        self._free_slots = list(range(num_slots - 1, PADDING_SLOT, -1))
        self._holders: dict[int, Sequence] = {}  # by slot
        self.num_evicted_pages = 0  # since the start

    @property
    def num_pages(self) -> int:
        """All pages, the null page included."""
        return self._pool.num_pages

    @property
    def num_free_pages(self) -> int:
        """Pages in the free list."""
        return self._pool.num_free

    @property
    def num_cached_pages(self) -> int:
        """Pages in the radix tree, in use or not."""
        return self._tree.num_pages

    @property
    def num_evictable_pages(self) -> int:
        """Pages in the radix tree that nobody uses."""
        return self._tree.num_evictable_pages

    @property
    def num_private_pages(self) -> int:
        """Pages that belong to one sequence alone."""
        return self.num_pages - 1 - self.num_free_pages - self.num_cached_pages

    @property
    def num_available_pages(self) -> int:
        """Pages that can be had now, by eviction if need be."""
        return self.num_free_pages + self.num_evictable_pages

    @property
    def num_free_slots(self) -> int:
        """Sequences that could be admitted beside those that hold a slot."""
        return len(self._free_slots)

    def require_room(self, seq: Sequence) -> None:
        """Refuse a sequence that would not fit if it were alone.

        Raises:
            KVCacheFullError: prompt and output are more than all pages hold.
            ContextLengthError: they are more than a row of the page table holds.
        """
        total = seq.num_prompt + seq.max_new_tokens
        given = f"{seq.num_prompt} prompt tokens + max_new_tokens {seq.max_new_tokens} = {total}"
        allowed = (self.num_pages - 1) * self.page_size
        if total > allowed:
            raise KVCacheFullError(
                f"{given} tokens, the whole KV cache holds {allowed}; shorten the request, or "
                "restart with a larger --max-total-tokens or --mem-fraction-static"
            )
        allowed = self.page_table.shape[1] * self.page_size
        if total > allowed:
            raise ContextLengthError(
                f"{given} tokens, a row of the page table holds {allowed}; shorten the request, or "
                "restart with a larger --context-length"
            )

    def num_cached_tokens(self, seq: Sequence) -> int:
        """Tokens of a waiting sequence that the cache holds now.  Changes nothing."""
        if not self.is_caching:
            return 0
        namespace = seq.request.cache_namespace
        found = self._tree.num_matching_pages(seq.tokens, seq.num_matchable, namespace)
        return found * self.page_size

    def match(self, seq: Sequence) -> RadixNode:
        """Return where the sequence's cached prefix ends: its own place once it holds pages."""
        if seq.prefix is not None:
            return seq.prefix
        if not self.is_caching:
            return self._tree.root
        return self._tree.match(seq.tokens, seq.num_matchable, seq.request.cache_namespace)

    def next_page(self, seq: Sequence, prefix: RadixNode) -> tuple[object, str, bytes]:
        """What names the page after the cached prefix: its tokens, and what they come after."""
        start = prefix.end * self.page_size
        tokens = seq.tokens[start : start + self.page_size].tobytes()
        return prefix, seq.request.cache_namespace, tokens

    def can_match_more(self, seq: Sequence, prefix: RadixNode) -> bool:
        """Whether the page after the cached prefix could be matched, were it in the tree."""
        end = (prefix.end + 1) * self.page_size
        return self.is_caching and seq.num_tokens > end and seq.num_matchable >= end

    def admit(self, seq: Sequence, prefix: RadixNode, budget: int, reserve: int) -> int:
        """Give a waiting sequence the pages for its next chunk, and a slot if it has none.

        Args:
            prefix: what ``match`` returned for it just before.
            budget: most tokens to grant.
            reserve: pages that must remain available afterwards.

        Returns:
            The tokens granted; 0 when there is no room, and then nothing has changed.
        """
        is_first = seq.slot == PADDING_SLOT
        if is_first and not self._free_slots:
            return 0
        num_computed = prefix.end * self.page_size if is_first else seq.num_computed
        num_held = prefix.end if is_first else len(seq.pages)
        granted = min(budget, seq.num_tokens - num_computed)
        needed = self._pages_for(num_computed + granted) - num_held
        if is_first:
            self._tree.lock(prefix)  # before counting: eviction must not take what matched
        if needed + reserve > self.num_available_pages:
            if is_first:
                self._tree.unlock(prefix)
            return 0
        if is_first:
            seq.slot = self._free_slots.pop()
            seq.prefix = prefix
            seq.num_computed = num_computed
            self._holders[seq.slot] = seq
            self._append_pages(seq, prefix.prefix_pages())
        self._append_pages(seq, self._allocate(needed))
        return granted

    def needing_page(self, rows: Iterable[Sequence]) -> list[Sequence]:
        """Those of the decoding rows whose next token starts a page that they do not have."""
        size = self.page_size
        return [seq for seq in rows if seq.num_computed == len(seq.pages) * size]

    def missing_pages(self, seq: Sequence, num_tokens: int) -> int:
        """Pages that a running sequence lacks for its next ``num_tokens``."""
        return max(0, self._pages_for(seq.num_computed + num_tokens) - len(seq.pages))

    def grow_by(self, seq: Sequence, num_tokens: int) -> None:
        """Give a sequence its ``missing_pages``; ``num_available_pages`` must suffice."""
        self._append_pages(seq, self._allocate(self.missing_pages(seq, num_tokens)))

    def grow(self, rows: list[Sequence]) -> None:
        """Give each of these sequences one more page; ``num_available_pages`` must suffice."""
        for seq, page in zip(rows, self._allocate(len(rows)), strict=True):
            self._append_pages(seq, [page])

    def commit(self, seq: Sequence, num_tokens: int) -> None:
        """Give the whole pages of the first ``num_tokens`` to the radix tree."""
        prefix = seq.prefix
        assert prefix is not None and num_tokens <= seq.num_computed
        start, stop = prefix.end, num_tokens // self.page_size
        if not self.is_caching or stop <= start:
            return
        size = self.page_size
        node = self._tree.insert(
            prefix,
            seq.tokens[start * size : stop * size],
            seq.pages[start:stop],
            seq.request.cache_namespace,
        )
        self._tree.lock(node)
        self._tree.unlock(prefix)
        seq.prefix = node
        self._adopt(seq, start, node.prefix_pages()[start:])

    def release(self, seq: Sequence) -> None:
        """Take everything from a sequence; its whole pages stay in the tree.  Idempotent."""
        if seq.slot == PADDING_SLOT:
            return
        self.commit(seq, min(seq.num_computed, seq.num_tokens - 1))
        assert seq.prefix is not None
        self._pool.free(seq.pages[seq.prefix.end :])
        self._tree.unlock(seq.prefix)
        self.page_table[seq.slot, : len(seq.pages)] = NULL_PAGE
        del self._holders[seq.slot]
        self._free_slots.append(seq.slot)
        seq.slot, seq.prefix, seq.pages = PADDING_SLOT, None, []
        seq.num_computed = 0

    def flush(self) -> None:
        """Forget every cached prefix.  No sequence may hold pages."""
        assert not self._holders, "flushed while sequences hold pages"
        self._pool.free(self._tree.evict(self._tree.num_pages))

    def check(self) -> None:
        """Assert the conservation law of pages, single ownership, and consistent locks."""
        self._tree.check()
        nodes = list(self._tree.nodes())
        cached = [page for node in nodes for page in node.pages]
        private: list[int] = []
        locks = dict.fromkeys(nodes, 0)
        for slot, seq in self._holders.items():
            assert seq.slot == slot and seq.prefix is not None, "a holder without slot or prefix"
            assert seq.pages[: seq.prefix.end] == seq.prefix.prefix_pages(), "not the tree's pages"
            row = self.page_table[slot].tolist()
            assert row == seq.pages + [NULL_PAGE] * (len(row) - len(seq.pages)), "a stale mirror"
            private += seq.pages[seq.prefix.end :]
            for node in seq.prefix.path():
                locks[node] += 1
        assert all(node.lock_count == count for node, count in locks.items()), "wrong lock counts"
        assert not self.page_table[PADDING_SLOT].any(), "the padding slot has pages"
        owned = sorted([*self._pool.free_pages(), *cached, *private])
        assert owned == list(range(1, self.num_pages)), "a page is lost or has two owners"
        slots = sorted([*self._free_slots, *self._holders])
        assert slots == list(range(1, len(self.page_table))), "a slot is lost or taken twice"

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def _allocate(self, count: int) -> list[int]:
        shortage = count - self._pool.num_free
        if shortage > 0:
            start_s = time.perf_counter()
            evicted = self._tree.evict(shortage)
            self.num_evicted_pages += len(evicted)
            self._pool.free(evicted)
            if self._on_evicted is not None:
                self._on_evicted(time.perf_counter() - start_s)
        return self._pool.allocate(count)

    def _append_pages(self, seq: Sequence, pages: list[int]) -> None:
        start = len(seq.pages)
        seq.pages += pages
        self.page_table[seq.slot, start : len(seq.pages)] = pages

    def _adopt(self, seq: Sequence, start: int, tree_pages: list[int]) -> None:
        """Replace the sequence's own copies of pages that the tree held already."""
        stop = start + len(tree_pages)
        own = seq.pages[start:stop]
        if own == tree_pages:
            return
        self._pool.free(mine for mine, held in zip(own, tree_pages, strict=True) if mine != held)
        seq.pages[start:stop] = tree_pages
        self.page_table[seq.slot, start:stop] = tree_pages
