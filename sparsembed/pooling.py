"""Stateless operations on bags: pool, and the gradients of pool."""

from typing import Any

import numpy as np

from . import _check as check
from ._engine import CPU, engine_of
from ._gradients import Pooled, arrays_of, check_bags, mode_of, place_of, pooled
from .bags import Bags
from .gradient import RowGradient
from .plan import as_batch


def pool(weight: Any, bags: Bags, mode: str | None = None, out: Any = None, *, padding_idx: int | None = None) -> Any:
    """Pool the rows of each bag into one row.

    Parameters
    ----------
    weight : float32, float64 or float16 array of shape (num_rows, dim)
    bags : Bags
    mode : {"sum", "mean", "sqrtn", "max"}, optional
        That of the bags; "sum" where they have none; another than that of the bags raises.  With weights `a`:
        sum ``sum(a * x)``; mean ``sum(a * x) / sum(a)``; sqrtn ``sum(a * x) / sqrt(sum(a**2))``; max takes no
        weights.
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
    TypeError
        If `weight` holds no floats, `bags` is no Bags, or `out` has another dtype.
    ValueError
        If `mode` is none of the four or not that of the bags, bags with weights are pooled with "max", or `out` does
        not fit or overlaps an argument.
    IndexError
        If an id or `padding_idx` is out of range.
        After each of these nothing has been written.

    See Also
    --------
    EmbeddingTable.pool : the same for a table that is trained.
    pool_gradient, per_sample_weights_gradient : its derivatives.

    Notes
    -----
    Reads ``n * dim * itemsize`` bytes for n ids, and writes one row for each bag; allocates the result alone.
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
    if out is None and padding_idx is None and (found := pool_few(CPU, weight, bags, mode, -1)) is not None:
        return found
    engine = engine_of(weight, bags, out)
    table = engine.weight(weight)
    return pool_bags(engine, table, weight, bags, mode, out, check.padding(padding_idx, table.num_rows))


def pool_few(engine: Any, weight: Any, bags: Any, mode: Any, padding: int, table: Any = None) -> Any:
    """Return `pool` of a small batch whose arguments need no further check, or None."""
    if type(bags) is not Bags or bags._engine is not engine or not (mode is None or type(mode) is str):
        return None
    number = bags._choices.get(mode)
    return None if number is None else engine.pool_few(weight, bags._place, number, padding, table)


def pool_bags(
    engine: Any, table: Any, given: Any, bags: Bags, mode: str | None, out: Any, padding: int, contents: Any = None
) -> Any:
    """Return `pool` of the caller's weight, or of a table's contents, whose rows may have missed steps."""
    if contents is not None and contents.is_free:
        found = pool_few(engine, table.array, bags, mode, padding, table)
        if found is not None:
            return found
    number = check_bags(engine, bags, mode)
    place = place_of(engine, bags, table.result)
    call = engine.begin(contents, places=(place,), like=place.caller, weight=given, out=out, **arrays_of(bags))
    try:
        if out is not None or place.weights is not None or not engine.checks_while_reading:
            engine.check_bags(call, place, table.num_rows)
        lies = {"ids": place.ids, "offsets": place.offsets, "per_sample_weights": place.weights}
        shape = (place.num_bags, table.dim)
        array, result = engine.result(call, out, shape, table.result, weight=table.array, **lies)
        if contents is None or contents.is_free:
            engine.pool(call, table, place, number, padding, array)
        else:
            with contents.lock:
                missed = engine.missed(contents)
                with engine.reading(contents, call):
                    engine.pool(call, table, place, number, padding, array, missed)
        return engine.finish(call, result, out)
    finally:
        engine.end(call)


def pool_gradient(
    bags: Bags,
    grad_out: Any,
    num_rows: int,
    mode: str | None = None,
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
    mode : {"sum", "mean", "sqrtn", "max"}, optional
        As in `pool`.
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
        Of the rows in the bags, but for padding; in the dtype of `grad_out`, at least float32.

    Raises
    ------
    TypeError
        If `bags` is no Bags, or `grad_out` holds no floats, is None, or requires a gradient itself.
    ValueError
        If a shape or `mode` does not fit, or `weight` is missing for mode "max" or given for another.
    IndexError
        If an id or `padding_idx` is out of range.

    See Also
    --------
    EmbeddingTable.gradient_pooled : the same of a table, whose padding and options it knows.

    Notes
    -----
    A bag does not know the padding of a table: give `padding_idx` here where it was given to `pool`.
    With the matrix of ``pool(weight) = B @ weight`` it is ``B.T @ grad_out``; in mode "max" each column goes to the
    row that won it.  See `sparsembed.reference.pool_gradient`.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> bags = se.Bags.from_lists([[0, 1], [1]])
    >>> se.pool_gradient(bags, np.array([[2.0], [5.0]]), num_rows=3, mode="mean").values.ravel()
    array([1., 6.])
    """
    engine = engine_of(bags, grad_out, weight)
    num_rows = check.count(num_rows, "num_rows")
    mode = mode_of([bags], mode)
    if (mode == "max") != (weight is not None):
        needs = "needs weight=, the table that was pooled" if mode == "max" else "takes no weight"
        raise ValueError(f"mode={mode!r} {needs}")
    table = None if weight is None else engine.weight(weight)
    if table is not None and table.num_rows != num_rows:
        raise ValueError(f"weight must have num_rows = {num_rows} rows, got {table.num_rows}")
    padding = check.padding(padding_idx, num_rows)
    by_count = check.flag(scale_grad_by_freq, "scale_grad_by_freq")
    lookups = pooled(engine, [bags], [grad_out], mode, None if table is None else table.dim, None, num_rows)
    # In a tuple the weight does not decide whose arrays come out.
    arrays = {"grad_out": grad_out, "weight": (weight,)}
    return _summed(engine, lookups, bags, arrays, table, num_rows, padding, by_count)


def _summed(
    engine: Any,
    lookups: Pooled,
    bags: Bags,
    arrays: dict[str, Any],
    table: Any,
    num_rows: int,
    padding: int,
    by_count: bool,
    contents: Any = None,
) -> RowGradient:
    """Return the sums of the gradients of one pooled lookup."""
    call = engine.begin(contents, places=lookups.places, **arrays, **arrays_of(bags))
    try:
        rows, grads = bag_gradients(engine, call, lookups, num_rows, padding, table, by_count, contents)
        return RowGradient._summed(engine, call, rows, grads, num_rows, padding)
    finally:
        engine.end(call)


def bag_gradients(
    engine: Any,
    call: Any,
    lookups: Pooled,
    num_rows: int,
    padding: int,
    table: Any,
    by_count: bool,
    contents: Any = None,
) -> tuple[Any, Any]:
    """Return the sorted rows of bags, and their gradients; mode max compares rows that have caught up."""
    where = (num_rows, padding, table, by_count)
    if contents is None or contents.is_free or lookups.number != check.MODES["max"]:
        return engine.of_bags(call, lookups, *where)  # type: ignore[no-any-return]
    with contents.lock:
        missed = engine.missed(contents)
        with engine.reading(contents, call):
            return engine.of_bags(call, lookups, *where, missed)  # type: ignore[no-any-return]


def pooled_gradients(
    engine: Any,
    bags: list[Any],
    grad_out: list[Any],
    mode: Any,
    table: Any,
    num_rows: int,
    padding: int,
    by_count: bool,
    contents: Any,
    check_finite: bool = False,
) -> RowGradient:
    """Return the gradient of the pooled lookups of one step as a `RowGradient`."""
    if mode == "max" and len(bags) > 1 and engine.sums_max_apart:
        total = max_gradient(bags, grad_out, engine, table, num_rows, padding, by_count, contents)
        if check_finite and not total.is_finite():
            raise ValueError("grad_out must be finite, got NaN or infinity")
        return total
    lookups = pooled(engine, bags, grad_out, mode, table.dim, table.result, num_rows)
    call = engine.begin(contents, places=lookups.places, grad_out=grad_out, **arrays_of(*bags))
    try:
        rows, grads = bag_gradients(engine, call, lookups, num_rows, padding, table, by_count, contents)
        if check_finite:
            engine.refuse_infinite(grads, "grad_out")
        return RowGradient._summed(engine, call, rows, grads, num_rows, padding)
    finally:
        engine.end(call)


def pooled_gradient(
    bags: Bags,
    grad_out: Any,
    mode: str | None,
    engine: Any,
    table: Any,
    num_rows: int,
    padding: int,
    by_count: bool,
    contents: Any = None,
) -> RowGradient:
    """Return the gradient of one pooled lookup as a `RowGradient`."""
    lookups = pooled(engine, [bags], [grad_out], mode, table.dim, table.dtype, num_rows)
    arrays = {"grad_out": grad_out}
    return _summed(engine, lookups, bags, arrays, table, num_rows, padding, by_count, contents)


def max_gradient(
    bags: list[Bags],
    grad_out: list[Any],
    engine: Any,
    table: Any,
    num_rows: int,
    padding: int,
    by_count: bool,
    contents: Any = None,
) -> RowGradient:
    """Return the gradient of several max-pooled lookups: the sum of one gradient per lookup."""
    if len(bags) != len(grad_out):
        raise ValueError(f"grad_out must be a list of {len(bags)} gradients, one per set of bags, got {len(grad_out)}")
    where = ("max", engine, table, num_rows, padding, False, contents)
    parts = [pooled_gradient(each, grad, *where) for each, grad in zip(bags, grad_out, strict=True)]
    total = sum(parts[1:], parts[0])
    if by_count:  # divide by the number of occurrences in all lookups
        together, *_ = as_batch(engine, [each.ids for each in bags], num_rows)
        counts = np.diff(together.offsets)[np.searchsorted(together.rows, total._rows)]
        total._values /= counts[:, None].astype(total._values.dtype)
    return total


def per_sample_weights_gradient(
    weight: Any, bags: Bags, grad_out: Any, mode: str | None = None, *, padding_idx: int | None = None
) -> Any:
    """Gradient of `pool` with respect to the per-sample weights (taken as one where absent).

    Parameters
    ----------
    weight : array of shape (num_rows, dim)
    bags : Bags
    grad_out : float array of shape (num_bags, dim)
    mode : {"sum", "mean", "sqrtn"}, optional
        As in `pool`.
    padding_idx : int, optional
        As in `pool`; its entries get zero.

    Returns
    -------
    array of shape (len(bags.ids),)
        In the dtype of `weight`; float32 for a float16 table.

    Raises
    ------
    TypeError
        If `weight` or `grad_out` holds no floats, or `bags` is no Bags.
    ValueError
        If a shape or `mode` does not fit; mode "max" has no weights.
    IndexError
        If an id or `padding_idx` is out of range.

    See Also
    --------
    pool : what it is the derivative of.

    Notes
    -----
    Reads each row once: ``n * dim * itemsize`` bytes for n ids.
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
    engine = engine_of(weight, bags, grad_out)
    table = engine.weight(weight)
    if (mode := mode_of([bags], mode)) == "max":
        raise ValueError("mode='max' has no per_sample_weights, so no gradient of them; use sum, mean or sqrtn")
    number, padding = check_bags(engine, bags, mode), check.padding(padding_idx, table.num_rows)
    place = place_of(engine, bags, table.result)
    grad = engine.gradient(grad_out, (place.num_bags,), table.dim, table.result)
    call = engine.begin(places=(place,), weight=weight, grad_out=grad_out, **arrays_of(bags))
    try:
        engine.check_bags(call, place, table.num_rows)
        array, result = engine.result(call, None, (len(place.ids),), table.result)
        engine.weights_gradient(call, table, place, number, padding, grad, array)
        return engine.finish(call, result)
    finally:
        engine.end(call)
