"""The stateless layer, single rows: arrays in, arrays out, nothing hidden."""

from typing import Any

import numpy as np

from . import _launch, _memory
from . import _validate as check
from ._arrays import Array, kind_of, kind_of_either, to_kind
from ._backward import lookup_gradients, result_dtype, row_gradient
from ._device import engine, on_device
from ._lag import Lag
from .gradient import RowGradient
from .plan import as_plan, each_of, is_several, original
from .rules.sgd import addition


def gather(weight: Any, ids: Any, out: Any = None) -> Any:
    """Copy the rows of a batch of ids: ``weight[ids]``.

    Parameters
    ----------
    weight : float32, float64 or float16 array of shape (num_rows, dim)
        Any strides; never copied.
    ids : int32 or int64 array of any shape, or Plan
        A plan of several lookups, or a list of arrays, gives a list of results.
    out : array of shape ``ids.shape + (dim,)``, optional
        C-contiguous; written to and returned.

    Returns
    -------
    array of shape ``ids.shape + (dim,)``
        In the dtype of `weight`; float32 for a float16 table.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong dtype or shape.
    IndexError
        If an id is out of range; nothing is written then.

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
    if out is not None and is_several(original(ids)):
        raise ValueError("out must be left out when ids are several lookups")
    if on_device(weight, ids, out):
        return engine("functional").gather(weight, ids, out)
    return lookup(weight, ids, None, out)


def lookup(weight: Any, ids: Any, lag: Lag | None, out: Any = None) -> Any:
    """`gather` of a table whose rows may have to catch up."""
    ids, table = original(ids), check.weight(weight)
    if not is_several(ids):
        return _rows(weight, table, ids, check.flat_ids(ids, len(table)), lag, out)
    parts = each_of(ids)
    checked = [check.flat_ids(each, len(table), f"ids[{i}]") for i, each in enumerate(parts)]
    return [_rows(weight, table, each, flat, lag) for each, flat in zip(parts, checked, strict=True)]


def _rows(
    weight: Any, table: Array, ids: Any, checked: tuple[Array, tuple[int, ...]], lag: Lag | None, out: Any = None
) -> Any:
    """Copy the rows of ids that were `checked`, into an array of the caller's kind."""
    (flat, shape), dtype = checked, result_dtype(table)
    shape = (*shape, table.shape[1])
    result = _memory.empty(shape, dtype) if out is None else check.output(out, shape, dtype, weight=table, ids=flat)
    _launch.gather(table, flat, result.reshape(-1, table.shape[1]), lag)
    return out if out is not None else to_kind(result, kind_of_either(weight, kind_of(ids)))


def scatter_add(weight: Any, ids: Any, values: Any, alpha: float = 1.0) -> None:
    """Add rows to a table in place, repeats included: ``weight[ids[i]] += alpha * values[i]``.

    Parameters
    ----------
    weight : writeable float32 or float64 array of shape (num_rows, dim)
    ids : int32 or int64 array of any shape, Plan, or list of arrays
    values : float array of shape ``ids.shape + (dim,)``, or list of such arrays
    alpha : float
        Finite factor.

    Raises
    ------
    TypeError, ValueError, IndexError
        For arguments that do not fit; `weight` is as it was then.

    Notes
    -----
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
    if on_device(weight, ids, values):
        engine("functional").scatter_add(weight, ids, values, alpha)
        return
    table = check.weight(weight, writeable=True)
    alpha = check.real(alpha, "alpha")
    if abs(alpha) > float(np.finfo(table.dtype).max):
        raise ValueError(f"alpha must fit into {table.dtype}, got {alpha}")
    batch = as_plan(ids, len(table))
    grads = lookup_gradients(batch, values, table.shape[1], table, "values")
    no_state = np.zeros((0, 0, 1), table.dtype)
    _launch.update_rows(
        table, no_state, no_state[:, :, 0], np.zeros(1, np.int64), batch, grads, -1, addition(alpha, table.dtype)
    )
    batch._recycle()


def coalesce(
    ids: Any, grad_out: Any, num_rows: int, *, padding_idx: int | None = None, scale_grad_by_freq: bool = False
) -> RowGradient:
    """Sum the gradients of repeated ids.

    Parameters
    ----------
    ids : int32 or int64 array of any shape, Plan, or list of arrays
    grad_out : float array of shape ``ids.shape + (dim,)``, or list of such arrays
        Gradient of each looked-up row.
    num_rows : int
        Rows of the table.
    padding_idx : int, optional
        An id whose gradient is dropped.
    scale_grad_by_freq : bool
        Divide each sum by the number of ids that it is of, in all lookups together.

    Returns
    -------
    RowGradient
        ``values[j]`` is the sum of ``grad_out[i]`` over all i with ``ids[i] == rows[j]``.

    Raises
    ------
    TypeError, ValueError, IndexError
        For arguments that do not fit.

    Notes
    -----
    Equals the rows of ``onehot(ids).T @ grad_out`` that have an id; see `sparsembed.reference.coalesce`.  Sums
    run in the order of the ids, those of more than 512 in chunks of 512, so results repeat bit for bit.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> g = se.coalesce(np.array([7, 2, 7]), np.ones((3, 1)), num_rows=9)
    >>> g.rows, g.values.ravel()
    (array([2, 7]), array([1., 2.]))
    """
    if on_device(ids, grad_out):
        options = {"padding_idx": padding_idx, "scale_grad_by_freq": scale_grad_by_freq}
        return engine("functional").coalesce(ids, grad_out, num_rows, **options)  # type: ignore[no-any-return]
    num_rows = check.count(num_rows, "num_rows")
    padding = check.padding(padding_idx, num_rows)
    by_count = check.flag(scale_grad_by_freq, "scale_grad_by_freq")
    batch = as_plan(ids, num_rows)
    grads = lookup_gradients(batch, grad_out, None, None, by_count=by_count)
    first = grad_out[0] if isinstance(grad_out, list | tuple) and grad_out else grad_out
    return row_gradient(batch, grads, num_rows, padding, kind_of(first))
