"""Page ids that leave the pool are refused on the host, by row; nothing reaches the device."""

from dataclasses import replace

import numpy as np
import pytest
from step_harness import DECODE, neutral_sampling

from jaxserve.batch import StepInputs
from jaxserve.executor.bounds import PageBounds

BOUNDS = PageBounds(num_pages=10, page_size=16)


def inputs(**changes: np.ndarray) -> StepInputs:
    rows, width = DECODE.num_rows, DECODE.pages_per_row
    table = np.zeros((rows, width), np.int32)
    table[:2, 0] = (1, 9)
    valid = StepInputs(
        bucket=DECODE,
        token_ids=np.zeros(rows, np.int32),
        positions=np.zeros(rows, np.int32),
        write_slots=np.array([16, 159, 0, 0], np.int32),
        page_table=table,
        kv_lens=np.array([1, 16, 0, 0], np.int32),
        q_starts=np.arange(rows + 1, dtype=np.int32),
        row_slots=np.zeros(rows, np.int32),
        sampling=neutral_sampling(DECODE),
    )
    return replace(valid, **changes)


def test_a_step_inside_the_pool_passes() -> None:
    BOUNDS.check(inputs())
    full = np.full(DECODE.num_rows, 16 * DECODE.pages_per_row, np.int32)
    BOUNDS.check(inputs(kv_lens=full))


@pytest.mark.parametrize("page", [10, 2**31 - 1, -1, -(2**31)])
@pytest.mark.parametrize("row", [1, 3])
def test_a_page_outside_is_named(page: int, row: int) -> None:
    step = inputs()
    step.page_table[row, 0] = page
    with pytest.raises(ValueError, match=rf"page_table\[{row}, 0\] is {page} .*allowed is [01] to"):
        BOUNDS.check(step)


@pytest.mark.parametrize("length", [129, -1])
def test_a_length_that_the_table_cannot_hold_is_named(length: int) -> None:
    with pytest.raises(ValueError, match=rf"kv_lens\[2\] is {length}; allowed is 0 to 128"):
        BOUNDS.check(inputs(kv_lens=np.array([1, 1, length, 0], np.int32)))


@pytest.mark.parametrize("slot", [160, -1])
def test_a_write_outside_is_named(slot: int) -> None:
    message = rf"write_slots\[3\] is {slot}; allowed is 0 to 159, the tokens of 10 pages of 16"
    with pytest.raises(ValueError, match=message):
        BOUNDS.check(inputs(write_slots=np.array([0, 0, 0, slot], np.int32)))
