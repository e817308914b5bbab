"""Ladders: the smallest shape that fits, and never too many."""

import itertools

import pytest

from jaxserve.batch import Bucket, Mode
from jaxserve.scheduler.buckets import MAX_BUCKETS, Buckets, make_buckets


def small() -> Buckets:
    return Buckets(
        extend_tokens=(32, 128), extend_rows=4, decode_rows=(1, 2, 8), pages_per_row=(4, 16)
    )


def test_choice_is_the_smallest_that_holds_the_step():
    buckets = small()
    for tokens, rows, pages in itertools.product(range(1, 129), range(1, 5), range(1, 17)):
        chosen = buckets.choose(Mode.EXTEND, num_tokens=tokens, num_rows=rows, num_pages=pages)
        fitting = [
            bucket
            for bucket in buckets.all()
            if bucket.mode is Mode.EXTEND
            and bucket.num_tokens >= tokens
            and bucket.pages_per_row >= pages
        ]
        assert chosen == min(fitting, key=lambda b: (b.num_tokens, b.pages_per_row))
    for rows, pages in itertools.product(range(1, 9), range(1, 17)):
        chosen = buckets.choose(Mode.DECODE, num_tokens=rows, num_rows=rows, num_pages=pages)
        assert chosen in buckets.all()
        assert chosen.num_rows == chosen.num_tokens == min(r for r in (1, 2, 8) if r >= rows)


def test_all_is_every_shape_once_the_largest_first():
    shapes = small().all()
    assert len(shapes) == len(set(shapes)) == len(small()) == 10
    assert shapes[0] == Bucket(Mode.EXTEND, 128, 4, 16)
    assert shapes[-1] == Bucket(Mode.DECODE, 1, 1, 4)


@pytest.mark.parametrize(
    ("mode", "tokens", "rows", "pages", "message"),
    [
        (Mode.EXTEND, 129, 1, 1, "129 extend tokens exceeds the largest bucket, 128"),
        (Mode.EXTEND, 1, 5, 1, "5 extend rows exceeds the largest bucket, 4"),
        (Mode.DECODE, 9, 9, 1, "9 decode rows exceeds the largest bucket, 8"),
        (Mode.DECODE, 1, 1, 17, "17 pages per row exceeds the largest bucket, 16"),
    ],
)
def test_a_step_that_fits_nowhere_is_refused(mode, tokens, rows, pages, message):
    with pytest.raises(ValueError, match=message):
        small().choose(mode, num_tokens=tokens, num_rows=rows, num_pages=pages)


@pytest.mark.parametrize("chunk", [16, 500, 512, 8192, 131072])
@pytest.mark.parametrize("max_running", [1, 2, 16, 24, 64, 256, 1000])
@pytest.mark.parametrize("widths", [(), (16,), (16, 64), (16, 64, 256)])
def test_default_ladders_are_short_and_reach_the_limits(chunk, max_running, widths):
    buckets = make_buckets(
        chunked_prefill_size=chunk,
        max_running_requests=max_running,
        prefill_max_requests=min(8, max_running),
        max_pages_per_row=512,
        pages_per_row=widths,
    )
    assert len(buckets.all()) <= MAX_BUCKETS
    assert buckets.max_extend_tokens == chunk
    assert buckets.max_decode_rows == max_running
    assert buckets.pages_per_row == (*widths, 512)
    assert buckets.decode_rows[0] == 1


def test_given_ladders_are_kept_and_widths_beyond_the_maximum_dropped():
    buckets = make_buckets(
        chunked_prefill_size=512,
        max_running_requests=12,
        prefill_max_requests=4,
        max_pages_per_row=20,
        pages_per_row=(16, 64),
        extend_tokens=(64, 256),
        decode_rows=(4,),
    )
    assert buckets.extend_tokens == (64, 256, 512)
    assert buckets.decode_rows == (4, 12)
    assert buckets.pages_per_row == (16, 20)


def test_too_many_buckets_are_refused():
    with pytest.raises(ValueError, match=r"66 buckets: \(2 extend .* 3 .*shorten a ladder"):
        Buckets(
            extend_tokens=range(1, 3),
            extend_rows=1,
            decode_rows=range(1, 21),
            pages_per_row=(1, 2, 3),
        )


@pytest.mark.parametrize("ladder", [(), (0, 4)])
def test_an_empty_or_zero_ladder_is_refused(ladder):
    with pytest.raises(ValueError, match="decode_rows must be one or more numbers of at least 1"):
        Buckets(extend_tokens=(1,), extend_rows=1, decode_rows=ladder, pages_per_row=(1,))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((129, 4, 8), "129 extend tokens, the largest bucket has 128"),
        ((128, 5, 8), "5 extend rows, the largest bucket has 4"),
        ((128, 4, 9), "9 decode rows, the largest bucket has 8; extend its ladder"),
    ],
)
def test_limits_beyond_the_ladders_are_refused(limits, message):
    tokens, extend_rows, decode_rows = limits
    with pytest.raises(ValueError, match=message):
        small().require(extend_tokens=tokens, extend_rows=extend_rows, decode_rows=decode_rows)
