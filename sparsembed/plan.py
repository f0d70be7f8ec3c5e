"""Plan: the ids of a batch, sorted once into rows and segments."""

from typing import Any

import numpy as np

from . import _threads
from . import _validate as check
from ._arrays import Array, freeze, is_array, read_only
from ._device import engine, on_device
from .kernels.cpu.segment import CHUNK
from .kernels.cpu.sort import find_hot, first_outside, sort_ids

_INSERTION = 48  # up to this many ids, insertion beats radix
_WIDE = 4096
_SERIAL = 65536  # below this many ids, waking a thread costs more than it saves
_BLOCK = 16384  # ids in a block at least: each block reads the counts of all
_KEPT, _LARGEST_KEPT = 3, 1 << 21  # buffers kept for the next transient plan, and ids in each
_buffers: list[Array] = []
_NO_HOT = (np.zeros(0, np.int64), np.zeros(1, np.int64))


class Plan:
    """The ids of one step, sorted; made by `sparsembed.plan` and accepted wherever ids are.

    Attributes
    ----------
    num_rows : int
        All ids are below it.
    ids : array, or tuple of arrays
        The ids that were planned; a tuple if they were several lookups of one step.
    several : bool
        Whether they were.
    rows : ndarray of shape (k,), dtype of the ids
        Unique ids in increasing order.
    order : ndarray of shape (n,), int32 (int64 from 2**31 ids on)
        Positions of the flattened ids, sorted by id; equal ids keep their order.
    segment_offsets : ndarray of shape (k + 1,), dtype of `order`
        ``order[segment_offsets[j]:segment_offsets[j + 1]]`` are the positions of ``rows[j]``.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> p = se.plan([np.array([7, 2]), np.array([[7]])], num_rows=9)
    >>> p, p.counts, p.shapes
    (Plan(3 ids, 2 unique rows, num_rows=9), [2, 1], [(2,), (1, 1)])
    """

    __slots__ = (
        "_buffers",
        "_hot",
        "_lookups",
        "_transient",
        "ids",
        "num_rows",
        "order",
        "rows",
        "segment_offsets",
        "several",
    )

    def __init__(
        self,
        ids: Any,
        num_rows: int,
        transient: bool = False,
        name: str = "ids",
        bag_offsets: Array | None = None,
        labels: Array | None = None,
    ) -> None:
        self.num_rows = check.count(num_rows, "num_rows")
        self.several = is_several(ids)
        self.ids: Any = each_of(ids, name) if self.several else original(ids)
        parts = self.ids if self.several else (self.ids,)
        names = [f"{name}[{i}]" for i in range(len(parts))] if self.several else [name]
        self._lookups = [check.flatten(part, name) for part, name in zip(parts, names, strict=True)]
        self._transient = transient
        self._buffers: list[Array] = []
        flats = [flat for flat, _ in self._lookups]
        flat = flats[0] if len(flats) == 1 else read_only(np.concatenate([*flats, np.zeros(0, np.int32)]))
        found = _sort(flat, self.num_rows, bag_offsets, self._buffers, labels)
        if found is None:
            for (each, shape), which in zip(self._lookups, names, strict=True):
                check.in_range(each, self.num_rows, which, shape)
            raise IndexError(  # which they are not any more
                f"{name} were changed by another thread while they were sorted, and some were out of range; leave them "
                "as they are until the call returns, or pass a copy"
            )
        self.rows, self.order, self.segment_offsets, self._hot = found
        if not transient:
            self._buffers = []

    def _recycle(self) -> None:
        """Keep the memory of a transient plan, which nobody will use any more, for the next one.

        Fresh memory costs a page fault per 4 KiB: 358 of them in an update of 100,000 ids.
        """
        if self._transient and len(self.order) <= _LARGEST_KEPT:
            _buffers.extend(self._buffers[: max(_KEPT - len(_buffers), 0)])
        self._transient = False

    def _room(self, dtype: Any) -> Array:
        """Return memory for one number per id: that of the sorted keys, which nobody needs any more."""
        if not self._buffers:
            return np.empty(len(self.order), dtype)
        room: Array = self._buffers[0].view(dtype)
        return room[: len(self.order)]

    @property
    def counts(self) -> list[int]:
        """How many ids each lookup has."""
        return [len(flat) for flat, _ in self._lookups]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each lookup's ids."""
        return [shape for _, shape in self._lookups]

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"_buffers": [], "_transient": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value if name in ("ids", "_hot") else freeze(value))

    def __repr__(self) -> str:
        n = len(self.order)
        return f"Plan({n} ids, {len(self.rows)} unique rows, num_rows={self.num_rows})"


def plan(ids: Any, num_rows: int) -> Plan:
    """Sort the ids of a step once, for use with several tables or calls.

    Parameters
    ----------
    ids : int32 or int64 array of any shape, or list of such arrays
        A list of arrays stands for several lookups of one step.
    num_rows : int
        Rows of the table; all ids must be in [0, num_rows).

    Returns
    -------
    Plan
        Keeps a reference to `ids`, which must not change; 16 bytes per id of its own, 24 while sorting.

    Raises
    ------
    TypeError
        If the ids are not int32 or int64.
    IndexError
        If an id is out of range; the message names the first.

    Notes
    -----
    A stable radix sort restricted to the bits of `num_rows`: linear in the number of ids, shared by all threads
    from 65,536 ids on.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> p = se.plan(np.array([7, 2, 7]), num_rows=9)
    >>> p.rows, p.order, p.segment_offsets
    (array([2, 7]), array([1, 0, 2], dtype=int32), array([0, 1, 3], dtype=int32))
    """
    if on_device(ids):
        return engine("values").DevicePlan(ids, num_rows)  # type: ignore[no-any-return]
    return Plan(ids, num_rows)


def is_several(ids: Any) -> bool:
    """Whether ids are a list of lookups, rather than one array (or a plain list of numbers)."""
    if not isinstance(ids, list | tuple):
        return False
    return on_device(ids) or any(is_array(each) or isinstance(each, Plan) for each in ids)


def each_of(ids: Any, name: str = "ids") -> tuple[Any, ...]:
    """Return the ids of each of several lookups."""
    for i, each in enumerate(ids):
        if isinstance(each, Plan) and each.several:
            raise ValueError(f"{name}[{i}] is a plan of several lookups, expected one lookup; list their ids instead")
    return tuple(map(original, ids))


def as_lookups(ids: Any, grad_out: Any) -> Any:
    """Return `ids`, as several lookups where lists of ids stand beside a list of gradients."""
    listed = isinstance(grad_out, list | tuple) and isinstance(ids, list | tuple) and len(ids) == len(grad_out)
    if listed and not is_several(ids) and all(getattr(grad, "ndim", 0) > 1 for grad in grad_out):
        return [np.asarray(each) for each in ids]
    return ids


def original(ids: Any) -> Any:
    """Return the ids that a plan was made from; anything else is returned as it is."""
    return ids.ids if isinstance(ids, Plan) else ids


def as_plan(ids: Any, num_rows: int) -> Plan:
    """Return `ids` if it is a plan that fits a table of `num_rows`, else plan it."""
    if not isinstance(ids, Plan):
        return Plan(ids, num_rows, transient=True)
    if on_device(ids):
        raise TypeError("ids are a plan on a GPU, the table is in host memory; plan ids of the host")
    if len(ids.rows) and ids.rows[-1] >= num_rows:
        raise IndexError(f"plan holds id {ids.rows[-1]}, expected 0 <= id < {num_rows} (num_rows); plan for this table")
    return ids


def _sort(
    ids: Array, num_rows: int, bag_offsets: Array | None, buffers: list[Array], labels: Array | None = None
) -> tuple[Any, ...] | None:
    """Return rows, order, segment offsets and hot segments, or None if an id is out of range; name their memory.

    Occurrences of equal ids are in the order of their labels (n,), int64, and of their positions where labels are equal
    or None: so the sum of their gradients does not depend on the order in which they arrive.
    """
    n, by_label = len(ids), None if labels is None else _by_label(labels)
    entries = n if bag_offsets is None or by_label is not None else len(bag_offsets) - 1
    shift, bits = max(entries - 1, 0).bit_length(), (num_rows - 1).bit_length()
    if shift + bits > 64 or n >= 2**31:
        return _sort_wide(ids, num_rows, bag_offsets, by_label)
    buffers += [_buffer(n + 1), _buffer(n + 1), _buffer(n + 1)]
    keys, other, rows = (buffer[: n + 1] for buffer in buffers)  # `keys` will hold the sorted ones
    digits, width = _digits(n, bits)
    blocks = 1 if n < _SERIAL or not digits else min(2 * _threads.num_threads(), n // _BLOCK)
    counts, places = np.zeros((2, blocks, 1 << width), np.int32)
    phases, found = np.zeros((2 + 2 * digits, _threads.SLOTS), np.int64), np.zeros((blocks, 3), np.int64)
    rows, room = rows.view(ids.dtype), other.view(np.int32)
    order, offsets = room[:n], room[n : 2 * n + 1]
    first, second = (keys, other) if digits % 2 == 0 else (other, keys)
    arguments = (-(-n // blocks), ids, num_rows, bag_offsets, by_label, (shift, digits, width), first[:n], second[:n])
    _threads.run(sort_ids, blocks, *arguments, counts, places, phases, rows, order, offsets, CHUNK, found)
    bad, k, hot = (found[0] if blocks == 1 else found.sum(axis=0)).tolist()
    if bad:
        return None
    return freeze(rows[:k]), freeze(order), freeze(offsets[: k + 1]), _cut(offsets[: k + 1], hot)


def _by_label(labels: Array) -> Array | None:
    """Return the positions in the order of their labels, or None if they are in that order."""
    if len(labels) == 0 or (labels[1:] >= labels[:-1]).all():
        return None
    lowest, highest = int(labels.min()), int(labels.max())
    if highest - lowest >= 2**62:  # a difference may not fit
        return read_only(np.argsort(labels, kind="stable").astype(np.int32 if len(labels) < 2**31 else np.int64))
    found: Any = _sort(read_only(labels - lowest), highest - lowest + 1, None, [])  # all are in range
    return read_only(found[1])


def _buffer(n: int) -> Array:
    """Return memory for n keys, of a former transient plan if that is large enough."""
    try:
        if len(buffer := _buffers.pop()) >= n:
            return buffer
    except IndexError:
        pass
    return np.empty(n, np.uint64)


def _digits(n: int, bits: int) -> tuple[int, int]:
    """Return how many digits to sort by, and their width; no digit means insertion."""
    if n <= _INSERTION:
        return 0, 0
    widest = 11 if n > _WIDE else 8  # counters of 11 bits fill the first-level cache
    digits = -(-bits // widest)
    return digits, -(-bits // max(digits, 1))


def _sort_wide(ids: Array, num_rows: int, bag_offsets: Array | None, by_label: Array | None) -> tuple[Any, ...] | None:
    """Sort ids that do not fit into 64 bits together with their entry in the order."""
    ids = ids.copy()  # which nobody else can change between the check and the use
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
    return freeze(rows), freeze(order), freeze(offsets), _cut(offsets, hot)


def _cut(offsets: Array, hot: int) -> tuple[Array, Array]:
    """Return the segments longer than a chunk, `hot` in number, and where each one's chunks start."""
    if not hot:
        return _NO_HOT
    segments, starts = np.empty(hot, np.int64), np.zeros(hot + 1, np.int64)
    find_hot(offsets, CHUNK, segments)
    np.cumsum(-(-(offsets[segments + 1] - offsets[segments]) // CHUNK), out=starts[1:])
    return segments, starts
