"""RadixTree against an oracle: a dict of every cached prefix."""

import random
import time
from array import array

import pytest

from jaxserve.scheduler.radix_tree import RadixTree


class Oracle:
    """Every cached prefix of whole pages → its last page id."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.pages: dict[tuple[int, ...], int] = {}

    def match(self, tokens: list[int], limit: int) -> list[int]:
        """The pages of the longest cached prefix of at most ``limit`` pages."""
        found: list[int] = []
        while len(found) < limit:
            page = self.pages.get(tuple(tokens[: (len(found) + 1) * self.page_size]))
            if page is None:
                break
            found.append(page)
        return found

    def insert(self, tokens: list[int], pages: list[int]) -> None:
        """Add every prefix that is not there yet."""
        for index, page in enumerate(pages):
            self.pages.setdefault(tuple(tokens[: (index + 1) * self.page_size]), page)

    def drop(self, pages: list[int]) -> None:
        """Remove pages and see that no longer prefix of theirs stays."""
        gone = set(pages)
        self.pages = {key: page for key, page in self.pages.items() if page not in gone}
        for key in self.pages:
            assert len(key) == self.page_size or key[: -self.page_size] in self.pages


def draw_tokens(rng: random.Random, longest: int) -> list[int]:
    return [rng.randrange(2) for _ in range(rng.randint(1, longest))]


@pytest.mark.parametrize("page_size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_a_dict_of_all_prefixes(page_size, seed):
    rng = random.Random(seed)
    tree = RadixTree(page_size)
    oracles = {name: Oracle(page_size) for name in ("", "a", "b")[: 1 + seed % 3]}
    next_page, locked = 1, []
    for _ in range(300):
        name = rng.choice(list(oracles))
        oracle = oracles[name]
        most = rng.choice([100, 100, rng.randint(0, 8 * page_size)])
        tokens = draw_tokens(rng, 8 * page_size)
        count = len(tokens) // page_size
        action = rng.random()
        if action < 0.4:
            whole = tokens[: count * page_size]
            pages = list(range(next_page, next_page + count))
            next_page += count
            node = tree.insert(tree.root, array("i", whole), pages, name)
            oracle.insert(whole, pages)
            assert node.prefix_pages() == oracle.match(whole, count)
        elif action < 0.7:
            node = tree.match(array("i", tokens), most, name)
            expected = oracle.match(tokens, min(len(tokens) - 1, most) // page_size)
            assert node.prefix_pages() == expected
            assert node.end == len(expected)
            tree.lock(node)
            locked.append((node, expected))
        elif action < 0.85 and locked:
            tree.unlock(locked.pop(rng.randrange(len(locked)))[0])
        else:
            before = tree.num_evictable_pages
            wanted = rng.randint(1, 6)
            gone = tree.evict(wanted)
            assert len(gone) == min(wanted, before)
            for each in oracles.values():
                each.drop(gone)
        tree.check()
        assert tree.num_pages == sum(len(each.pages) for each in oracles.values())
        assert tree.num_matching_pages(array("i", tokens), most, name) == len(
            oracle.match(tokens, min(len(tokens) - 1, most) // page_size)
        )
        for node, pages in locked:
            assert node.prefix_pages() == pages
    for node, _ in locked:
        tree.unlock(node)
    tree.evict(tree.num_pages)
    tree.check()
    assert (tree.num_nodes, tree.root.children) == (0, {})


def test_a_namespace_that_held_nothing_leaves_nothing():
    tree = RadixTree(4)
    for index in range(100):
        assert tree.match(array("i", range(9)), namespace=f"user {index}") is tree.root
    assert (tree.num_nodes, tree.root.children) == (0, {})


@pytest.mark.parametrize(("num_tokens", "num_pages"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
def test_one_token_is_always_left_to_compute(num_tokens, num_pages):
    tree = RadixTree(4)
    tree.insert(tree.root, array("i", range(12)), [1, 2, 3])
    assert tree.match(array("i", range(num_tokens))).end == num_pages


def test_a_split_keeps_the_prefix_of_a_held_node():
    tree = RadixTree(2)
    node = tree.insert(tree.root, array("i", [1, 2, 3, 4, 5, 6]), [7, 8, 9])
    tree.lock(node)
    upper = tree.match(array("i", [1, 2, 3, 4, 0]))
    assert upper.prefix_pages() == [7, 8]
    assert node.prefix_pages() == [7, 8, 9]
    assert tree.evict(3) == []
    tree.unlock(node)
    assert sorted(tree.evict(3)) == [7, 8, 9]


def test_evicts_the_least_recently_used_leaf_from_its_tail():
    tree = RadixTree(1)
    nodes = [tree.insert(tree.root, array("i", [t, t, t]), [t, t + 1, t + 2]) for t in (10, 20)]
    tree.lock(nodes[0])
    tree.unlock(nodes[0])
    assert tree.evict(2) == [21, 22]
    assert tree.evict(2) == [20, 12]


def test_a_node_locked_twice_needs_two_unlocks():
    tree = RadixTree(1)
    node = tree.insert(tree.root, array("i", [1]), [5])
    tree.lock(node)
    tree.lock(node)
    tree.unlock(node)
    assert tree.num_evictable_pages == 0
    tree.unlock(node)
    assert tree.evict(1) == [5]


def test_insert_needs_whole_pages():
    tree = RadixTree(4)
    with pytest.raises(ValueError, match="3 tokens are not 1 pages of 4 tokens"):
        tree.insert(tree.root, array("i", [1, 2, 3]), [1])


def test_use_without_eviction_keeps_the_heap_small():
    tree = RadixTree(1)
    node = tree.insert(tree.root, array("i", [1]), [1])
    for _ in range(10_000):
        tree.lock(node)
        tree.unlock(node)
    assert len(tree._heap) < 200
    tree.check()


def test_eviction_among_many_nodes_does_not_walk_them():
    tree = RadixTree(1)
    for token in range(20_000):
        tree.insert(tree.root, array("i", [token]), [token])
    start_s = time.perf_counter()
    for _ in range(1_000):
        tree.evict(1)
    assert (time.perf_counter() - start_s) / 1_000 < 1e-3
