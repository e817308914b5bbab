"""KVManager: conservation of pages through match, admit, grow, commit and release."""

from collections.abc import Callable

import pytest

from jaxserve.request import Request, SamplingParams
from jaxserve.scheduler.kv_manager import KVManager
from jaxserve.scheduler.sequence import Sequence, make_sequence

SIZE = 4


def make_kv(
    num_pages: int = 11,
    is_caching: bool = True,
    on_evicted: Callable[[float], None] | None = None,
) -> KVManager:
    return KVManager(
        num_pages=num_pages,
        page_size=SIZE,
        num_slots=4,
        pages_per_row=8,
        is_caching=is_caching,
        on_evicted=on_evicted,
    )


def make_seq(*tokens: int, namespace: str = "", **sampling: int) -> Sequence:
    request = Request(
        rid="a",
        prompt_ids=tokens,
        sampling=SamplingParams(seed=0, **sampling),
        arrival_s=0.0,
        cache_namespace=namespace,
    )
    return make_sequence(request, 0, ())


def admit(kv: KVManager, seq: Sequence, budget: int = 100, reserve: int = 0) -> int:
    granted = kv.admit(seq, kv.match(seq), budget, reserve)
    kv.check()
    return granted


def compute(kv: KVManager, seq: Sequence, budget: int = 100) -> None:
    """Admit a chunk, launch it, commit it."""
    seq.num_computed += admit(kv, seq, budget)
    kv.commit(seq, seq.num_computed)
    kv.check()


def test_a_prompt_is_computed_once():
    kv, prompt = make_kv(), range(10)
    first = make_seq(*prompt)
    compute(kv, first)
    assert (kv.num_cached_pages, kv.num_private_pages) == (2, 1)
    second = make_seq(*prompt)
    assert kv.num_cached_tokens(second) == 8
    assert admit(kv, second) == 2
    assert second.pages[:2] == first.pages[:2]
    assert second.pages[2] != first.pages[2]
    assert kv.page_table[second.slot].tolist() == second.pages + [0] * 5


def test_a_prefix_belongs_to_its_namespace():
    kv, prompt = make_kv(), range(9)
    for namespace in ("", "a"):
        seq = make_seq(*prompt, namespace=namespace)
        assert kv.num_cached_tokens(seq) == 0
        compute(kv, seq)
        kv.release(seq)
        assert kv.num_cached_tokens(make_seq(*prompt, namespace=namespace)) == 8
    assert kv.num_cached_pages == 4
    first, second = (make_seq(*prompt, namespace=name) for name in ("", "a"))
    assert kv.next_page(first, kv.match(first)) != kv.next_page(second, kv.match(second))
    kv.flush()
    kv.check()
    assert kv.num_cached_tokens(make_seq(*prompt, namespace="a")) == 0


@pytest.mark.parametrize(("start", "num_cached"), [(0, 0), (4, 0), (5, 4), (9, 8), (12, 8)])
def test_what_a_logprob_needs_is_not_taken_from_the_cache(start, num_cached):
    kv, prompt = make_kv(), range(12)
    seq = make_seq(*prompt)
    compute(kv, seq)
    asking = make_seq(*prompt, prompt_logprobs_start=start)
    prefix = kv.match(asking)
    assert (kv.num_cached_tokens(asking), prefix.end * SIZE) == (num_cached, num_cached)
    assert kv.can_match_more(asking, prefix) == (asking.num_matchable >= num_cached + SIZE < 12)


def test_appended_tokens_get_their_pages():
    kv, seq = make_kv(), make_seq(*range(7))
    compute(kv, seq)
    assert [kv.missing_pages(seq, count) for count in (1, 2, 5, 6)] == [0, 1, 1, 2]
    kv.grow_by(seq, 1)
    assert len(seq.pages) == 2
    kv.grow_by(seq, 6)
    kv.check()
    assert len(seq.pages) == 4


def test_evictions_are_counted_and_timed():
    seconds: list[float] = []
    kv = make_kv(num_pages=5, on_evicted=seconds.append)
    compute(kv, old := make_seq(*[9] * 9))
    kv.release(old)
    assert not seconds
    compute(kv, make_seq(*range(16)))
    assert kv.num_evicted_pages == 2
    (second,) = seconds
    assert 0 < second < 1


def test_a_chunk_takes_pages_for_its_own_tokens_only():
    kv, seq = make_kv(), make_seq(*range(20))
    compute(kv, seq, budget=6)
    assert len(seq.pages) == 2
    assert seq.prefix is not None and seq.prefix.end == 1
    compute(kv, seq, budget=6)
    assert len(seq.pages) == 3
    assert seq.prefix.end == 3


def test_release_keeps_whole_pages_and_never_the_last_token():
    kv, seq = make_kv(), make_seq(*range(7))
    compute(kv, seq)
    seq.tokens.append(7)
    seq.num_computed = 8  # the surplus step after a stop token writes position 7
    kv.release(seq)
    kv.check()
    assert (kv.num_cached_pages, kv.num_evictable_pages, kv.num_private_pages) == (1, 1, 0)
    kv.release(seq)
    kv.check()
    assert kv.num_free_slots == 3
    assert (seq.slot, seq.num_computed, seq.pages, seq.prefix) == (0, 0, [], None)


def test_an_equal_page_is_taken_over_from_the_tree():
    kv = make_kv()
    first, second = make_seq(*range(8)), make_seq(*range(8))
    for seq in (first, second):
        admit(kv, seq)
        seq.num_computed = 8
    assert kv.num_free_pages == 6
    kv.commit(first, 8)
    kv.commit(second, 8)
    kv.check()
    assert first.pages == second.pages
    assert kv.num_free_pages == 8


def test_admission_evicts_what_nobody_uses_but_not_what_matched():
    kv = make_kv(num_pages=5)
    old, shared = make_seq(*[9] * 8), make_seq(*range(8))
    for seq in (old, shared):
        compute(kv, seq)
        kv.release(seq)
    assert kv.num_evictable_pages + kv.num_free_pages == 4
    seq = make_seq(*range(16))
    matched = kv.match(seq).prefix_pages()
    assert len(matched) == 2
    assert admit(kv, seq) == 8
    assert seq.pages[:2] == matched


@pytest.mark.parametrize(
    ("num_tokens", "reserve", "granted"), [(16, 0, 16), (17, 0, 0), (13, 1, 0)]
)
def test_no_room_changes_nothing(num_tokens, reserve, granted):
    kv, seq = make_kv(num_pages=5), make_seq(*range(num_tokens))
    assert admit(kv, seq, reserve=reserve) == granted
    if not granted:
        assert (seq.slot, seq.pages, seq.prefix) == (0, [], None)
        assert (kv.num_free_pages, kv.num_free_slots) == (4, 3)


def test_no_slot_no_admission():
    kv = make_kv()
    assert [admit(kv, make_seq(1)) for _ in range(4)] == [1, 1, 1, 0]


def test_decoding_rows_grow_at_page_boundaries():
    kv, seq = make_kv(), make_seq(*range(7))
    compute(kv, seq)
    assert kv.needing_page([seq]) == []
    seq.num_computed = 8
    assert kv.needing_page([seq]) == [seq]
    kv.grow([seq])
    kv.check()
    assert kv.needing_page([seq]) == []


def test_without_cache_nothing_is_matched_or_kept():
    kv = make_kv(is_caching=False)
    first, second = make_seq(*range(9)), make_seq(*range(9))
    compute(kv, first)
    assert kv.num_cached_tokens(second) == 0
    assert not kv.can_match_more(second, kv.match(second))
    compute(kv, second)
    for seq in (first, second):
        kv.release(seq)
    kv.check()
    assert (kv.num_cached_pages, kv.num_free_pages) == (0, 10)


def test_flush_frees_everything():
    kv, seq = make_kv(), make_seq(*range(9))
    compute(kv, seq)
    kv.release(seq)
    kv.flush()
    kv.check()
    assert kv.num_free_pages == 10
    assert kv.num_cached_tokens(make_seq(*range(9))) == 0


def test_flush_in_use_is_a_bug():
    kv = make_kv()
    admit(kv, make_seq(1))
    with pytest.raises(AssertionError, match="flushed while sequences hold pages"):
        kv.flush()
