"""PagePool: every id is out once or free once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.scheduler.page_pool import PagePool


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(2, 20), st.randoms())
def test_ids_are_conserved(counts, num_pages, rng):
    pool = PagePool(num_pages)
    taken: list[int] = []
    for count in counts:
        if count <= pool.num_free and rng.random() < 0.6:
            taken += pool.allocate(count)
        else:
            rng.shuffle(taken)
            pool.free(taken[:count])
            del taken[:count]
        assert sorted([*taken, *pool.free_pages()]) == list(range(1, num_pages))
        assert pool.num_free == num_pages - 1 - len(taken)


def test_refuses_more_than_it_has():
    pool = PagePool(4)
    pool.allocate(2)
    with pytest.raises(ValueError, match="asked for 2 pages, 1 are free; evict first"):
        pool.allocate(2)


def test_refuses_double_free():
    pool = PagePool(4)
    (page,) = pool.allocate(1)
    pool.free([page])
    with pytest.raises(ValueError, match=f"page {page} is freed twice"):
        pool.free([page])


@pytest.mark.parametrize("page", [0, -1, 4])
def test_refuses_ids_that_nobody_owns(page):
    with pytest.raises(ValueError, match=rf"page {page} is outside \[1, 4\)"):
        PagePool(4).free([page])


def test_refuses_a_pool_without_pages():
    with pytest.raises(ValueError, match="needs the null page and one more, got num_pages=1"):
        PagePool(1)
