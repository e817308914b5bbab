"""The last look at a step's ids before they reach the device.

A kernel reads and writes where it is told to: an id that is out of range would be somebody
else's memory, and wrong tokens or a dead process much later.  Each array is looked at once, for
its largest value (10 µs for 256 rows of 512 pages); which row it was is found out afterwards.
"""

from dataclasses import dataclass

import numpy as np

from jaxserve.batch import StepInputs, TokenMasks
from jaxserve.models import check_page_table


@dataclass(frozen=True, slots=True)
class PageBounds:
    """What ids the pool allows."""

    num_pages: int
    page_size: int

    def check(self, inputs: StepInputs) -> None:
        """Raise ValueError, with row and value, if a step would leave the pool."""
        table, lens, slots = inputs.page_table, inputs.kv_lens, inputs.write_slots
        if _largest(table) >= self.num_pages or _largest(lens) > table.shape[1] * self.page_size:
            check_page_table(table, lens, self.num_pages, self.page_size)
        num_slots = self.num_pages * self.page_size
        if _largest(slots) >= num_slots:
            token = int(np.flatnonzero((slots < 0) | (slots >= num_slots))[0])
            raise ValueError(
                f"write_slots[{token}] is {slots[token]}; allowed is 0 to {num_slots - 1}, the "
                f"tokens of {self.num_pages} pages of {self.page_size}"
            )


def check_masks(masks: TokenMasks, inputs: StepInputs, vocab_size: int) -> None:
    """Raise ValueError if masks are not of the step's rows or not of the vocabulary's width."""
    num_words = -(-vocab_size // 32)
    if masks.bits.shape != (len(masks.rows), num_words) or masks.bits.dtype != np.uint32:
        raise ValueError(
            f"token masks are {masks.bits.dtype}{list(masks.bits.shape)}; {len(masks.rows)} rows "
            f"over {vocab_size} tokens need uint32[{len(masks.rows)}, {num_words}]"
        )
    num_rows = inputs.bucket.num_rows
    if len(masks.rows) and not 0 <= masks.rows.min() <= masks.rows.max() < num_rows:
        raise ValueError(
            f"token masks of rows {masks.rows.tolist()}; the step has rows 0 to {num_rows - 1}"
        )


def _largest(values: np.ndarray) -> int:
    """Of i32 read as u32, so that a negative one is larger than any other."""
    return int(values.view(np.uint32).max(initial=0))
