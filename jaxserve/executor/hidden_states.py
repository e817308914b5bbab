"""Hidden states that requests asked for, on their way from a step to the host."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from jaxserve.batch import MAX_PROMPT_BLOCK


@dataclass(frozen=True, slots=True)
class HiddenRows:
    """Rows of a step's hidden states.

    ``rows`` None: they are the first ``count`` of all arrays, one after the other; else there is
    one array, the whole step's, and these are its rows that are wanted.
    """

    arrays: tuple[jax.Array, ...]  # [N, D] each
    count: int
    rows: np.ndarray | None = None  # i32[count]

    def fetch(self) -> np.ndarray:
        """f32[count, D]; blocks until the step has run."""
        arrays = [np.asarray(array) for array in self.arrays]
        if self.rows is not None:
            found = arrays[0][self.rows]
        else:
            found = np.concatenate(arrays)[: self.count]
        return found.astype(np.float32)


def select(
    hidden: jax.Array, tokens: np.ndarray, take: Callable[[jax.Array, np.ndarray], jax.Array] | None
) -> HiddenRows:
    """The states of some of a step's tokens, without waiting for the step.

    Args:
        hidden: [T, D].
        tokens: i32[n], n > 0; rows of ``hidden``.
        take: gathers the rows i32[MAX_PROMPT_BLOCK] of an array; None where the whole is small.
    """
    count = len(tokens)
    if take is None or 2 * count > hidden.shape[0]:  # few rows are left out
        return HiddenRows((hidden,), count, tokens)
    padded = np.zeros(-(-count // MAX_PROMPT_BLOCK) * MAX_PROMPT_BLOCK, np.int32)
    padded[:count] = tokens
    blocks = np.split(padded, len(padded) // MAX_PROMPT_BLOCK)
    return HiddenRows(tuple(take(hidden, block) for block in blocks), count)
