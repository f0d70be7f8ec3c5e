"""Stateless operations on rows: gather, scatter_add, coalesce."""

from typing import Any

import numpy as np

from . import _check as check
from ._engine import CPU, engine_of
from ._frameworks import framework_of
from ._gradients import lookup_parts
from .gradient import RowGradient
from .plan import Plan, as_batch, is_several, parts_of
from .rules.sgd import addition


def gather(weight: Any, ids: Any, out: Any = None) -> Any:
    """Copy the rows of a batch of ids: ``weight[ids]``.

    Parameters
    ----------
    weight : float32, float64 or float16 array of shape (num_rows, dim)
        Any strides; never copied.
    ids : integer array of any shape, or Plan
        int32 and int64 as they are; others are copied to int64.  A plan of several lookups, or a list of arrays,
        gives a list of results.
    out : array of shape ``ids.shape + (dim,)``, optional
        C-contiguous; written to and returned.

    Returns
    -------
    array of shape ``ids.shape + (dim,)``
        In the dtype of `weight`; float32 for a float16 table.

    Raises
    ------
    TypeError
        If `weight` holds no floats, ids are no integers, or `out` has another dtype.
    ValueError
        If `weight` has not two axes, or `out` another shape, is not contiguous or overlaps an argument.
    IndexError
        If an id is out of range; nothing is written then.

    See Also
    --------
    EmbeddingTable.lookup : the same for a table that is trained.
    scatter_add : the other direction.

    Notes
    -----
    Equals ``onehot(ids) @ weight``; see `sparsembed.reference.gather`.  Allocates the result and nothing else.
    Moves ``2 * n * dim * itemsize`` bytes.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> se.gather(np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([1, 1, 0]))
    array([[2., 3.],
           [2., 3.],
           [0., 1.]])
    """
    if (found := CPU.gather_few(weight, ids, None, out)) is not None:
        return found
    if out is not None and is_several(ids.ids if isinstance(ids, Plan) else ids):
        raise ValueError("out must be left out when ids are several lookups")
    engine = engine_of(weight, ids, out)
    return lookup(engine, engine.weight(weight), weight, ids, out)


def lookup(engine: Any, table: Any, given: Any, ids: Any, out: Any = None, contents: Any = None) -> Any:
    """`gather` of a weight that the caller has `given`, or of a table's contents, whose rows may have missed steps."""
    if contents is not None and (found := engine.lookup_few(contents, ids)) is not None:
        return found
    if not isinstance(ids, list | tuple | Plan):
        return _rows(engine, table, given, ids, "ids", out, contents)
    plan = ids if isinstance(ids, Plan) and ids._engine is engine else None
    each = ids.ids if isinstance(ids, Plan) else ids
    if not is_several(each):
        known = None if plan is None else plan._lookups[0]
        return _rows(engine, table, given, each, "ids", out, contents, plan, known)
    known_of = [None] * len(each) if plan is None else plan._lookups
    parts = zip(parts_of(each), known_of, strict=True)
    return [_rows(engine, table, given, p, f"ids[{i}]", None, contents, plan, k) for i, (p, k) in enumerate(parts)]


def _rows(
    engine: Any,
    table: Any,
    given: Any,
    ids: Any,
    name: str,
    out: Any,
    contents: Any,
    plan: Plan | None = None,
    known: Any = None,
) -> Any:
    """Copy the rows of one lookup, into an array of the caller's kind; a plan has its ids `known`: flat, with shape."""
    flat, shape = engine.ids(ids, name) if known is None else known
    call = engine.begin(contents, None if plan is None else plan._sorted, weight=given, ids=ids, out=out)
    try:
        if plan is not None and engine.checks_plans:
            engine.fits(plan._sorted, table.num_rows)
        elif out is not None or not engine.checks_while_reading:
            engine.check_ids(call, flat, table.num_rows, (name,), (shape,))
        array, result = engine.result(call, out, (*shape, table.dim), table.result, weight=table.array, ids=flat)
        rows = array if len(shape) == 1 else array.reshape(flat.size, table.dim)
        if contents is None or contents.is_free:
            outside = engine.gather(call, table, flat, rows)
        else:
            with contents.lock:
                missed = engine.missed(contents)  # before streams are ordered: a GPU's history is written at home
                with engine.reading(contents, call):
                    outside = engine.gather(call, table, flat, rows, missed)
        if outside:
            engine.check_ids(call, flat, table.num_rows, (name,), (shape,))
            raise check.changed()
        return engine.finish(call, result, out)
    finally:
        engine.end(call)


def scatter_add(weight: Any, ids: Any, values: Any, alpha: float = 1.0) -> None:
    """Add rows to a table in place, repeats included: ``weight[ids[i]] += alpha * values[i]``.

    Parameters
    ----------
    weight : writeable float32 or float64 array of shape (num_rows, dim)
    ids : integer array of any shape, Plan, or list of arrays
    values : float array of shape ``ids.shape + (dim,)``, or list of such arrays
    alpha : float
        Finite factor.

    Raises
    ------
    TypeError
        If `weight` or `values` hold no floats, `weight` hands out copies of its memory, or ids are no integers.
    ValueError
        If `weight` is read-only or shares memory with an argument, a shape does not fit, or `alpha` is not finite.
    IndexError
        If an id is out of range.
        After each of these `weight` is as it was.

    See Also
    --------
    EmbeddingTable.update : a step of an optimizer instead of a plain sum.

    Notes
    -----
    Moves ``(n + 2 * k) * dim * itemsize`` bytes for n ids with k unique rows; 24 bytes per id of workspace.
    Equals ``weight += alpha * onehot(ids).T @ values``; see `sparsembed.reference.scatter_add`.  The values of
    one row are summed first, in their order, then added; the result does not depend on the number of threads.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> w = np.zeros((3, 1))
    >>> se.scatter_add(w, np.array([2, 0, 2]), np.array([[1.0], [2.0], [3.0]]))
    >>> w.ravel()
    array([2., 0., 4.])
    """
    engine, alpha = engine_of(weight, ids, values), check.real(alpha, "alpha")
    if engine.add_few(weight, ids, values, alpha):
        return
    table = engine.weight(weight, writeable=True)
    if abs(alpha) > float(np.finfo(table.dtype).max):
        raise ValueError(f"alpha must fit into {table.dtype}, got {alpha}")
    rows, shapes, several = as_batch(engine, ids, table.num_rows)
    parts, names = lookup_parts(engine, shapes, several, values, table.dim, table.dtype, "values")
    call = engine.begin(rows=rows, weight=weight, values=values)
    try:
        grads = engine.of_lookups(call, rows, parts, names, table, False)
        engine.add_rows(call, table, rows, grads, addition(alpha, table.dtype))
    finally:
        engine.end(call)
    rows.recycle()


def coalesce(
    ids: Any, grad_out: Any, num_rows: int, *, padding_idx: int | None = None, scale_grad_by_freq: bool = False
) -> RowGradient:
    """Sum the gradients of repeated ids.

    Parameters
    ----------
    ids : integer array of any shape, Plan, or list of arrays
    grad_out : float array of shape ``ids.shape + (dim,)``, or list of such arrays
        Gradient of each looked-up row.
    num_rows : int
        Rows of the table.
    padding_idx : int, optional
        An id whose gradient is dropped.
    scale_grad_by_freq : bool
        Divide the sum of each row by the number of times that its id occurs, in all lookups together.

    Returns
    -------
    RowGradient
        ``values[j]`` is the sum of ``grad_out[i]`` over all i with ``ids[i] == rows[j]``, in float32 or float64.

    Raises
    ------
    TypeError
        If ids are no integers, or `grad_out` holds no floats, is None, or requires a gradient itself.
    ValueError
        If a shape does not fit, or `num_rows` is below 1.
    IndexError
        If an id or `padding_idx` is out of range.

    See Also
    --------
    EmbeddingTable.gradient : the same, with the options of a table.
    pool_gradient : of bags.

    Notes
    -----
    Moves ``(n + k) * dim * itemsize`` bytes for n ids with k unique rows; 24 bytes per id of workspace.
    Equals the rows of ``onehot(ids).T @ grad_out`` that have an id; see `sparsembed.reference.coalesce`.  A row
    is summed in the order of its ids, in chunks of 512, so results repeat bit for bit.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> g = se.coalesce(np.array([7, 2, 7]), np.ones((3, 1)), num_rows=9)
    >>> g.rows, g.values.ravel()
    (array([2, 7]), array([1., 2.]))
    """
    engine = engine_of(ids, grad_out)
    num_rows = check.count(num_rows, "num_rows")
    padding = check.padding(padding_idx, num_rows)
    by_count = check.flag(scale_grad_by_freq, "scale_grad_by_freq")
    return coalesced(engine, ids, grad_out, None, None, num_rows, padding, by_count)


def coalesced(
    engine: Any,
    ids: Any,
    grad_out: Any,
    dim: int | None,
    dtype: Any,
    num_rows: int,
    padding: int,
    by_count: bool,
    contents: Any = None,
) -> RowGradient:
    """Return the summed gradient of each row of a batch, in `dtype` or in the widest dtype of the gradients."""
    few = engine.sum_few(ids, grad_out, num_rows, dim, dtype, padding, by_count)
    if few is not None:
        found, values = few
        return RowGradient._make(found, values, num_rows, framework_of(grad_out).name)
    rows, shapes, several = as_batch(engine, ids, num_rows)
    parts, names = lookup_parts(engine, shapes, several, grad_out, dim, dtype, "grad_out")
    call = engine.begin(contents, rows, grad_out=grad_out)
    try:
        grads = engine.of_lookups(call, rows, parts, names, None, by_count)
        return RowGradient._summed(engine, call, rows, grads, num_rows, padding)
    finally:
        engine.end(call)
