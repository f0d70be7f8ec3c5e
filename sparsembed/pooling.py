"""The stateless layer, bags of rows: pool them, and carry gradients back."""

from typing import Any

from . import _launch, _memory
from . import _validate as check
from ._arrays import kind_of, kind_of_either, to_kind
from ._backward import check_bags, check_mode, pooled_gradients, result_dtype, row_gradient, table_of_max, weights_of
from ._device import engine, on_device
from ._lag import Lag
from .bags import Bags
from .gradient import RowGradient


def pool(weight: Any, bags: Bags, mode: str = "sum", out: Any = None, *, padding_idx: int | None = None) -> Any:
    """Pool the rows of each bag into one row.

    Parameters
    ----------
    weight : float32, float64 or float16 array of shape (num_rows, dim)
    bags : Bags
    mode : {"sum", "mean", "sqrtn", "max"}
        With weights `a`: sum ``sum(a * x)``; mean ``sum(a * x) / sum(a)``; sqrtn
        ``sum(a * x) / sqrt(sum(a**2))``; max takes no weights.
    out : array of shape (num_bags, dim), optional
        C-contiguous; written to and returned.
    padding_idx : int, optional
        An id that contributes nothing and counts in no divisor.

    Returns
    -------
    array of shape (num_bags, dim)
        In the dtype of `weight`; float32 for a float16 table.

    Raises
    ------
    TypeError, ValueError, IndexError
        For arguments that do not fit; nothing is written then.

    Notes
    -----
    A bag that is empty, all padding, or whose divisor is zero gives zeros.  Max: a NaN
    always propagates.  Rows are added in the order of the bag.  Formulas: TensorFlow,
    tensorflow/python/ops/embedding_ops.py; see `sparsembed.reference.pool`.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> bags = se.Bags.from_lists([[0, 1], [1]], per_sample_weights=[[1.0, 3.0], [2.0]])
    >>> se.pool(np.array([[0.0], [4.0]]), bags, mode="mean").ravel()
    array([3., 4.])
    """
    if on_device(weight, bags, out):
        return engine("pooling").pool(weight, bags, mode, out, padding_idx=padding_idx)
    return pool_bags(weight, bags, mode, out, padding_idx, None)


def pool_bags(weight: Any, bags: Bags, mode: str, out: Any, padding_idx: int | None, lag: Lag | None) -> Any:
    """`pool` of a table whose rows may have to catch up."""
    table = check.weight(weight)
    number, padding = check_bags(bags, len(table), mode, padding_idx)
    dtype, shape = result_dtype(table), (bags.num_bags, table.shape[1])
    lies = {"weight": table, "ids": bags.ids, "offsets": bags.offsets, "per_sample_weights": bags.per_sample_weights}
    result = _memory.empty(shape, dtype) if out is None else check.output(out, shape, dtype, **lies)
    if mode == "max":
        _launch.pool_max(table, bags, padding, result, lag)
    else:
        _launch.pool(table, bags, weights_of(bags, dtype), number, padding, result, lag)
    return out if out is not None else to_kind(result, kind_of_either(weight, bags._kind))


def pool_gradient(
    bags: Bags,
    grad_out: Any,
    num_rows: int,
    mode: str = "sum",
    *,
    padding_idx: int | None = None,
    weight: Any = None,
    scale_grad_by_freq: bool = False,
) -> RowGradient:
    """Gradient of `pool` with respect to the table.

    Parameters
    ----------
    bags : Bags
    grad_out : float array of shape (num_bags, dim)
    num_rows : int
    mode : {"sum", "mean", "sqrtn", "max"}
    padding_idx : int, optional
        As in `pool`.
    weight : array of shape (num_rows, dim)
        The table that was pooled; only needed, and required, for mode "max".
    scale_grad_by_freq : bool
        Divide each row's sum by the number of times that its id occurs in all bags.  In mode "max", too:
        occurrences that win nothing have a gradient of zero, and count.

    Returns
    -------
    RowGradient
        Of the rows in the bags, but for padding.

    Raises
    ------
    TypeError, ValueError, IndexError
        For arguments that do not fit.

    Notes
    -----
    With the matrix of ``pool(weight) = B @ weight`` it is ``B.T @ grad_out``; in mode "max" each column goes to the
    row that won it.  See `sparsembed.reference.pool_gradient`.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> bags = se.Bags.from_lists([[0, 1], [1]])
    >>> se.pool_gradient(bags, np.array([[2.0], [5.0]]), num_rows=3, mode="mean").values.ravel()
    array([1., 6.])
    """
    if on_device(bags, grad_out, weight):
        options = {"padding_idx": padding_idx, "weight": weight, "scale_grad_by_freq": scale_grad_by_freq}
        return engine("pooling").pool_gradient(bags, grad_out, num_rows, mode, **options)  # type: ignore[no-any-return]
    num_rows = check.count(num_rows, "num_rows")
    table = table_of_max(mode, weight, num_rows, check.weight)
    check_mode(bags, mode)
    padding = check.padding(padding_idx, num_rows)
    by_count = check.flag(scale_grad_by_freq, "scale_grad_by_freq")
    batch, grads = pooled_gradients([bags], [grad_out], mode, num_rows, padding, table, None, None, None, by_count)
    return row_gradient(batch, grads, num_rows, padding, kind_of(grad_out))


def per_sample_weights_gradient(
    weight: Any, bags: Bags, grad_out: Any, mode: str = "sum", *, padding_idx: int | None = None
) -> Any:
    """Gradient of `pool` with respect to the per-sample weights (taken as one where absent).

    Parameters
    ----------
    weight : array of shape (num_rows, dim)
    bags : Bags
    grad_out : float array of shape (num_bags, dim)
    mode : {"sum", "mean", "sqrtn"}
    padding_idx : int, optional
        As in `pool`; its entries get zero.

    Returns
    -------
    array of shape (len(bags.ids),)
        In the dtype of `weight`; float32 for a float16 table.

    Raises
    ------
    TypeError, ValueError, IndexError
        For arguments that do not fit; mode "max" has no weights.

    Notes
    -----
    With ``d[p] = <grad_out[b], weight[ids[p]]>`` and `S` the divisor of bag b: sum ``d[p]``; mean
    ``(d[p] - sum(a * d) / S) / S``; sqrtn ``(d[p] - a[p] * sum(a * d) / S**2) / S``: the quotient rule on the
    formulas of `pool`.  See `sparsembed.reference.per_sample_weights_gradient`.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> bags = se.Bags.from_lists([[0, 1]], per_sample_weights=[[1.0, 1.0]])
    >>> se.per_sample_weights_gradient(np.array([[2.0], [6.0]]), bags, np.ones((1, 1)), mode="mean")
    array([-1.,  1.])
    """
    if on_device(weight, bags, grad_out):
        gradient = engine("pooling").per_sample_weights_gradient
        return gradient(weight, bags, grad_out, mode, padding_idx=padding_idx)
    table = check.weight(weight)
    if mode == "max":
        raise ValueError("mode='max' has no per_sample_weights, so no gradient of them; use sum, mean or sqrtn")
    number, padding = check_bags(bags, len(table), mode, padding_idx)
    dtype = result_dtype(table)
    grad = check.gradient(grad_out, (bags.num_bags,), table.shape[1], dtype)
    result = _memory.empty((len(bags.ids),), dtype)
    _launch.weights_gradient(table, bags, weights_of(bags, dtype), grad, number, padding, result)
    return to_kind(result, kind_of_either(weight, kind_of(grad_out)))
