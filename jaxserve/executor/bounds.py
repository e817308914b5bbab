"""The last look at a step's page ids before they reach the device.

A kernel reads and writes where it is told to: an id that is out of range would be somebody
else's memory, and wrong tokens or a dead process much later.  Each array is looked at once, for
its largest value (10 µs for 256 rows of 512 pages); which row it was is found out afterwards.
"""

from dataclasses import dataclass

import numpy as np

from jaxserve.batch import StepInputs
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


def _largest(values: np.ndarray) -> int:
    """Of i32 read as u32, so that a negative one is larger than any other."""
    return int(values.view(np.uint32).max(initial=0))
