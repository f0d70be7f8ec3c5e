"""Plan: the ids of a batch, sorted once into rows and segments."""

from typing import Any

import numpy as np

from . import _check as check
from ._cpu.sorting import Sorted
from ._cpu.views import freeze, is_array
from ._engine import CPU, engine_of, on_device

Shape = tuple[int, ...]


class Plan:
    """The ids of one step, sorted; made by `sparsembed.plan` and accepted wherever ids are.

    Attributes
    ----------
    num_rows : int
        All ids are below it.
    ids : array, or tuple of arrays
        The ids that were sorted; a tuple of arrays for several lookups.
    several : bool
        Whether the plan is of a list of lookups.
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
    >>> p.rows, p.order, p.segment_offsets
    (array([2, 7]), array([1, 0, 2], dtype=int32), array([0, 1, 3], dtype=int32))
    """

    __slots__ = ("_engine", "_lookups", "_sorted", "ids", "num_rows", "several")

    def __init__(self, ids: Any, num_rows: int) -> None:
        self._engine = engine_of(ids)
        self.num_rows = check.count(num_rows, "num_rows")
        self.several = isinstance(ids, list | tuple) and is_several(ids)
        parts, names = (
            (parts_of(ids), names_of("ids", len(ids), True)) if self.several else ((original(ids),), ("ids",))
        )
        self.ids: Any = parts if self.several else parts[0]
        self._lookups = checked(self._engine, parts, self.several)
        self._sorted = self._engine.sort(self._lookups, names, self.num_rows, given=parts, kept=True)

    @property
    def rows(self) -> Any:
        """Unique ids in increasing order."""
        return self._engine.part(self._sorted, "rows")

    @property
    def order(self) -> Any:
        """Positions of the flattened ids, sorted by id."""
        return self._engine.part(self._sorted, "order")

    @property
    def segment_offsets(self) -> Any:
        """Start of each segment in `order`, and its length at the end."""
        return self._engine.part(self._sorted, "offsets")

    @property
    def counts(self) -> list[int]:
        """Number of ids of each lookup."""
        return [len(flat) for flat, _ in self._lookups]

    @property
    def shapes(self) -> list[Shape]:
        """The shape of each lookup's ids."""
        return [shape for _, shape in self._lookups]

    @property
    def _on_device(self) -> bool:
        return self._engine is not CPU

    def __getstate__(self) -> dict[str, Any]:
        if self._engine is not CPU:
            raise TypeError("a plan on a GPU is not pickled; pickle the ids, and plan again")
        found = self._sorted
        names = {"order": found.order, "rows": found.rows, "segment_offsets": found.offsets, "_hot": found.hot}
        own = {name: getattr(self, name) for name in ("ids", "num_rows", "several", "_lookups")}
        return own | names

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._engine = CPU
        self.ids, self.num_rows, self.several = state["ids"], state["num_rows"], state["several"]
        self._lookups = freeze(state["_lookups"])
        rows, order, offsets = (freeze(state[name]) for name in ("rows", "order", "segment_offsets"))
        self._sorted = Sorted(rows, order, offsets, state["_hot"], self.counts)

    def __repr__(self) -> str:
        return f"Plan({self._engine.shown(self._sorted)}, num_rows={self.num_rows})"


def plan(ids: Any, num_rows: int) -> Plan:
    """Sort the ids of a step once, for use with several tables or calls.

    Parameters
    ----------
    ids : integer array of any shape, or list of such arrays
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
        If the ids are no integers.
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
    return Plan(ids, num_rows)


def as_batch(engine: Any, ids: Any, num_rows: int) -> tuple[Any, list[Shape], bool]:
    """Return the sorted ids of a step; a plan is sorted already, and must fit the table.

    Returns
    -------
    Sorted
        Rows, as the engine stores them.
    list of tuple
        The shape of each lookup's ids.
    bool
        Whether ids are a list of lookups.
    """
    if isinstance(ids, Plan):
        if ids._engine is not engine:
            if engine is CPU:
                raise TypeError("ids are a plan on a GPU, the table is in host memory; plan ids of the host")
            return as_batch(engine, ids.ids, num_rows)  # the check of the ids names the array that is on the host
        engine.fits(ids._sorted, num_rows)
        return ids._sorted, ids.shapes, ids.several
    if not (isinstance(ids, list | tuple) and is_several(ids)):
        lookup = engine.ids(ids)
        return engine.sort([lookup], ("ids",), num_rows, given=(ids,)), [lookup[1]], False
    parts = parts_of(ids)
    lookups = checked(engine, parts, True)
    rows = engine.sort(lookups, names_of("ids", len(parts), True), num_rows, given=parts)
    return rows, [shape for _, shape in lookups], True


def names_of(name: str, count: int, several: bool) -> tuple[str, ...]:
    """Return the name of each lookup's array for messages."""
    return tuple(f"{name}[{i}]" for i in range(count)) if several else (name,)


def is_several(ids: Any) -> bool:
    """Whether ids are a list of lookups, rather than one array (or a plain list of numbers)."""
    if not isinstance(ids, list | tuple):
        return False
    return on_device(ids) or any(is_array(each) or isinstance(each, Plan) for each in ids)


def parts_of(ids: Any, name: str = "ids") -> tuple[Any, ...]:
    """Return the ids of each lookup; a plan is replaced by its ids."""
    if not is_several(ids):
        return (original(ids),)
    for i, each in enumerate(ids):
        if isinstance(each, Plan) and each.several:
            raise ValueError(f"{name}[{i}] is a plan of several lookups, expected one lookup; list their ids instead")
    return tuple(map(original, ids))


def checked(engine: Any, parts: tuple[Any, ...], several: bool, name: str = "ids") -> list[tuple[Any, Shape]]:
    """Check the dtype of each lookup's ids; return the flat ids and the shape of each."""
    if not several:
        return [engine.ids(parts[0], name)]
    return [engine.ids(part, f"{name}[{i}]") for i, part in enumerate(parts)]


def as_lookups(ids: Any, grad_out: Any) -> Any:
    """Return `ids`; as a tuple of lookups if they are lists, and `grad_out` is a list of gradients."""
    listed = isinstance(grad_out, list | tuple) and isinstance(ids, list | tuple) and len(ids) == len(grad_out)
    if listed and not is_several(ids) and all(getattr(grad, "ndim", 0) > 1 for grad in grad_out):
        return [np.asarray(each) for each in ids]
    return ids


def original(ids: Any) -> Any:
    """Return the ids of a plan; return anything else unchanged."""
    return ids.ids if isinstance(ids, Plan) else ids
