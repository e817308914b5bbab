"""What every checkpoint format looks like to the loader."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt


class TensorReader(Protocol):
    """The tensors of one checkpoint under their Hugging Face names.

    Reading is lazy and may be done from several threads at once.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of every tensor, from the headers alone."""

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """The values of one tensor, float16, bfloat16, float32 or float64.

        The memory is the caller's: never a view of the file.

        Raises:
            WeightLoadError: the bytes cannot be read or are of a type that is no float.
        """
