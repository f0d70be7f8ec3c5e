"""How rows are split into lanes, and the number of threads of a kernel."""

from typing import Any, NamedTuple

import numpy as np

from ..kernels.cuda import segment
from .array import DeviceArray

THREADS = 256
_LANE_BYTES = 16


class Lanes(NamedTuple):
    """Groups of ``2**shift`` threads share a row; `zero` holds as many numbers as one thread moves at once."""

    zero: tuple[Any, ...]
    shift: np.int32

    @property
    def groups(self) -> int:
        """Groups in a block."""
        return THREADS >> int(self.shift)

    @property
    def block(self) -> int:
        """Threads of a block when the whole block sums one row."""
        return max(32, segment.SLICES << int(self.shift))


def lanes_of(dim: int, dtype: Any, *arrays: DeviceArray | None) -> Lanes:
    """Return the lanes of rows of `dim` numbers: 16 bytes a thread if the alignment of all arrays allows that."""
    dtype = np.dtype(dtype)
    given = [each for each in arrays if each is not None]
    width = max(_LANE_BYTES // min(each.dtype.itemsize for each in given), 1)
    for each in given:
        stride = each.stride if len(each.shape) > 1 else width
        if dim % width or each.pointer % _LANE_BYTES or stride * each.dtype.itemsize % _LANE_BYTES:
            width = 1
    shift = min((-(-dim // width) - 1).bit_length(), 5)
    return Lanes((dtype.type(0),) * width, np.int32(shift))
