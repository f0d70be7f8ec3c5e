"""Block sizes, scratch space of threads, and the prefetch distance.

Prefetch distance and size are limited by the number of cache misses that a core can have in flight.
"""

from math import gcd
from typing import Any

import numpy as np

from .._typing import Array
from ..kernels.cpu._intrinsics import LANES
from . import threads

LINE = 64
_SERIAL_BYTES = 3 << 16  # below this, sharing costs more than it saves: 2 or 3 us
_SMALLEST_BLOCK, _LARGEST_BLOCK = 1 << 15, 1 << 19  # bytes
_BLOCKS_EACH = 64  # blocks of a thread, at most, unless they are of the largest size; more than `threads.LONG`
# Gradients up to this size are still in the cache of the core, so they are not prefetched.  With 512 KB of cache, an
# update with 1.2 MB of them (9,066 x 32, SparseAdam) takes 960 us without prefetch, 450 with.
_CACHED_BYTES = 1 << 18
_NEVER = 1 << 40  # a distance longer than any batch: no prefetch
_LINES_AHEAD = 80
_MAX_LINES = 16  # cache lines to prefetch of one row; the hardware prefetcher fetches the rest of a longer row


def blocks_of(count: int, bytes_each: float) -> tuple[int, int]:
    """Return (number of blocks, items per block); results do not depend on them."""
    if count * bytes_each < _SERIAL_BYTES or (members := threads.num_threads()) == 1:
        return 1, max(count, 1)
    block = count * bytes_each / (_BLOCKS_EACH * members)
    items = max(1, int(min(max(block, _SMALLEST_BLOCK), _LARGEST_BLOCK) / bytes_each))
    return -(-count // items), items


def scratch(num_blocks: int, width: int, dtype: Any) -> Array:
    """Return zeros (threads, width): a row of scratch space for each thread.

    They do not start on a cache line, which would take 3 us, as long as 50 rows.
    """
    return np.zeros((1 if num_blocks == 1 else threads.num_threads(), width), dtype)


def padded(dim: int) -> int:
    """Return `dim`, rounded up to a multiple of LANES."""
    return -(-dim // LANES) * LANES


def lines_of(*arrays: Array) -> int:
    """Return the number of cache lines to prefetch of a row.

    A row that does not start on a cache line needs one line more: NumPy's large arrays start 16 bytes
    after a line, and an SGD step without the prefetch of this fifth line takes 3 times as long.
    """
    lines = 0
    for each in arrays:
        row_bytes = each.shape[1] * each.itemsize
        grain = gcd(LINE, each.__array_interface__["data"][0], each.strides[0])  # rows start at multiples of it
        lines = max(lines, -(-(LINE - grain + row_bytes) // LINE))
    return min(lines, _MAX_LINES)


def fetch_ahead(
    grads: list[Array], weight: Array | None = None, lines: int = 0, slots: int = 0
) -> tuple[int, int, int, int, int]:
    """Return the fields of `kernels.cpu.segment.Fetch`: prefetch distances in rows, and cache lines per row.

    A core has a limited number of cache misses in flight.  With 12 lines a row (SparseAdam, dim 64) a distance
    of 6 rows is best, and 16 rows cost 20 %; with 4 lines (SGD) 16 rows are best, and 6 rows cost 25 %.
    """
    state_lines, grad_lines = 0, lines_of(*grads)
    if weight is not None:
        state_lines = slots * min(-(-weight.shape[1] * weight.itemsize // LINE), _MAX_LINES)
    rows = _LINES_AHEAD // max(lines + state_lines, 1)
    ahead = min(max(_LINES_AHEAD // grad_lines, 2), 16)
    if grads[0].nbytes <= _CACHED_BYTES and (len(grads) == 1 or sum(each.nbytes for each in grads) <= _CACHED_BYTES):
        ahead = _NEVER
    return min(max(rows, 2), 16), lines, state_lines, ahead, grad_lines
