"""The prefix cache's index: token prefixes → the pages that hold their KV.

    root ──[A B]── n1 ──[C]── n2          an edge holds one or more whole pages
                    └───[D E F]── n3      siblings differ in their first page

A namespace other than "" has a node without pages below the root, for as long as anything is
below it: prefixes are shared only inside a namespace, and eviction is common to all.

A node's ``end`` counts the pages from the root to the end of its edge.  It never changes while
the node is locked, because a split makes the *upper* half the new node: whoever holds a node
keeps the whole prefix that it stood for.

Only unlocked leaves are evicted, least recently unlocked first.  They are found in a heap whose
stale entries are skipped when popped, so locking a node costs nothing there.
"""

import hashlib
import heapq
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

BYTES_PER_TOKEN = array("i").itemsize
_NAMESPACE_KEY_BYTES = 33  # no multiple of a token's: it never equals a page
_HEAP_SLACK = 64


@dataclass(slots=True, eq=False)
class RadixNode:
    """One edge and the node below it.  ``key`` is the edge's tokens as native int32 bytes."""

    parent: "RadixNode | None"
    key: bytes
    pages: list[int]
    end: int
    lock_count: int = 0  # holders of this node or of one below it
    last_used: int = 0  # the tree's clock at the last unlock
    children: dict[bytes, "RadixNode"] = field(default_factory=dict)

    def path(self) -> "Iterator[RadixNode]":
        """This node and its ancestors, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent

    def prefix_pages(self) -> list[int]:
        """The pages of the whole prefix, in token order; ``end`` of them."""
        edges = [node.pages for node in self.path()]
        return [page for edge in reversed(edges) for page in edge]


class RadixTree:
    """Token prefixes at page granularity.  Owns the ids of its pages, not the pool they go to."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._page_bytes = page_size * BYTES_PER_TOKEN
        self.root = RadixNode(parent=None, key=b"", pages=[], end=0)
        self._clock = 0
        self._num_pushes = 0
        self._heap: list[tuple[int, int, RadixNode]] = []
        self.num_pages = 0
        self.num_nodes = 0
        self.num_locked_pages = 0

    @property
    def num_evictable_pages(self) -> int:
        """Pages that ``evict`` can give back now."""
        return self.num_pages - self.num_locked_pages

    def match(
        self, tokens: "array[int]", most: int = sys.maxsize, namespace: str = ""
    ) -> RadixNode:
        """Return the node of the longest cached prefix; the root when there is none.

        At most ``most // page_size`` pages match, and ``(len(tokens) - 1) // page_size``: one
        token must be left to compute, or there would be no logits to sample from.
        """
        node, num_pages = self._find(tokens, most, namespace)
        return self._split(node, num_pages)

    def num_matching_pages(
        self, tokens: "array[int]", most: int = sys.maxsize, namespace: str = ""
    ) -> int:
        """How many pages ``match`` would find.  Changes nothing."""
        node, num_pages = self._find(tokens, most, namespace)
        return node.end - len(node.pages) + num_pages

    def insert(
        self, below: RadixNode, tokens: "array[int]", pages: list[int], namespace: str = ""
    ) -> RadixNode:
        """Put whole pages of tokens below a node and return the node where they end.

        Below the root they go into the namespace; any other node is in one already.

        Where the tree already holds an equal page it keeps its own; the caller compares
        ``prefix_pages()`` of the result with what it gave and still owns the others.
        """
        if len(tokens) != len(pages) * self._page_size:
            raise ValueError(
                f"{len(tokens)} tokens are not {len(pages)} pages of {self._page_size} tokens"
            )
        key = tokens.tobytes()
        if below is self.root and namespace and pages:
            below = self._open_namespace(namespace)
        node, num_matched = self._descend(below, key, len(pages))
        held = node.end - len(node.pages) + num_matched - below.end
        node = self._split(node, num_matched)
        if held == len(pages):
            return node
        child = RadixNode(
            parent=node,
            key=key[held * self._page_bytes :],
            pages=pages[held:],
            end=below.end + len(pages),
        )
        node.children[child.key[: self._page_bytes]] = child
        self.num_nodes += 1
        self.num_pages += len(child.pages)
        self._clock += 1
        child.last_used = self._clock
        self._push_if_evictable(child)
        return child

    def lock(self, node: RadixNode) -> None:
        """Keep the node and its ancestors from being evicted."""
        for ancestor in node.path():
            if ancestor.lock_count == 0:
                self.num_locked_pages += len(ancestor.pages)
            ancestor.lock_count += 1

    def unlock(self, node: RadixNode) -> None:
        """Undo one ``lock`` of the node."""
        self._clock += 1
        for ancestor in node.path():
            assert ancestor.lock_count > 0, "a node is unlocked more often than locked"
            ancestor.lock_count -= 1
            ancestor.last_used = self._clock
            if ancestor.lock_count == 0:
                self.num_locked_pages -= len(ancestor.pages)
                self._push_if_evictable(ancestor)

    def evict(self, count: int) -> list[int]:
        """Forget up to ``count`` pages, tails of the least recently used leaves first.

        Returns:
            The page ids, which the caller now owns; fewer than ``count`` when the rest is locked.
        """
        evicted: list[int] = []
        while len(evicted) < count and self._heap:
            entry = heapq.heappop(self._heap)
            if not self._is_current(entry):
                continue
            node = entry[2]
            keep = max(0, len(node.pages) - (count - len(evicted)))
            evicted += node.pages[keep:]
            self.num_pages -= len(node.pages) - keep
            if keep:
                self._truncate(node, keep)
                heapq.heappush(self._heap, entry)
            else:
                self._remove(node)
        return evicted

    def nodes(self) -> Iterator[RadixNode]:
        """Every node but the root, parents before children."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if node is not self.root:
                yield node

    def check(self) -> None:
        """Assert the structure: keys, ends, counters, and that every evictable leaf is found."""
        num_pages = num_nodes = num_locked = 0
        found = {id(entry[2]) for entry in self._heap if self._is_current(entry)}
        for node in self.nodes():
            parent = node.parent
            assert parent is not None, "a node without parent"
            assert parent.children[self._name(node)] is node, "a child under a wrong key"
            key_bytes = len(node.pages) * self._page_bytes if node.pages else _NAMESPACE_KEY_BYTES
            assert len(node.key) == key_bytes, "key and pages differ"
            assert node.pages or (parent is self.root and node.children), "an empty node"
            assert node.end == parent.end + len(node.pages), "a wrong end"
            assert parent is self.root or parent.lock_count >= node.lock_count, "a broken lock path"
            if not node.children and node.lock_count == 0:
                assert id(node) in found, "an evictable leaf is not in the heap"
            num_nodes += 1
            num_pages += len(node.pages)
            num_locked += len(node.pages) if node.lock_count else 0
        counted = (num_nodes, num_pages, num_locked)
        assert counted == (self.num_nodes, self.num_pages, self.num_locked_pages), "wrong counters"

    def _find(self, tokens: "array[int]", most: int, namespace: str) -> tuple[RadixNode, int]:
        """The node of the longest cached prefix, and how many pages of its edge belong to it."""
        root = self.root.children.get(_namespace_key(namespace)) if namespace else self.root
        if root is None:
            return self.root, 0
        node, num_pages = self._descend(root, tokens.tobytes(), self._matchable(tokens, most))
        # A namespace's own node goes with the last of its pages: nobody may hold it alone.
        return (self.root, 0) if node is root else (node, num_pages)

    def _open_namespace(self, namespace: str) -> RadixNode:
        key = _namespace_key(namespace)
        node = self.root.children.get(key)
        if node is None:
            node = RadixNode(parent=self.root, key=key, pages=[], end=0)
            self.root.children[key] = node
            self.num_nodes += 1
        return node

    def _matchable(self, tokens: "array[int]", most: int) -> int:
        return max(0, min(len(tokens) - 1, most)) // self._page_size

    def _name(self, node: RadixNode) -> bytes:
        """What the parent knows a node by: the first page of its edge, or its namespace."""
        return node.key[: self._page_bytes] if node.pages else node.key

    def _descend(self, node: RadixNode, key: bytes, num_pages: int) -> tuple[RadixNode, int]:
        """Follow the first ``num_pages`` of ``key`` below a node.

        Returns:
            The last node reached and how many pages of its own edge are covered.
        """
        start, stop = 0, num_pages * self._page_bytes
        covered = len(node.pages)
        while start < stop and covered == len(node.pages):
            child = node.children.get(key[start : start + self._page_bytes])
            if child is None:
                break
            node = child
            covered = self._num_common_pages(
                child.key, key[start : min(stop, start + len(child.key))]
            )
            start += covered * self._page_bytes
        return node, covered

    def _num_common_pages(self, a: bytes, b: bytes) -> int:
        # Two memory comparisons decide the usual cases; only a real divergence is searched.
        low, high = 1, min(len(a), len(b)) // self._page_bytes
        size = self._page_bytes
        if a[: high * size] == b[: high * size]:
            return high
        while low + 1 < high:
            middle = (low + high) // 2
            if a[low * size : middle * size] == b[low * size : middle * size]:
                low = middle
            else:
                high = middle
        return low

    def _split(self, node: RadixNode, num_pages: int) -> RadixNode:
        """Return a node whose edge ends after ``num_pages`` of this node's edge."""
        if num_pages == len(node.pages):
            return node
        assert node.parent is not None and 0 < num_pages < len(node.pages)
        cut = num_pages * self._page_bytes
        upper = RadixNode(
            parent=node.parent,
            key=node.key[:cut],
            pages=node.pages[:num_pages],
            end=node.end - len(node.pages) + num_pages,
            lock_count=node.lock_count,
            last_used=node.last_used,
        )
        node.parent.children[self._name(upper)] = upper
        node.parent, node.key, node.pages = upper, node.key[cut:], node.pages[num_pages:]
        upper.children[self._name(node)] = node
        self.num_nodes += 1
        return upper

    def _truncate(self, node: RadixNode, num_pages: int) -> None:
        node.end -= len(node.pages) - num_pages
        node.key = node.key[: num_pages * self._page_bytes]
        node.pages = node.pages[:num_pages]

    def _remove(self, node: RadixNode) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[self._name(node)]
        node.parent = None
        self.num_nodes -= 1
        self._push_if_evictable(parent)

    def _is_current(self, entry: tuple[int, int, RadixNode]) -> bool:
        last_used, _, node = entry
        is_leaf = node.parent is not None and not node.children
        return is_leaf and node.lock_count == 0 and node.last_used == last_used

    def _push_if_evictable(self, node: RadixNode) -> None:
        if node.children or node.lock_count or node.parent is None:
            return
        if not node.pages:
            self._remove(node)  # a namespace that has become empty
            return
        self._num_pushes += 1
        heapq.heappush(self._heap, (node.last_used, self._num_pushes, node))
        # A leaf that is used again and again leaves stale entries; without eviction nothing
        # else would ever remove them.
        if len(self._heap) > 2 * self.num_nodes + _HEAP_SLACK:
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapq.heapify(self._heap)


def _namespace_key(namespace: str) -> bytes:
    return hashlib.blake2b(namespace.encode(), digest_size=_NAMESPACE_KEY_BYTES).digest()
