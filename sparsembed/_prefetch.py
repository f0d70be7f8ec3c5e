"""How far ahead kernels ask for memory, and how much: counted in cache lines, which cores track a limited number of."""

from math import gcd

from ._arrays import Array

LINE = 64
_CACHED_BYTES = 1 << 21  # gradients up to this size are left in the cache by whoever made them
_NEVER = 1 << 40  # further ahead than any batch is long
_LINES_AHEAD = 80
_MAX_LINES = 16  # cache lines to prefetch of one row; hardware follows longer ones by itself


def lines_of(*arrays: Array) -> int:
    """Cache lines to prefetch of a row, from its address on.

    A row that does not start on a line reaches into one more: NumPy's large arrays start 16 bytes
    behind a line, and an SGD step whose gradients miss their fifth line takes 3 times as long.
    """
    lines = 0
    for each in arrays:
        row_bytes = each.shape[1] * each.itemsize
        grain = gcd(LINE, each.__array_interface__["data"][0], each.strides[0])  # rows start at multiples of it
        lines = max(lines, -(-(LINE - grain + row_bytes) // LINE))
    return min(lines, _MAX_LINES)


def fetch_ahead(grads: list[Array], weight: Array | None = None, slots: int = 0) -> tuple[int, int, int, int, int]:
    """Return what to prefetch: table rows ahead, lines of one and of its state; gradient rows ahead, lines of one.

    Cores track a limited number of cache lines: with 12 lines a row (SparseAdam, dim 64) 6 rows
    ahead are best and 16 cost 20 %; with 4 (SGD) 16 are best and 6 cost 25 %.
    """
    lines, state_lines, grad_lines = 0, 0, lines_of(*grads)
    if weight is not None:
        lines = lines_of(weight)
        state_lines = slots * min(-(-weight.shape[1] * weight.itemsize // LINE), _MAX_LINES)
    rows = _LINES_AHEAD // max(lines + state_lines, 1)
    ahead = min(max(_LINES_AHEAD // grad_lines, 2), 16)
    if sum(each.nbytes for each in grads) <= _CACHED_BYTES:
        ahead = _NEVER
    return min(max(rows, 2), 16), lines, state_lines, ahead, grad_lines
