"""Ids of a batch, sorted into rows, segments and hot segments."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._typing import Array
from ..kernels.cpu._sharing import SLOTS
from ..kernels.cpu.segment import CHUNK
from ..kernels.cpu.sort import find_hot, first_outside, sort_ids
from . import few, threads
from .inputs import in_range
from .views import freeze, read_only

_INSERTION = 48  # up to this many ids, insertion sort is faster than radix sort
_WIDE = 4096
_SERIAL = 65536  # below this many ids, what a thread has counted and written is nearer to itself: 32,768 take as long
_BLOCK = 32768  # smallest block: each block reads the digit counts of all blocks
_KEPT, _LARGEST_KEPT = 3, 1 << 21  # buffers kept for the next sort, and the largest number of ids of one
_buffers: list[Array] = []
_NO_HOT = (np.zeros(0, np.int64), np.zeros(1, np.int64))
_CHANGED = (
    "were changed by another thread while they were sorted, and some were out of range; leave them as they are until "
    "the call returns, or pass a copy"
)


class Sorted:
    """The rows of a batch: unique, increasing, each with its segment of occurrences.

    Attributes
    ----------
    rows : array (k,), dtype of the ids
    order : array (n,)
        Occurrences by row; occurrences of one row are in the order of the batch.
    offsets : array (k + 1,)
        ``order[offsets[j]:offsets[j + 1]]`` is the segment of ``rows[j]``.
    hot : tuple of two arrays
        Segments longer than a chunk, and where the chunks of each start.
    counts : list of int
        Occurrences of each lookup.
    """

    __slots__ = ("buffers", "counts", "hot", "offsets", "order", "rows")

    def __init__(self, rows: Array, order: Array, offsets: Array, hot: Any, counts: list[int]) -> None:
        self.rows, self.order, self.offsets, self.hot, self.counts = rows, order, offsets, hot, counts
        self.buffers: list[Array] = []  # memory for the next sort; empty for a plan

    def room(self, dtype: Any) -> Array:
        """Return memory for one number per id: the buffer of the sorted keys, which is free after the sort."""
        if not self.buffers:
            return np.empty(len(self.order), dtype)
        room: Array = self.buffers[0].view(dtype)
        return room[: len(self.order)]

    def recycle(self) -> None:
        """Give the buffers to the next sort; this object must not be used afterwards.

        Fresh memory costs a page fault per 4 KiB: 358 of them in an update of 100,000 ids.
        """
        if self.buffers and len(self.order) <= _LARGEST_KEPT:
            _buffers.extend(self.buffers[: max(_KEPT - len(_buffers), 0)])
        self.buffers = []


def sort(
    lookups: Sequence[tuple[Array, tuple[int, ...]]],
    names: Sequence[str],
    num_rows: int,
    *,
    given: Sequence[Any] = (),
    kept: bool = False,
    bag_offsets: Array | None = None,
    labels: Array | None = None,
) -> Sorted:
    """Return the `Sorted` rows of all lookups together; `kept`: for a plan, whose buffers are not reused.

    With `bag_offsets`, `order` holds the bag of each occurrence in place of its position.  With `labels` (n,), int64,
    occurrences of a row are in the order of their labels (of their positions where labels are equal), so that sums of
    gradients do not depend on the order of arrival.
    """
    flat, counts = lookups[0][0], [len(lookups[0][0])] if len(lookups) == 1 else []
    if not counts:
        flat, counts = joined([each for each, _ in lookups]), [len(each) for each, _ in lookups]
    quick = few.sort_few(flat, num_rows, bag_offsets) if labels is None else None
    if quick is not None:
        return Sorted(*quick, _NO_HOT, counts)
    n, by_label = len(flat), None if labels is None else _by_label(labels)
    entries = n if bag_offsets is None or by_label is not None else len(bag_offsets) - 1
    shift, bits = max(entries - 1, 0).bit_length(), (num_rows - 1).bit_length()
    if shift + bits > 64 or n >= 2**31:
        found = _sort_wide(flat, num_rows, bag_offsets, by_label, counts)
    else:
        found = _sort(flat, num_rows, bag_offsets, by_label, (shift, bits), counts)
    if found is None:
        for (each, shape), name in zip(lookups, names, strict=True):
            in_range(each, num_rows, name, shape)
        raise IndexError(f"{' and '.join(names)} {_CHANGED}")
    if kept:
        found.buffers = []
    return found


def fits(rows: Sorted, num_rows: int) -> None:
    """Refuse a plan with a row that a table of `num_rows` rows does not have."""
    if len(rows.rows) and rows.rows[-1] >= num_rows:
        raise IndexError(
            f"plan holds id {rows.rows[-1]}, expected 0 <= id < {num_rows} (num_rows); plan for this table"
        )


def part(rows: Sorted, name: str) -> Array:
    """Return `rows`, `order` or `offsets` for the caller: a copy where the memory is used again."""
    found: Array = getattr(rows, name)
    return found.copy() if rows.buffers else found


def shown(rows: Sorted) -> str:
    """Return the words of a plan's repr about its rows."""
    return f"{len(rows.order)} ids, {len(rows.rows)} unique rows"


def check_ids(call: Any, flat: Array, num_rows: int, names: Any, shapes: Any) -> None:
    """Check the range of the ids of one lookup."""
    if first_outside(flat, num_rows) >= 0:
        in_range(flat, num_rows, names[0], shapes[0])


def check_bags(call: Any, place: Any, num_rows: int) -> None:
    """Check the range of the ids of bags."""
    in_range(place.ids, num_rows, "bags.ids", place.ids.shape)


def of_rows(rows: Array) -> Sorted:
    """Return the `Sorted` rows of unique, increasing rows, with one occurrence each."""
    index = np.int32 if len(rows) < 2**31 else np.int64
    numbers = np.arange(len(rows) + 1, dtype=index)
    numbers.flags.writeable = False
    return Sorted(rows, numbers[:-1], numbers, _NO_HOT, [len(rows)])


def joined(flats: list[Array]) -> Array:
    """Return the ids of several lookups as one array."""
    return read_only(np.concatenate([*flats, np.zeros(0, np.int32)]))


def cut(offsets: Array, hot: int) -> tuple[Array, Array]:
    """Return the `hot` segments that are longer than a chunk, and the index of the first chunk of each."""
    if not hot:
        return _NO_HOT
    segments, starts = np.empty(hot, np.int64), np.zeros(hot + 1, np.int64)
    find_hot(offsets, CHUNK, segments)
    np.cumsum(-(-(offsets[segments + 1] - offsets[segments]) // CHUNK), out=starts[1:])
    return segments, starts


def _sort(
    ids: Array,
    num_rows: int,
    bag_offsets: Array | None,
    by_label: Array | None,
    width_of: tuple[int, int],
    counts: list[int],
) -> Sorted | None:
    """Return the sorted ids, by radix sort; None if an id is out of range.  `width_of`: bits of an entry, of an id."""
    n, (shift, bits) = len(ids), width_of
    buffers = _workspace(n + 1)
    keys, other, rows = buffers[0][: n + 1], buffers[1][: n + 1], buffers[2][: n + 1]  # `keys`: the sorted ones
    digits, width = _digits(n, bits)
    blocks = 1 if n < _SERIAL or not digits else min(2 * threads.num_threads(), n // _BLOCK)
    tallies, places = np.zeros((2, blocks, 1 << width), np.int32)
    phases, found = np.zeros((2 + 2 * digits, SLOTS), np.int64), np.zeros((blocks, 3), np.int64)
    rows, room = rows.view(ids.dtype), other.view(np.int32)
    order, offsets = room[:n], room[n : 2 * n + 1]
    first, second = (keys, other) if digits % 2 == 0 else (other, keys)
    arguments = (-(-n // blocks), ids, num_rows, bag_offsets, by_label, (shift, digits, width), first[:n], second[:n])
    written = (tallies, places, phases, rows, order, offsets, CHUNK, found)
    threads.run(sort_ids, blocks, *arguments, *written, wake=blocks)
    bad, k, hot = (found[0] if blocks == 1 else found.sum(axis=0)).tolist()
    if bad:
        return None
    rows, offsets = rows[:k], offsets[: k + 1]
    rows.flags.writeable = order.flags.writeable = offsets.flags.writeable = False
    result = Sorted(rows, order, offsets, cut(offsets, hot), counts)
    result.buffers = buffers
    return result


def _by_label(labels: Array) -> Array | None:
    """Return the positions sorted by label, or None if they are sorted already."""
    if len(labels) == 0 or (labels[1:] >= labels[:-1]).all():
        return None
    lowest, highest = int(labels.min()), int(labels.max())
    if highest - lowest >= 2**62:  # a difference may overflow int64
        return read_only(np.argsort(labels, kind="stable").astype(np.int32 if len(labels) < 2**31 else np.int64))
    flat = read_only(labels - lowest)
    found: Array = sort([(flat, flat.shape)], ("labels",), highest - lowest + 1, kept=True).order
    return found


def _workspace(n: int) -> list[Array]:
    """Return three buffers of n keys, from an earlier sort if they are large enough."""
    found = []
    for _ in range(3):
        try:
            buffer = _buffers.pop()
        except IndexError:
            buffer = np.empty(n, np.uint64)
        found.append(buffer if len(buffer) >= n else np.empty(n, np.uint64))
    return found


def _digits(n: int, bits: int) -> tuple[int, int]:
    """Return (number of digits, bits of a digit) of the radix sort; no digits for insertion sort."""
    if n <= _INSERTION:
        return 0, 0
    widest = 11 if n > _WIDE else 8  # 2**11 counters fill the L1 cache
    digits = -(-bits // widest)
    return digits, -(-bits // max(digits, 1))


def _sort_wide(
    ids: Array, num_rows: int, bag_offsets: Array | None, by_label: Array | None, counts: list[int]
) -> Sorted | None:
    """Return the sorted ids where an id and its entry in `order` do not fit into 64 bits; None if out of range."""
    ids = ids.copy()  # another thread cannot change the copy between the check and the use
    if first_outside(ids, num_rows) >= 0:
        return None
    index = np.dtype(np.int32) if len(ids) < 2**31 else np.dtype(np.int64)
    order = np.argsort(ids if by_label is None else ids[by_label], kind="stable").astype(index)
    order = order if by_label is None else by_label[order].astype(index)
    rows, starts = np.unique(ids[order], return_index=True)
    offsets = np.append(starts, len(ids)).astype(index)
    hot = int((np.diff(offsets) > CHUNK).sum())
    if bag_offsets is not None:
        order = np.repeat(np.arange(len(bag_offsets) - 1, dtype=index), np.diff(bag_offsets))[order]
    return Sorted(freeze(rows), freeze(order), freeze(offsets), cut(offsets, hot), counts)
