"""What holds for the whole process: its threads, and kernels that are compiled before they are needed."""

import time
from dataclasses import replace
from typing import Any

import numba
import numpy as np
from numba.core import config

from . import _check as check
from ._cpu import memory, threads
from ._cpu.inputs import IDS
from .bags import Bags
from .table import EmbeddingTable

_ROWS, _DIM = 1000, 8
_FEW, _MANY = 32, 1 << 18  # ids: of one compiled call; and of kernels that share work and write past the cache


def get_num_threads() -> int:
    """Return the number of threads that calls of this thread use.

    Returns
    -------
    int
        Numba's number: all cores, or the environment variable NUMBA_NUM_THREADS, or what was set.

    See Also
    --------
    set_num_threads

    Examples
    --------
    >>> import sparsembed as se
    >>> se.get_num_threads() >= 1
    True
    """
    return threads.num_threads()


def set_num_threads(n: int) -> int:
    """Set the number of threads that calls of this thread use.

    Parameters
    ----------
    n : int
        From 1 to NUMBA_NUM_THREADS, which is the number of cores unless the environment says otherwise.

    Returns
    -------
    int
        The number before.

    Raises
    ------
    TypeError, ValueError
        If `n` is no such number.

    Notes
    -----
    It is Numba's own number (`numba.set_num_threads`), which other Numba code of this thread uses, too; a thread that
    is started later begins with all.  Results do not depend on it.

    Examples
    --------
    >>> import sparsembed as se
    >>> before = se.set_num_threads(1)
    >>> se.get_num_threads(), se.set_num_threads(before)
    (1, 1)
    """
    n, before, most = check.count(n, "n"), threads.num_threads(), int(config.NUMBA_NUM_THREADS)
    if n > most:
        raise ValueError(
            f"n must be at most {most}, got {n}; for more set the environment variable NUMBA_NUM_THREADS before Numba "
            "is imported"
        )
    numba.set_num_threads(n)
    return before


def warm_up(table: EmbeddingTable, *, ids_dtype: Any = np.int64, bags: bool = False) -> float:
    """Compile what calls on a table need, or load it from the cache on disk, before the first call.

    Parameters
    ----------
    table : EmbeddingTable
        It is not written to, and takes no step: the calls are made on a small table of the same kind.
    ids_dtype : {int64, int32}
        Of the ids that will be used.
    bags : bool
        Whether to compile `pool`, `update_pooled` and `gradient_pooled`, too.  Scores (`EmbeddingTable.dot`) compile at
        their first call.

    Returns
    -------
    float
        The seconds that it took.  On two cores with nothing compiled yet, 25 for `SparseAdam` and 41 for `Adam`, with
        bags 71 and 94; from the cache 0.8 to 1.5.

    Raises
    ------
    TypeError
        For another kind of table or of ids.

    See Also
    --------
    EmbeddingTable.lookup, EmbeddingTable.update

    Notes
    -----
    Kernels depend on the dtypes of table and ids, the class of the optimizer, the table's options and how its memory
    lies, not on its shape: one call serves all tables of a kind.

    Examples
    --------
    >>> import sparsembed as se
    >>> table = se.EmbeddingTable(1_000_000, 64, se.SparseAdam(lr=1e-3))
    >>> seconds = se.warm_up(table)
    >>> table.step
    0
    """
    if not isinstance(table, EmbeddingTable):
        raise TypeError(f"table must be an EmbeddingTable, got {type(table).__name__}")
    try:
        dtype = np.dtype("V" if ids_dtype is None else ids_dtype)  # np.dtype(None) is float64
    except TypeError:
        raise TypeError(f"ids_dtype must be int32 or int64, got {ids_dtype!r}") from None
    if dtype not in IDS:
        raise TypeError(f"ids_dtype must be int32 or int64, got {dtype}")
    bags, begun = check.flag(bags, "bags"), time.perf_counter()
    twin = _twin(table)
    for _ in range(2):  # the second time rows have missed steps
        for n in (_FEW, _MANY):
            ids = np.arange(n) * 7 % (_ROWS // 2)
            ids[: n // 8] = 3  # a row whose gradients many threads sum
            _rows(twin, ids.astype(dtype))
            if bags:
                _bags(twin, ids.astype(dtype))
    twin.synchronize()
    return time.perf_counter() - begun


def _twin(table: EmbeddingTable) -> EmbeddingTable:
    """Return a small table of the same kind."""
    contents = table._contents
    options, rule = contents.options._asdict(), contents.rule
    if callable(getattr(rule, "lr", None)):  # a schedule may not like to be asked ahead
        rule = replace(rule, lr=0.1)  # type: ignore[type-var]
    if options["padding_idx"] is not None:
        options["padding_idx"] = 0
    place = contents.engine.place_saved(contents)
    if place:  # kernels of a GPU do not depend on how memory lies
        return EmbeddingTable(
            _ROWS, _DIM, rule, dtype=contents.table.dtype, device=f"cuda:{place['device']}", **options
        )
    return EmbeddingTable.from_array(_like(contents.table.array, rule is None), rule, **options)


def _like(array: Any, read: bool) -> Any:
    """Return a small array that lies in memory as another does."""
    if array.flags.c_contiguous:
        found = memory.zeros((_ROWS, _DIM), array.dtype)
    elif array.flags.f_contiguous:
        found = np.zeros((_ROWS, _DIM), array.dtype, order="F")
    elif array.strides[1] == array.itemsize:
        found = np.zeros((_ROWS, _DIM + 1), array.dtype)[:, 1:]
    else:
        found = np.zeros((_ROWS, 2 * _DIM), array.dtype)[:, ::2]
    found.flags.writeable = array.flags.writeable or not read
    return found


def _rows(table: EmbeddingTable, ids: Any) -> None:
    """Call what looks up rows, and what steps from their gradients."""
    contents = table._contents
    grad, own = np.zeros((len(ids), _DIM), contents.table.result), contents.engine.own_ids
    there, grads = own(contents, ids), own(contents, grad)
    table.lookup(there)
    if contents.rule is not None:
        table.update(there, grads)
        table.lookup(there)
        table.apply(table.gradient(there, grads))
        table.flush()
        table.update(there, grads)


def _bags(table: EmbeddingTable, ids: Any) -> None:
    """Call what pools bags, and what steps from their gradients."""
    contents, offsets = table._contents, np.arange(0, len(ids) + 1, 4)
    own, kind = contents.engine.own_ids, contents.table.result
    there, ends = own(contents, ids), own(contents, offsets)
    plain, weighted = Bags(there, ends), Bags(there, ends, own(contents, np.ones(len(ids), kind)))
    grads = own(contents, np.zeros((len(offsets) - 1, _DIM), kind))
    for bags, mode in ((plain, "sum"), (plain, "mean"), (plain, "max"), (weighted, "sum")):
        table.pool(bags, mode)
        if contents.rule is not None:
            table.update_pooled(bags, grads, mode)
            table.pool(bags, mode)
            table.gradient_pooled(bags, grads, mode)
