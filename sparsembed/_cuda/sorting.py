"""Ids of a batch, sorted and checked on a GPU."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..kernels.cuda import segment
from ..kernels.cuda import sort as kernels
from . import blocks as cut
from . import errors
from .array import DeviceArray
from .call import Call, begin, end, here, lent, make, queue_of
from .inputs import few_enough


def note_ids(queue: Any, ids: DeviceArray, num_rows: int, status: DeviceArray, call: int) -> None:
    """Note in `status` whether an id is out of range, and on the record of the queue."""
    n = ids.size
    if n:
        blocks = queue.blocks(n, cut.THREADS)
        queue.launch(kernels.first_outside, blocks, cut.THREADS, ids, n, num_rows, status, queue.record, call)


def note_offsets(queue: Any, offsets: DeviceArray, n: int, status: DeviceArray, call: int) -> None:
    """Note in `status` whether offsets do not make bags of n ids."""
    bags = len(offsets) - 1
    blocks = queue.blocks(bags + 1, cut.THREADS)
    queue.launch(kernels.bad_offsets, blocks, cut.THREADS, offsets, bags, n, status, queue.record, call)


class Batch(NamedTuple):
    """Sorted ids on the device; only the device knows the number k of rows."""

    rows: DeviceArray
    order: DeviceArray
    offsets: DeviceArray
    found: DeviceArray  # rows, hot segments, chunks
    hot: DeviceArray
    hot_partials: DeviceArray
    chunks: DeviceArray
    n: int


def plan(
    queue: Any, ids: DeviceArray, num_rows: int, bag_offsets: DeviceArray | None = None, kind: Any = None
) -> Batch:
    """Return the sorted ids (n,), which `check_ids` has seen; `order` holds bags if `bag_offsets` is given."""
    n, index = ids.size, np.dtype(np.int32)
    kind = index if num_rows <= 2**31 else np.dtype(np.int64)
    turns = range(0, max((num_rows - 1).bit_length(), 1), 8)
    tiles, some = -(-n // kernels.TILE), (n // segment.SHORT + 1,)
    kept = (((n,), ids.dtype), ((n + 1,), index), ((n,), index), ((3,), index))
    rows, offsets, order, found, hot, hot_partials, chunks = queue.several(
        *kept, (some, index), (some, index), ((2 * n // segment.CHUNK + 2, 2), index)
    )
    if n == 0:
        return Batch(rows, order, offsets, queue.filled((3,), index, 0), hot, hot_partials, chunks, 0)
    first, second, other, counts, totals, heads = queue.several(
        ((n,), kind), ((n,), kind), ((n,), index), ((kernels.DIGITS, tiles), index), ((kernels.DIGITS,), index),
        ((tiles,), index),
    )  # fmt: skip
    keys, labels = ids, None
    bags = 0 if bag_offsets is None else len(bag_offsets) - 1
    scanning = min(kernels.THREADS, -(-tiles // 32) * 32)
    for turn, low in enumerate(turns):
        last = (len(turns) - 1 - turn) % 2 == 0  # buffers alternate; the last turn must write to `first`, `order`
        to_keys, to_labels = (first, order) if last else (second, other)
        queue.launch(kernels.count_digits, tiles, kernels.THREADS, keys, n, low, counts, tiles)
        queue.launch(kernels.place_digits, kernels.DIGITS, scanning, counts, tiles, totals)
        moved = (keys, labels, n, low, counts, totals, tiles, bag_offsets if turn == 0 else None, bags)
        queue.launch(kernels.move_keys, tiles, kernels.THREADS, *moved, to_keys, to_labels)
        keys, labels = to_keys, to_labels
    queue.launch(kernels.count_heads, tiles, kernels.THREADS, keys, n, heads)
    queue.launch(kernels.place_heads, 1, scanning, heads, tiles, found)
    queue.launch(kernels.write_segments, tiles, kernels.THREADS, keys, n, heads, rows, offsets)
    blocks = queue.blocks(n, cut.THREADS)
    queue.launch(kernels.find_hot, blocks, cut.THREADS, offsets, found, hot, hot_partials, chunks)
    return Batch(rows, order, offsets, found, hot, hot_partials, chunks, n)


def one_each(queue: Any, batch: Batch) -> Batch:
    """Return a batch of the same rows with one gradient each, in the order of the rows."""
    numbers, found = queue.several(((batch.n + 1,), np.int32), ((3,), np.int32))
    queue.launch(
        kernels.count_up, queue.blocks(batch.n + 1, cut.THREADS), cut.THREADS, numbers, batch.n + 1, batch.found, found
    )
    return batch._replace(order=numbers, offsets=numbers, found=found)


class Sorted:
    """The rows of a batch; only the GPU knows the number of rows, and whether all ids were in range.

    Attributes
    ----------
    batch : Batch
    flat : DeviceArray (n,)
        The ids.
    caller, queue, status, noted
        Of the call that sorted the ids.
    num_rows : int
    """

    __slots__ = ("batch", "caller", "flat", "noted", "num_rows", "queue", "status")

    def __init__(self, call: Call, flat: DeviceArray, batch: Batch, noted: Any, num_rows: int) -> None:
        self.batch, self.flat, self.noted, self.num_rows = batch, flat, noted, num_rows
        self.caller, self.queue, self.status = call.caller, call.queue, call.status

    def wait(self) -> int:
        """Wait for the GPU, and raise if ids were out of range; returns the number of rows."""
        queue_of(self.caller)  # makes its device current in this thread: another one may be
        errors.raise_for(self.queue, self.status, self.noted, self.flat)
        return int(self.queue.download(self.batch.found)[0])

    def recycle(self) -> None:
        """Do nothing: the memory pool of the device reuses memory by itself."""


def sort(
    lookups: Sequence[tuple[DeviceArray, tuple[int, ...]]],
    names: Sequence[str],
    num_rows: int,
    *,
    given: Sequence[Any] = (),
    kept: bool = False,
    bag_offsets: DeviceArray | None = None,
) -> Sorted:
    """Return the sorted ids of several lookups, concatenated; `given` are the caller's arrays."""
    call = begin(**dict(zip(names, given, strict=True)))
    try:
        flat = joined(call.queue, [each for each, _ in lookups], names)
        noted = check_ids(call, flat, num_rows, names, [shape for _, shape in lookups])
        return Sorted(call, flat, plan(call.queue, flat, num_rows, bag_offsets), noted, num_rows)
    finally:
        end(call)


def check_ids(
    call: Call, flat: DeviceArray, num_rows: int, names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> errors.Noted:
    """Start the check of ids; it raises when the host next waits, or at once after ``checks("now")``."""
    noted = errors.note(tuple(names), tuple(shapes), num_rows)
    note_ids(call.queue, flat, num_rows, call.status, noted.number)
    if errors.checks() == "now":
        errors.raise_for(call.queue, call.status, noted, flat)
    return noted


def check_bags(
    call: Call, place: Any, num_rows: int, parts: Sequence[Any] = (), names: Sequence[str] = ("bags.ids",)
) -> errors.Noted:
    """Start the check of the offsets of bags and the range of their ids; `place` holds `parts`, concatenated."""
    parts = parts or [place]
    noted = errors.note(tuple(names), tuple(each.ids.shape for each in parts), num_rows)
    for each in parts:
        note_offsets(call.queue, each.offsets, len(each.ids), call.status, noted.number)
    note_ids(call.queue, place.ids, num_rows, call.status, noted.number)
    if errors.checks() == "now":
        errors.raise_for(call.queue, call.status, noted, place.ids)
    return noted


def fits(rows: Sorted, num_rows: int) -> None:
    """Refuse the rows of a plan for more rows than a table has."""
    if rows.num_rows > num_rows:
        raise IndexError(
            f"plan is for num_rows = {rows.num_rows}, expected at most {num_rows} on a GPU; plan for this table"
        )


def part(rows: Sorted, name: str) -> Any:
    """Wait, and return `rows`, `order` or `offsets` for the caller."""
    k, source, caller = rows.wait(), getattr(rows.batch, name), here(rows.caller)
    count = {"rows": k, "order": len(source), "offsets": min(k + 1, len(source))}[name]
    queue = queue_of(caller)
    with lent(queue, rows.queue):
        array, result = make(queue, caller, (count,), source.dtype)
        queue.copy(array, source.part(0, count))
    return caller.framework.of_gpu(result)


def shown(rows: Sorted) -> str:
    """Return the text about the rows for the repr of a plan."""
    return f"{rows.batch.n} ids on cuda:{rows.caller.device}"


def joined(queue: Any, parts: list[DeviceArray], names: Sequence[str]) -> DeviceArray:
    """Return several arrays, concatenated."""
    if len(parts) == 1:
        return parts[0]
    for each, name in zip(parts, names, strict=True):
        if each.dtype != parts[0].dtype:
            raise TypeError(f"{name} is {each.dtype}, but {names[0]} is {parts[0].dtype}; on a GPU all must be alike")
    few_enough(sum(map(len, parts)), " and ".join(names))
    whole: DeviceArray = queue.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    start = 0
    for each in parts:
        queue.copy(whole.part(start, len(each)), each)
        start += len(each)
    return whole
