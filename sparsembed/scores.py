"""Scores: the dot product of each row of a bag with one vector of the bag, and steps from their gradients."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import _check as check
from ._cpu.inputs import finite
from ._engine import CPU, engine_of
from ._frameworks import framework_of
from ._gradients import check_bags
from .bags import Bags
from .losses import Loss
from .plan import Plan, is_several, original


def dot(weight: Any, bags: Any, x: Any, out: Any = None, *, padding_idx: int | None = None) -> Any:
    """Scores: the dot product of each row of a bag with the vector of the bag.

    Parameters
    ----------
    weight : float32, float64 or float16 array of shape (num_rows, dim)
        Any strides; never copied.
    bags : Bags, integer array of shape (n, k), or Plan of such an array
        Bags without weights and without a mode other than "sum".  An array has a bag of k ids in each row.
    x : float array of shape (num_bags, dim), or (n, dim)
        One vector of each bag; another float dtype than that of the result is converted.
    out : array of shape (len(bags.ids),), or (n, k), optional
        C-contiguous; written to and returned.
    padding_idx : int, optional
        An id whose score is 0.

    Returns
    -------
    array of shape (len(bags.ids),), or (n, k) for an array of ids
        ``weight[ids[p]] @ x[b]`` for each id p of bag b, in the dtype of `weight`; float32 for a float16 table.

    Raises
    ------
    TypeError
        If `weight` or `x` hold no floats, `x` requires a gradient, ids are no integers, or `out` has another dtype.
    ValueError
        If bags have weights or a mode, ids have not two axes, `x` or `out` another shape, or `out` overlaps an
        argument.
    IndexError
        If an id or `padding_idx` is out of range.
        After each of these nothing has been written.

    See Also
    --------
    EmbeddingTable.dot : the same for a table that is trained.
    pool : the gradient of `x` is ``pool(weight, bags.with_weights(grad_scores))``.
    per_sample_weights_gradient : the same sums in float64, at a lower speed.

    Notes
    -----
    Also known as sampled dense-dense matrix multiplication (SDDMM): entries of ``x @ weight.T`` where a matrix of bags
    is not zero.  No (n, dim) array is made: reads ``n * dim * itemsize`` bytes for n ids, and writes one number for
    each.  Sums are in the dtype of the result, in an order that depends on `dim` alone.
    See `sparsembed.reference.dot`.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> weight = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    >>> se.dot(weight, se.Bags.from_lists([[0, 1], [2]]), np.array([[1.0, 5.0], [1.0, 1.0]]))
    array([ 1., 10.,  6.])
    >>> se.dot(weight, [[0, 1], [2, 2]], np.array([[1.0, 5.0], [1.0, 1.0]]))
    array([[ 1., 10.],
           [ 6.,  6.]])
    """
    engine = engine_of(weight, bags, x, out)
    table = engine.weight(weight)
    return scores_of(engine, table, weight, bags, x, out, check.padding(padding_idx, table.num_rows))


def scores_of(
    engine: Any, table: Any, given: Any, bags: Any, x: Any, out: Any, padding: int, contents: Any = None
) -> Any:
    """Return `dot` of the caller's weight, or of a table's contents, whose rows may have missed steps."""
    bags, shape = _bags_of(engine, bags)
    place, free = bags._place, contents is None or contents.is_free
    if out is None and free and (found := engine.dot_few(table, place, x, padding, given)) is not None:
        return found if len(shape) == 1 else found.reshape(shape)
    vectors = _vectors(engine, x, place.num_bags, table.dim, table.result)
    arrays = {"x": x, "ids": bags.ids, "offsets": bags.offsets}
    call = engine.begin(contents, places=(place,), like=place.caller, weight=given, out=out, **arrays)
    try:
        if out is not None or not engine.checks_while_reading:
            engine.check_bags(call, place, table.num_rows)
        lies = {"weight": table.array, "ids": place.ids, "offsets": place.offsets, "x": vectors}
        array, result = engine.result(call, out, shape, table.result, **lies)
        flat = array if len(shape) == 1 else array.reshape(len(place.ids))
        with _reading(engine, contents, call) as missed:
            engine.dot(call, table, place, vectors, padding, flat, missed)
        return engine.finish(call, result, out)
    finally:
        engine.end(call)


def loss_of(contents: Any, bags: Any, x: Any, labels: Any, loss: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Return the loss of a table's scores, and its gradients with respect to x and the scores."""
    if not isinstance(loss, Loss):
        raise TypeError(f"loss must be a loss such as sparsembed.losses.Logistic(), got {check.kind_of(loss)}")
    if not hasattr(loss, "Hyper"):
        raise TypeError(f"loss is a {type(loss).__name__}, which defines neither term nor pair; use Logistic() or such")
    engine, table = contents.engine, contents.table
    bags, shape = _bags_of(engine, bags)
    place, dtype = bags._place, table.result
    vectors = _vectors(engine, x, place.num_bags, table.dim, dtype, instead="pass x.detach(), and grad_x to x.backward")
    marks = _labels(engine, labels, loss, shape, dtype)
    shares = None if weights is None else _numbers(engine, weights, "weights", (place.num_bags,), dtype, "bag")
    arrays = {"x": x, "ids": bags.ids, "offsets": bags.offsets, "labels": labels, "weights": weights}
    call = engine.begin(contents, places=(place,), like=place.caller, **arrays)
    try:
        if not engine.checks_while_reading:
            engine.check_bags(call, place, table.num_rows)
        scores, grad_scores = engine.result(call, None, shape, dtype)
        grad, grad_x = engine.result(call, None, (place.num_bags, table.dim), dtype)
        flat = scores if len(shape) == 1 else scores.reshape(len(place.ids))
        with _reading(engine, contents, call) as missed:
            total = engine.dot_loss(
                call, table, place, vectors, contents.padding, loss, marks, shares, flat, grad, missed
            )
        return total, engine.finish(call, grad_x), engine.finish(call, grad_scores)
    finally:
        engine.end(call)


@contextmanager
def _reading(engine: Any, contents: Any, call: Any) -> Iterator[Any]:
    """Yield the missed steps of the rows of a table, which is locked if that is needed; None for an array."""
    if contents is None or contents.is_free:
        yield None
        return
    with contents.lock:
        missed = engine.missed(contents)
        with engine.reading(contents, call):
            yield missed


def _labels(engine: Any, labels: Any, loss: Loss, shape: tuple[int, ...], dtype: Any) -> Any:
    """Check the labels that a loss takes; return them flat, in a dtype, or None."""
    name = type(loss).__name__
    if isinstance(labels, Loss):
        raise TypeError(f"labels must be an array of floats or None, got a loss; pass it as loss={labels!r}")
    if labels is None:
        if loss.term is not None:
            raise TypeError(f"labels is None, but {name} needs an array of floats of shape {shape}, one for each score")
        return None
    if loss.pair is not None:
        raise ValueError(f"labels must be None for {name}, which prefers the first id of each bag; put that id first")
    if engine is CPU:
        given = framework_of(labels).to_numpy(labels, "labels")
        labels = given.astype(dtype) if given.dtype.kind == "b" else labels
    return _numbers(engine, labels, "labels", shape, dtype, "score").reshape(math.prod(shape))


def _numbers(
    engine: Any, value: Any, name: str, shape: tuple[int, ...], dtype: Any, what: str, instead: str | None = None
) -> Any:
    """Check an array of one number for each score or bag; return it in a dtype."""
    framework_of(value).refuse_tracked(value, name, instead or f"pass {name}.detach()")
    array = engine.sample_weights(value, dtype, name)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, one number for each {what}, got {array.shape}")
    return array


def _bags_of(engine: Any, bags: Any, name: str = "bags") -> tuple[Bags, tuple[int, ...]]:
    """Return bags whose rows can have scores, and the shape of the scores; rows of an (n, k) array become bags."""
    if not isinstance(bags, Bags):
        return _of_rows(engine, bags, name)
    if bags.per_sample_weights is not None:
        raise ValueError(
            f"{name} must have no per_sample_weights here, for the gradients of the scores take their place; leave "
            "them out with bags.with_weights(None)"
        )
    if bags.mode not in (None, "sum"):
        raise ValueError(f"{name} must have no mode but 'sum' here, got {bags.mode!r}; make them without a mode")
    check_bags(engine, bags, None)
    return bags, (len(bags._place.ids),)


def _of_rows(engine: Any, ids: Any, name: str) -> tuple[Bags, tuple[int, ...]]:
    """Return bags of the rows of an (n, k) array of ids, or of a plan of one, and the shape of the array."""
    given, bags = original(ids), Bags.__new__(Bags)
    flat, shape = engine.ids(given, name)
    if len(shape) != 2:
        raise ValueError(
            f"{name} must be Bags, or ids of shape (n, k), one row for each vector, got ids of shape {shape}; for one "
            "id a vector use ids[:, None]"
        )
    ends = engine.even_offsets(given, *shape)
    bags._engine, bags._plan = engine, ids if isinstance(ids, Plan) else None
    place = engine.Place(flat, ends, None, engine.caller_of(ids=given))
    bags._hold(place, {"ids": given, "offsets": ends, "per_sample_weights": None}, None)
    return bags, shape


def _vectors(
    engine: Any,
    x: Any,
    num_bags: int,
    dim: int,
    dtype: Any,
    name: str = "x",
    instead: str = "use sparsembed.torch.dot",
) -> Any:
    """Check the vectors of bags; return them in a dtype, with contiguous rows."""
    if x is None or isinstance(x, Bags):
        raise TypeError(f"{name} must be a float array of shape {(num_bags, dim)}, got {check.kind_of(x)}")
    framework = framework_of(x)
    framework.refuse_tracked(x, name, instead)
    given = x if hasattr(x, "shape") or engine is not CPU else framework.to_numpy(x, name)
    shape = tuple(getattr(given, "shape", (num_bags, dim)))  # other device arrays are checked with the next line
    if shape != (num_bags, dim):
        raise ValueError(f"{name} must have shape {(num_bags, dim)}, one vector for each bag, got {shape}")
    return engine.gradient(x, (num_bags,), dim, dtype, name)


def weighted(its: Any, bags: Any, x: Any, grad_scores: Any, check_finite: bool = False) -> tuple[Any, Any]:
    """Return bags with the gradients of scores as weights, and the vectors of bags, as `update_pooled` takes them."""
    if not (isinstance(bags, list | tuple) and (is_several(bags) or any(isinstance(b, Bags) for b in bags))):
        return _weighted_one(its, bags, x, grad_scores, check_finite, "")
    counts = [len(each) if isinstance(each, list | tuple) else 0 for each in (bags, x, grad_scores)]
    if len({*counts}) > 1:
        raise ValueError(
            f"bags, x and grad_scores must be lists of one length, got bags of {counts[0]}, "
            f"{check.kind_of(x)} and {check.kind_of(grad_scores)}"
        )
    parts = [
        _weighted_one(its, *each, check_finite, f"[{i}]")
        for i, each in enumerate(zip(bags, x, grad_scores, strict=True))
    ]
    return [bag for bag, _ in parts], [vectors for _, vectors in parts]


def _weighted_one(its: Any, bags: Any, x: Any, grad_scores: Any, check_finite: bool, after: str) -> tuple[Bags, Any]:
    engine, table = its.engine, its.table
    found, shape = _bags_of(engine, bags, f"bags{after}")
    vectors = _vectors(engine, x, found.num_bags, table.dim, table.result, f"x{after}")
    name = f"grad_scores{after}"
    if grad_scores is None:
        raise TypeError(f"{name} is None, expected an array of floats of shape {shape}, one number for each score")
    weights = _numbers(engine, grad_scores, name, shape, None, "score", "pass scores.grad")
    if check_finite and engine is CPU:  # here, so that messages name these arguments; a GPU refuses the check
        finite(vectors, f"x{after}")
        finite(weights, name)
    given = grad_scores
    if len(shape) > 1:
        weights = weights.reshape(len(found._place.ids))
        given = grad_scores.reshape(weights.size) if hasattr(grad_scores, "reshape") else weights  # the caller's
    place = found._place._replace(weights=weights)
    given = {"ids": found.ids, "offsets": found.offsets, "per_sample_weights": given}
    return found._with(place, given, found._plan), x
