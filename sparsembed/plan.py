"""Plan: the ids of a batch, sorted once into rows and segments."""

import contextlib
from typing import Any

import numpy as np

from . import _validate as check
from ._arrays import Array, freeze, is_array
from .kernels.cpu.segment import CHUNK, find_segments, pack, sort_keys

_INSERTION = 48  # up to this many ids, insertion beats radix
_WIDE = 4096
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

    def __init__(self, ids: Any, num_rows: int, transient: bool = False, name: str = "ids") -> None:
        self.num_rows = check.count(num_rows, "num_rows")
        self.several = is_several(ids)
        self.ids: Any = tuple(map(original, ids)) if self.several else original(ids)
        parts = self.ids if self.several else (self.ids,)
        names = [f"{name}[{i}]" for i in range(len(parts))] if self.several else [name]
        self._lookups = [check.flat_ids(part, self.num_rows, name) for part, name in zip(parts, names, strict=True)]
        self._transient = transient
        self._buffers: list[Array] = []
        flats = [flat for flat, _ in self._lookups]
        self.rows, self.order, self.segment_offsets, longest = _sort(flats, self.num_rows, self._buffers)
        self._hot = _cut(self.segment_offsets) if longest > CHUNK else _NO_HOT

    def _recycle(self) -> None:
        """Keep the memory of a transient plan, which nobody will use any more, for the next one.

        Fresh memory costs a page fault per 4 KiB: 358 of them in an update of 100,000 ids.
        """
        if self._transient and len(self.order) <= _LARGEST_KEPT:
            _buffers.extend(self._buffers[: max(_KEPT - len(_buffers), 0)])
        self._transient = False

    def _room(self, dtype: Any) -> Array:
        """Return memory for one number per id, which the next transient plan gets."""
        if not self._transient:
            return np.empty(len(self.order), dtype)
        self._buffers.append(_buffer(len(self.order) + 1))
        room: Array = self._buffers[-1].view(dtype)
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
        Keeps a reference to `ids`, which must not change; 16 bytes per id of its own.

    Raises
    ------
    TypeError
        If the ids are not int32 or int64.
    IndexError
        If an id is out of range; the message names the first.

    Notes
    -----
    A stable radix sort restricted to the bits of `num_rows`: linear in the number of ids.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> p = se.plan(np.array([7, 2, 7]), num_rows=9)
    >>> p.rows, p.order, p.segment_offsets
    (array([2, 7]), array([1, 0, 2], dtype=int32), array([0, 1, 3], dtype=int32))
    """
    return Plan(ids, num_rows)


def is_several(ids: Any) -> bool:
    """Whether ids are a list of lookups, rather than one array (or a plain list of numbers)."""
    return isinstance(ids, list | tuple) and any(is_array(each) or isinstance(each, Plan) for each in ids)


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
    if len(ids.rows) and ids.rows[-1] >= num_rows:
        raise IndexError(f"plan holds id {ids.rows[-1]}, expected 0 <= id < {num_rows} (num_rows); plan for this table")
    return ids


def _sort(flats: list[Array], num_rows: int, buffers: list[Array]) -> tuple[Array, Array, Array, int]:
    """Return rows, order, segment offsets and the length of the longest segment; name their memory."""
    n = sum(map(len, flats))
    dtype = flats[0].dtype if len(flats) == 1 else np.result_type(np.int32, *flats)
    index = np.dtype(np.int32) if n < 2**31 else np.dtype(np.int64)
    shift, bits = max(n - 1, 0).bit_length(), (num_rows - 1).bit_length()
    if shift + bits > 64 or index == np.int64:
        return _sort_wide(np.concatenate(flats), index)
    # Two buffers of 8 bytes per id are all the memory: keys while sorting, results afterwards.
    buffers += [_buffer(n + 1), _buffer(n + 1)]
    keys, spare = (buffer[: n + 1] for buffer in buffers)
    digits, width = _digits(n, bits)
    counts = np.zeros((digits, 1 << width), np.int64)
    start = 0
    for flat in flats:
        pack(flat, start, shift, keys, counts, width)
        start += len(flat)
    if sort_keys(keys[:n], spare[:n], counts, shift, width):
        keys, spare = spare, keys
    rows, order, offsets = keys.view(dtype), spare.view(index)[:n], spare.view(index)[n : 2 * n + 1]
    k, longest = find_segments(keys[:n], shift, rows, order, offsets)
    return freeze(rows[:k]), freeze(order), freeze(offsets[: k + 1]), longest


def _buffer(n: int) -> Array:
    """Return memory for n keys, of a former transient plan if that is large enough."""
    with contextlib.suppress(IndexError):
        if len(buffer := _buffers.pop()) >= n:
            return buffer
    return np.empty(n, np.uint64)


def _digits(n: int, bits: int) -> tuple[int, int]:
    """Return how many digits to sort by, and their width; no digit means insertion."""
    if n <= _INSERTION:
        return 0, 0
    widest = 11 if n > _WIDE else 8  # counters of 11 bits fill the first-level cache
    digits = -(-bits // widest)
    return digits, -(-bits // max(digits, 1))


def _sort_wide(ids: Array, index: np.dtype[Any]) -> tuple[Array, Array, Array, int]:
    """Sort ids that do not fit into 64 bits together with their position."""
    order = np.argsort(ids, kind="stable").astype(index)
    rows, starts = np.unique(ids[order], return_index=True)
    offsets = np.append(starts, len(ids)).astype(index)
    return freeze(rows), freeze(order), freeze(offsets), int(np.diff(offsets).max(initial=0))


def _cut(offsets: Array) -> tuple[Array, Array]:
    """Return the segments longer than a chunk, and where each one's chunks start."""
    lengths = np.diff(offsets).astype(np.int64)
    hot = np.flatnonzero(lengths > CHUNK)
    return hot, np.concatenate([[0], np.cumsum(-(-lengths[hot] // CHUNK))])
