"""Every operation by scipy one-hot matrices in float64: slow, obvious, public.

A batch of ids is a sparse matrix with one 1 per row (`onehot`); a set of bags is a sparse
matrix with one row per bag (`bag_matrix`).  Lookup, pooling and their gradients are products
with these matrices and their transposes.  Use it to test the engine, or any other.

Arguments are those of the functions of the same names in `sparsembed`, in shape and meaning; floats of any
kind are computed with in float64.  Results are float64 arrays, dense where the engine gives a `RowGradient`.
Nothing is checked, and what does not fit raises whatever scipy raises.  Cost: a one-hot row for each id.

Examples
--------
>>> import numpy as np, sparsembed as se
>>> w, ids, grad = np.array([[1.0], [2.0], [4.0]]), [2, 0, 2], np.array([[1.0], [2.0], [3.0]])
>>> se.reference.gather(w, ids).ravel(), se.reference.coalesce(ids, grad, 3).ravel()
(array([4., 1., 4.]), array([2., 0., 4.]))
>>> se.reference.scatter_add(w, ids, grad, alpha=-1.0).ravel()
array([-1.,  2.,  0.])
>>> bags = se.Bags.from_lists([[2, 0], [2]])
>>> se.reference.pool(w, bags, "mean").ravel(), se.reference.argmax(w, bags).ravel()
(array([2.5, 4. ]), array([0, 2]))
>>> se.reference.pool_gradient(bags, np.ones((2, 1)), 3, "mean").ravel()
array([0.5, 0. , 1.5])
>>> se.reference.per_sample_weights_gradient(w, bags, np.ones((2, 1)))
array([4., 1., 4.])
>>> se.reference.update(se.SGD(lr=1.0), w, {}, ids, grad, step=1)[0].ravel()
array([-1.,  2.,  0.])
"""

from typing import Any

import numpy as np
from scipy import sparse

from . import _check as check
from ._formulas import bag_loss, take_step, touched_decay
from ._typing import Array
from .bags import Bags
from .losses import Logistic, Loss
from .rules import Rule

_LOGISTIC = Logistic()


def onehot(ids: Any, num_rows: int) -> sparse.csr_array:
    """One row per id, with a 1 in the id's column: (n, num_rows).

    Parameters
    ----------
    ids : integer array of any shape
    num_rows : int

    Returns
    -------
    scipy.sparse.csr_array of shape (n, num_rows), float64

    Examples
    --------
    >>> import sparsembed as se
    >>> se.reference.onehot([2, 0], 3).toarray()
    array([[0., 0., 1.],
           [1., 0., 0.]])
    """
    flat = _flat(ids)
    return sparse.csr_array((np.ones(len(flat)), (np.arange(len(flat)), flat)), shape=(len(flat), num_rows))


def _flat(ids: Any) -> Array:
    array = np.asarray(ids).reshape(-1)
    return array if array.size else array.astype(np.int64)  # np.asarray([]) is float64


def gather(weight: Any, ids: Any) -> Array:
    """``onehot(ids) @ weight``, in the shape of the ids.

    Parameters
    ----------
    weight : float array of shape (num_rows, dim)
    ids : integer array of any shape

    Returns
    -------
    float64 array of shape ``ids.shape + (dim,)``

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> se.reference.gather(np.array([[1.0], [2.0]]), [1, 1]).ravel()
    array([2., 2.])
    """
    table = np.asarray(weight, np.float64)
    rows: Array = onehot(ids, len(table)) @ table
    return rows.reshape(*np.shape(ids), table.shape[1])


def scatter_add(weight: Any, ids: Any, values: Any, alpha: float = 1.0) -> Array:
    """``weight + alpha * onehot(ids).T @ values``, as a new array.

    Parameters
    ----------
    weight : float array of shape (num_rows, dim)
    ids : integer array of any shape
    values : float array of shape ``ids.shape + (dim,)``
    alpha : float, default 1

    Returns
    -------
    float64 array of shape (num_rows, dim)

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> se.reference.scatter_add(np.zeros((2, 1)), [1, 1], np.ones((2, 1)), alpha=0.5).ravel()
    array([0., 1.])
    """
    table = np.asarray(weight, np.float64)
    return table + alpha * coalesce(ids, values, len(table))


def coalesce(ids: Any, grad_out: Any, num_rows: int, scale_grad_by_freq: bool = False) -> Array:
    """``onehot(ids).T @ grad_out``: the dense gradient, (num_rows, dim).

    With `scale_grad_by_freq`, ``onehot(ids).T @ shares(ids) @ grad_out``.

    Parameters
    ----------
    ids : integer array of any shape
    grad_out : float array of shape ``ids.shape + (dim,)``
    num_rows : int
    scale_grad_by_freq : bool, default False
        Divide by the number of times that each id occurs.

    Returns
    -------
    float64 array of shape (num_rows, dim)

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> se.reference.coalesce([1, 1], np.ones((2, 1)), 3).ravel()
    array([0., 2., 0.])
    """
    grad = np.asarray(grad_out, np.float64)
    matrix = onehot(ids, num_rows)
    if scale_grad_by_freq:
        matrix = shares(ids, num_rows) @ matrix
    dense: Array = matrix.T @ grad.reshape(-1, grad.shape[-1])
    return dense


def shares(ids: Any, num_rows: int) -> sparse.dia_array:
    """Diagonal matrix (n, n): one over the number of times that each occurrence's id occurs.

    Parameters
    ----------
    ids : integer array of any shape
    num_rows : int

    Returns
    -------
    scipy.sparse.dia_array of shape (n, n), float64

    Examples
    --------
    >>> import sparsembed as se
    >>> se.reference.shares([2, 0, 2], 3).diagonal()
    array([0.5, 1. , 0.5])
    """
    matrix = onehot(ids, num_rows)
    return sparse.diags_array(1 / (matrix @ matrix.sum(axis=0)))


def bag_matrix(bags: Bags, num_rows: int, mode: str | None = None, padding_idx: int | None = None) -> sparse.csr_array:
    """The matrix B with ``pool(weight) = B @ weight`` for sum, mean and sqrtn: (num_bags, num_rows).

    Parameters
    ----------
    bags : Bags
    num_rows : int
    mode : {"sum", "mean", "sqrtn"}, optional
        That of the bags, else "sum".
    padding_idx : int, optional
        An id that contributes nothing.

    Returns
    -------
    scipy.sparse.csr_array of shape (num_bags, num_rows), float64

    Examples
    --------
    >>> import sparsembed as se
    >>> se.reference.bag_matrix(se.Bags.from_lists([[0, 2], []]), 3, mode="mean").toarray()
    array([[0.5, 0. , 0.5],
           [0. , 0. , 0. ]])
    """
    return _members(bags, mode, padding_idx) @ onehot(bags.ids, num_rows)


def _members(bags: Bags, mode: str | None, padding_idx: int | None) -> sparse.csr_array:
    """(num_bags, n): the factor of each occurrence in its bag."""
    n, mode = len(bags.ids), check.mode(mode, bags.mode)
    factors = np.ones(n) if bags.per_sample_weights is None else np.asarray(bags.per_sample_weights, np.float64)
    if padding_idx is not None:
        factors = np.where(bags.ids == padding_idx, 0.0, factors)
    members = sparse.csr_array((factors, np.arange(n), bags.offsets), shape=(bags.num_bags, n))
    if mode == "mean":
        divisor = members.sum(axis=1)
    elif mode == "sqrtn":
        divisor = np.sqrt(members.multiply(members).sum(axis=1))
    else:
        divisor = np.ones(bags.num_bags)
    inverse = np.divide(1.0, divisor, out=np.zeros(bags.num_bags), where=divisor != 0)
    return sparse.diags_array(inverse).tocsr() @ members


def _without_zeros(matrix: sparse.csr_array) -> sparse.csr_array:
    """Return the matrix without stored zeros, so that a product with a row of NaN is not NaN where the factor is 0."""
    matrix.eliminate_zeros()
    return matrix


def pool(weight: Any, bags: Bags, mode: str | None = None, padding_idx: int | None = None) -> Array:
    """``bag_matrix @ weight``; for max, the largest element of each column of the bag's rows.

    Parameters
    ----------
    weight : float array of shape (num_rows, dim)
    bags : Bags
    mode : {"sum", "mean", "sqrtn", "max"}, optional
        That of the bags, else "sum".
    padding_idx : int, optional
        An id that contributes nothing.

    Returns
    -------
    float64 array of shape (num_bags, dim)

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> se.reference.pool(np.array([[1.0], [2.0]]), se.Bags.from_lists([[0, 1], [1]])).ravel()
    array([3., 2.])
    """
    table = np.asarray(weight, np.float64)
    if (mode := check.mode(mode, bags.mode)) != "max":
        pooled: Array = bag_matrix(bags, len(table), mode, padding_idx) @ table
        return pooled
    winners = argmax(table, bags, padding_idx)
    columns = np.arange(table.shape[1])
    empty = winners < 0
    ids = np.append(bags.ids, 0)[winners]
    return np.where(empty, 0.0, table[ids, columns])


def argmax(weight: Any, bags: Bags, padding_idx: int | None = None) -> Array:
    """Position in ``bags.ids`` of the first largest element (or first NaN), -1 in an empty bag.

    Parameters
    ----------
    weight : float array of shape (num_rows, dim)
    bags : Bags
    padding_idx : int, optional
        An id that contributes nothing.

    Returns
    -------
    integer array of shape (num_bags, dim)

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> se.reference.argmax(np.array([[1.0], [2.0]]), se.Bags.from_lists([[0, 1], []])).ravel()
    array([ 1, -1])
    """
    table = np.asarray(weight, np.float64)
    winners = np.full((bags.num_bags, table.shape[1]), -1)
    for b in range(bags.num_bags):
        positions = np.arange(bags.offsets[b], bags.offsets[b + 1])
        if padding_idx is not None:
            positions = positions[bags.ids[positions] != padding_idx]
        if len(positions):
            winners[b] = positions[np.argmax(table[bags.ids[positions]], axis=0)]
    return winners


def dot(weight: Any, bags: Any, x: Any, padding_idx: int | None = None) -> Array:
    """Entries of ``x @ weight.T`` where the matrix of the bags is not zero: the scores of their rows.

    Parameters
    ----------
    weight : float array of shape (num_rows, dim)
    bags : Bags, or integer array of shape (n, k)
    x : float array of shape (num_bags, dim), or (n, dim)
    padding_idx : int, optional
        An id whose score is 0.

    Returns
    -------
    float64 array of shape (len(bags.ids),), or (n, k)

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> se.reference.dot(np.array([[1.0], [2.0]]), se.Bags.from_lists([[0, 1], [1]]), np.array([[3.0], [5.0]]))
    array([ 3.,  6., 10.])
    """
    table, vectors = np.asarray(weight, np.float64), np.asarray(x, np.float64)
    if isinstance(bags, Bags):
        ids, bag_of = bags.ids, np.repeat(np.arange(bags.num_bags), np.diff(bags.offsets))
    else:
        ids = np.asarray(bags)
        bag_of = np.arange(len(ids))[:, None] + np.zeros_like(ids)
    entries = (
        (onehot(bag_of, len(vectors)) @ vectors * (onehot(ids, len(table)) @ table)).sum(axis=1).reshape(ids.shape)
    )
    return entries if padding_idx is None else np.where(ids == padding_idx, 0.0, entries)


def dot_loss(
    weight: Any,
    bags: Any,
    x: Any,
    labels: Any = None,
    loss: Loss = _LOGISTIC,
    weights: Any = None,
    padding_idx: int | None = None,
) -> tuple[float, Array, Array]:
    """Loss of the scores of `dot`, and its gradients with respect to x and the scores, bag by bag.

    Parameters
    ----------
    weight : float array of shape (num_rows, dim)
    bags : Bags, or integer array of shape (n, k)
    x : float array of shape (num_bags, dim), or (n, dim)
    labels : array of the shape of the scores, optional
    loss : Loss, default Logistic()
    weights : float array of shape (num_bags,), optional
        What the loss of each bag is multiplied by.
    padding_idx : int, optional
        An id that is left out of every bag.

    Returns
    -------
    loss : float
    grad_x : float64 array of shape (num_bags, dim)
    grad_scores : float64 array of the shape of the scores

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> rows, bags, x = np.array([[1.0], [2.0]]), se.Bags.from_lists([[0, 1]]), np.array([[3.0]])
    >>> se.reference.dot_loss(rows, bags, x, labels=[2.0, 5.0], loss=se.losses.Squared())
    (1.0, array([[3.]]), array([1., 1.]))
    """
    scores = dot(weight, bags, x, padding_idx)
    ids = np.asarray(bags.ids if isinstance(bags, Bags) else bags)
    ends = bags.offsets if isinstance(bags, Bags) else np.arange(len(ids) + 1) * ids.shape[1]
    flat, s, grad = ids.reshape(-1), scores.reshape(-1), np.zeros(scores.size)
    marks = None if labels is None else np.asarray(labels, np.float64).reshape(-1)
    total, shares = 0.0, np.ones(len(ends) - 1) if weights is None else np.asarray(weights, np.float64)
    for share, start, end in zip(shares, ends[:-1], ends[1:], strict=True):
        kept = np.flatnonzero(flat[start:end] != padding_idx) + start  # None is no id
        by_first = loss.term is None and marks is None
        if not len(kept) or (by_first and kept[0] != start):
            continue
        value, slopes = bag_loss(loss, s[kept], None if marks is None else marks[kept])
        total, grad[kept] = total + share * value, share * slopes
    bag_of = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    rows = onehot(flat, len(weight)) @ np.asarray(weight, np.float64)
    grad_x = onehot(bag_of, len(ends) - 1).T @ (grad[:, None] * rows)
    return float(total), grad_x, grad.reshape(scores.shape)


def pool_gradient(
    bags: Bags,
    grad_out: Any,
    num_rows: int,
    mode: str | None = None,
    padding_idx: int | None = None,
    weight: Any = None,
    scale_grad_by_freq: bool = False,
) -> Array:
    """``bag_matrix.T @ grad_out``: the dense gradient; for max, to the winners only.

    With `scale_grad_by_freq`, the gradient of each occurrence is multiplied by its `shares` first.

    Parameters
    ----------
    bags : Bags
    grad_out : float array of shape (num_bags, dim)
    num_rows : int
    mode : {"sum", "mean", "sqrtn", "max"}, optional
        That of the bags, else "sum".
    padding_idx : int, optional
        An id that contributes nothing.
    weight : float array of shape (num_rows, dim), optional
        Needed for mode "max".
    scale_grad_by_freq : bool, default False
        Divide by the number of times that each id occurs.

    Returns
    -------
    float64 array of shape (num_rows, dim)

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> se.reference.pool_gradient(se.Bags.from_lists([[0, 1], [1]]), np.ones((2, 1)), 2).ravel()
    array([1., 2.])
    """
    grad = np.asarray(grad_out, np.float64)
    if (mode := check.mode(mode, bags.mode)) != "max":
        each = _without_zeros(_members(bags, mode, padding_idx)).T @ grad  # gradient of each occurrence
    else:
        each = np.zeros((len(bags.ids), grad.shape[1]))
        for c, winners in enumerate(argmax(weight, bags, padding_idx).T):
            each[winners[winners >= 0], c] = grad[winners >= 0, c]
    return coalesce(bags.ids, each, num_rows, scale_grad_by_freq)


def clip_rows(weight: Any, max_norm: float, norm_type: float = 2.0) -> Array:
    """Return the table with rows whose norm exceeds `max_norm` scaled by ``max_norm / (norm + 1e-7)``.

    Parameters
    ----------
    weight : float array of shape (num_rows, dim)
    max_norm : float
    norm_type : float, default 2
        The p of the norm.

    Returns
    -------
    float64 array of shape (num_rows, dim)

    Examples
    --------
    >>> import sparsembed as se
    >>> se.reference.clip_rows([[3.0, 4.0], [0.3, 0.4]], max_norm=1.0).round(6)
    array([[0.6, 0.8],
           [0.3, 0.4]])
    """
    table = np.asarray(weight, np.float64)
    norms = np.linalg.norm(table, norm_type, axis=1)
    factors = np.where(norms > max_norm, max_norm / (norms + 1e-7), 1.0)
    clipped: Array = sparse.diags_array(factors) @ table
    return clipped


def per_sample_weights_gradient(
    weight: Any, bags: Bags, grad_out: Any, mode: str | None = None, padding_idx: int | None = None
) -> Array:
    """Derivative of ``sum(grad_out * pool(weight))`` for each per-sample weight, by the quotient rule.

    Parameters
    ----------
    weight : float array of shape (num_rows, dim)
    bags : Bags
    grad_out : float array of shape (num_bags, dim)
    mode : {"sum", "mean", "sqrtn"}, optional
        That of the bags, else "sum".
    padding_idx : int, optional
        An id that contributes nothing.

    Returns
    -------
    float64 array of shape (n,)

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> bags = se.Bags.from_lists([[0, 1]])
    >>> se.reference.per_sample_weights_gradient(np.array([[1.0], [2.0]]), bags, np.ones((1, 1)))
    array([1., 2.])
    """
    grad, mode = np.asarray(grad_out, np.float64), check.mode(mode, bags.mode)
    n = len(bags.ids)
    bag_of = np.repeat(np.arange(bags.num_bags), np.diff(bags.offsets))
    counted = np.ones(n, bool) if padding_idx is None else bags.ids != padding_idx
    factors = np.ones(n) if bags.per_sample_weights is None else np.asarray(bags.per_sample_weights, np.float64)
    dots = (grad[bag_of] * gather(weight, bags.ids)).sum(axis=1)  # <grad, row> of each occurrence
    if mode == "sum":
        return np.where(counted, dots, 0.0)
    effective = np.where(counted, factors, 0.0)
    unit = Bags(bags.ids, bags.offsets, effective)
    power = effective if mode == "mean" else effective**2
    total = np.bincount(bag_of, power, minlength=bags.num_bags)
    divisor = total if mode == "mean" else np.sqrt(total)
    slope = np.ones(n) if mode == "mean" else factors / np.where(divisor == 0, 1, divisor)[bag_of]
    pooled = pool(weight, unit, mode)  # the quotient rule: (row - slope * pooled) / divisor
    pulls = (grad * pooled).sum(axis=1)[bag_of]
    safe = np.where(divisor == 0, 1, divisor)[bag_of]
    return np.where(counted & (divisor[bag_of] != 0), (dots - slope * pulls) / safe, 0.0)


def update(
    rule: Rule,
    weight: Any,
    state: dict[str, Any],
    ids: Any,
    grad_out: Any,
    step: int,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """One optimizer step with the dense gradient ``onehot(ids).T @ grad_out``.

    On every row for rules that equal a dense optimizer, else on the touched rows.

    Parameters
    ----------
    rule : one of `sparsembed.rules`, or any rule (then its scalar functions run in float64)
    weight : array of shape (num_rows, dim)
    state : dict of str to array
        Slots (num_rows, dim) and row slots (num_rows,), by name.
    ids, grad_out : arrays
        The batch, as for `coalesce`.
    step : int
        Number of this update, from 1.
    padding_idx : int, optional
    max_norm, norm_type, scale_grad_by_freq
        As in `EmbeddingTable`.

    Returns
    -------
    weight : float64 array of shape (num_rows, dim)
    state : dict of str to float64 array

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> weight, state = se.reference.update(se.SGD(lr=1.0), np.zeros((3, 1)), {}, [2, 2], np.ones((2, 1)), step=1)
    >>> weight.ravel()
    array([ 0.,  0., -2.])
    """
    table = np.array(weight, np.float64)
    names = (*rule.slots, *rule.row_slots)
    slots = {name: np.array(state[name], np.float64) for name in names}
    touched = np.unique(_flat(ids))
    # A rule that equals a dense optimizer steps every row.
    flat = touched if rule.catch_up is None else np.arange(len(table))
    rows = flat[flat != padding_idx] if padding_idx is not None else flat
    dense = coalesce(ids, grad_out, len(table), scale_grad_by_freq) if len(touched) else np.zeros_like(table)
    if decay := touched_decay(rule):
        dense[touched] += decay * table[touched]
    new, new_slots = take_step(rule, table[rows], [slots[name][rows] for name in slots], dense[rows], step)
    table[rows] = new if max_norm is None else clip_rows(new, max_norm, norm_type)
    for name, value in zip(slots, new_slots, strict=True):
        slots[name][rows] = value
    return table, slots
