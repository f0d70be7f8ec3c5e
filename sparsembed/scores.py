"""Scores: the dot product of each row of a bag with one vector of the bag, and steps from their gradients."""

from typing import Any

from . import _check as check
from ._engine import CPU, engine_of
from ._frameworks import framework_of
from ._gradients import check_bags
from .bags import Bags
from .gradient import RowGradient
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
    if out is None and free and (found := engine.dot_few(table, place, x, padding)) is not None:
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
        if free:
            engine.dot(call, table, place, vectors, padding, flat)
        else:
            with contents.lock:
                missed = engine.missed(contents)
                with engine.reading(contents, call):
                    engine.dot(call, table, place, vectors, padding, flat, missed)
        return engine.finish(call, result, out)
    finally:
        engine.end(call)


def _bags_of(engine: Any, bags: Any) -> tuple[Bags, tuple[int, ...]]:
    """Return bags whose rows can have scores, and the shape of the scores; rows of an (n, k) array become bags."""
    if not isinstance(bags, Bags):
        return _of_rows(engine, bags)
    if bags.per_sample_weights is not None:
        raise ValueError(
            "bags must have no per_sample_weights here, for the gradients of the scores take their place; leave them "
            "out with bags.with_weights(None)"
        )
    if bags.mode not in (None, "sum"):
        raise ValueError(f"bags must have no mode but 'sum' here, got {bags.mode!r}; make them without a mode")
    check_bags(engine, bags, None)
    return bags, (len(bags._place.ids),)


def _of_rows(engine: Any, ids: Any) -> tuple[Bags, tuple[int, ...]]:
    """Return bags of the rows of an (n, k) array of ids, or of a plan of one, and the shape of the array."""
    given, bags = original(ids), Bags.__new__(Bags)
    flat, shape = engine.ids(given, "bags")
    if len(shape) != 2:
        raise ValueError(
            f"bags must be Bags, or ids of shape (n, k), one row for each vector, got ids of shape {shape}; for one id "
            "a vector use ids[:, None]"
        )
    ends = engine.even_offsets(given, *shape)
    bags._engine, bags._plan = engine, ids if isinstance(ids, Plan) else None
    place = engine.Place(flat, ends, None, engine.caller_of(ids=given))
    bags._hold(place, {"ids": given, "offsets": ends, "per_sample_weights": None}, None)
    return bags, shape


def _vectors(engine: Any, x: Any, num_bags: int, dim: int, dtype: Any) -> Any:
    """Check the vectors of bags; return them in a dtype, with contiguous rows."""
    if x is None or isinstance(x, Bags):
        raise TypeError(f"x must be a float array of shape {(num_bags, dim)}, got {check.kind_of(x)}")
    framework = framework_of(x)
    framework.refuse_tracked(x, "x", "use sparsembed.torch.dot")
    given = x if hasattr(x, "shape") or engine is not CPU else framework.to_numpy(x, "x")
    shape = tuple(getattr(given, "shape", (num_bags, dim)))  # other device arrays are checked with the next line
    if shape != (num_bags, dim):
        raise ValueError(f"x must have shape {(num_bags, dim)}, one vector for each bag, got {shape}")
    return engine.gradient(x, (num_bags,), dim, dtype, "x")


class Scores:
    """What tables do with scores: part of `EmbeddingTable`."""

    _contents: Any

    def dot(self, bags: Any, x: Any, *, out: Any = None) -> Any:
        """Scores: the dot product of each row of a bag with the vector of the bag; see `sparsembed.dot`.

        Parameters
        ----------
        bags : Bags, integer array of shape (n, k), or Plan of such an array
            Bags without weights and without a mode other than "sum".  An array has a bag of k ids in each row.
        x : float array of shape (num_bags, dim), or (n, dim)
        out : array of shape (len(bags.ids),), or (n, k), optional
            C-contiguous; written to and returned.

        Returns
        -------
        array of shape (len(bags.ids),), or (n, k) for an array of ids
            Of the kind of `x` (NumPy, torch, jax), in the dtype of the table; float32 for a float16 table.  The
            padding has the score 0.

        Raises
        ------
        TypeError
            If `x` holds no floats or requires a gradient, ids are no integers, or `out` has another dtype.
        ValueError
            If bags have weights or a mode, ids have not two axes, `x` or `out` another shape, or `out` overlaps an
            argument.
        IndexError
            If an id is out of range.

        See Also
        --------
        EmbeddingTable.update_dot : the step from the gradient of the scores.

        Notes
        -----
        Reads ``n * dim * itemsize`` bytes for n ids; if the optimizer equals a dense one, the state of these rows,
        too: they are read with the steps that they have missed, and nothing is written.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable(9, 4, padding_idx=0, rng=0)
        >>> table.dot([[1, 2, 0], [3, 0, 0]], np.ones((2, 4), np.float32)).shape
        (2, 3)
        """
        its = self._contents
        return scores_of(its.engine, its.table, None, bags, x, out, its.padding, its)

    def update_dot(self, bags: Any, x: Any, grad_scores: Any, *, check_finite: bool = False) -> None:
        """Take one optimizer step from the gradient of scores, in place.

        Parameters
        ----------
        bags : Bags, integer array of shape (n, k), or Plan of such an array; or a list of them
            As in `dot`.  A list means that one step made several sets of scores from the table.
        x : float array of shape (num_bags, dim); or a list of them
            The vectors that `dot` was given.
        grad_scores : float array of the shape of the scores; or a list of them
        check_finite : bool
            Refuse NaN and infinity before any row changes.

        Raises
        ------
        TypeError
            If `x` or `grad_scores` hold no floats, are None, or require a gradient, or ids are no integers.
        ValueError
            If the table has no optimizer, bags have weights or a mode, lists are not equally long, a shape does not
            fit, or `check_finite` finds NaN or infinity.
        IndexError
            If an id is out of range.
            After each of these, table, state and step are as they were.

        See Also
        --------
        EmbeddingTable.gradient_dot : the same gradient as a value.
        EmbeddingTable.update_pooled : steps of scores and of pooled rows together.

        Notes
        -----
        The gradient of row ``ids[p]`` is ``grad_scores[p] * x[b]``, summed over the ids of the step: this is
        ``update_pooled(bags.with_weights(grad_scores), x)``, bit for bit.  The gradient of `x` is
        ``pool(bags.with_weights(grad_scores))``, to be taken before the step.  To join both kinds in one step, pass a
        list to `update_pooled`.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable.from_array(np.zeros((3, 2)), optimizer=se.SGD(lr=1.0))
        >>> table.update_dot([[0, 2]], np.array([[1.0, 2.0]]), np.array([[-1.0, 0.5]]))
        >>> table.weight
        array([[ 1. ,  2. ],
               [ 0. ,  0. ],
               [-0.5, -1. ]])
        """
        self._contents.trainable()
        self.update_pooled(*self._weighted(bags, x, grad_scores), check_finite=check_finite)  # type: ignore[attr-defined]

    def gradient_dot(self, bags: Any, x: Any, grad_scores: Any) -> RowGradient:
        """Gradient of scores with respect to the table, as a value.

        Parameters
        ----------
        bags : Bags, integer array of shape (n, k), or Plan of such an array; or a list of them
            As in `update_dot`.
        x : float array of shape (num_bags, dim); or a list of them
        grad_scores : float array of the shape of the scores; or a list of them

        Returns
        -------
        RowGradient
            To be clipped, added or scaled, and given to `EmbeddingTable.apply`.

        Raises
        ------
        TypeError
            If `x` or `grad_scores` hold no floats, are None, or require a gradient, or ids are no integers.
        ValueError
            If bags have weights or a mode, lists are not equally long, or a shape does not fit.
        IndexError
            If an id is out of range.

        See Also
        --------
        EmbeddingTable.update_dot : the step from it.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable(3, 2, rng=0)
        >>> table.gradient_dot([[0, 2]], np.array([[1.0, 2.0]]), np.array([[-1.0, 0.5]])).values
        array([[-1. , -2. ],
               [ 0.5,  1. ]], dtype=float32)
        """
        return self.gradient_pooled(*self._weighted(bags, x, grad_scores))  # type: ignore[attr-defined, no-any-return]

    def _weighted(self, bags: Any, x: Any, grad_scores: Any) -> tuple[Any, Any]:
        """Return bags with the gradients of scores as weights, and the vectors, as `update_pooled` takes them."""
        if not (isinstance(bags, list | tuple) and (is_several(bags) or any(isinstance(b, Bags) for b in bags))):
            return self._weighted_one(bags, x, grad_scores, "")
        counts = [len(each) if isinstance(each, list | tuple) else 0 for each in (bags, x, grad_scores)]
        if len({*counts}) > 1:
            raise ValueError(
                f"bags, x and grad_scores must be lists of one length, got bags of {counts[0]}, "
                f"{check.kind_of(x)} and {check.kind_of(grad_scores)}"
            )
        parts = [self._weighted_one(*each, f"[{i}]") for i, each in enumerate(zip(bags, x, grad_scores, strict=True))]
        return [bag for bag, _ in parts], [vectors for _, vectors in parts]

    def _weighted_one(self, bags: Any, x: Any, grad_scores: Any, after: str) -> tuple[Bags, Any]:
        its = self._contents
        engine, table = its.engine, its.table
        found, shape = _bags_of(engine, bags)
        _vectors(engine, x, found.num_bags, table.dim, table.result)
        name = f"grad_scores{after}"
        if grad_scores is None:
            raise TypeError(f"{name} is None, expected an array of floats of shape {shape}, one number for each score")
        framework_of(grad_scores).refuse_tracked(grad_scores, name, "pass scores.grad")
        weights = engine.sample_weights(grad_scores, None, name)
        if weights.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, one number for each score, got {weights.shape}")
        given = grad_scores
        if len(shape) > 1:
            weights = weights.reshape(len(found._place.ids))
            given = grad_scores.reshape(weights.size) if hasattr(grad_scores, "reshape") else weights  # the caller's
        place = found._place._replace(weights=weights)
        given = {"ids": found.ids, "offsets": found.offsets, "per_sample_weights": given}
        return found._with(place, given, found._plan), x
