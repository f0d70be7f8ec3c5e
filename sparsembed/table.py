"""EmbeddingTable: weights plus optimizer state, updated in place."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _check as check
from . import initializers
from ._contents import Contents
from ._cpu.inputs import flat_ids
from ._cpu.memory import shown
from ._engine import CPU, device_name, engine_for, engine_of
from ._first_rows import first_rows, seed_of
from ._frameworks import as_array
from ._gradients import arrays_of, as_lists, lookup_parts, mode_of, pooled
from ._options import Options
from ._typing import Array
from .bags import Bags
from .functional import coalesced, lookup
from .gradient import RowGradient
from .losses import Logistic, Loss
from .plan import as_batch, as_lookups, original
from .pooling import bag_gradients, max_gradient, pool_bags, pooled_gradients
from .rules import Rule
from .scores import loss_of, scores_of, weighted
from .storage.saving import save_contents

_LOGISTIC = Logistic()


class EmbeddingTable:
    """A (num_rows, dim) table of vectors and its optimizer.

    Parameters
    ----------
    num_rows, dim : int
        Shape of the table, at least 1 each.
    optimizer : Rule, optional
        Such as ``SparseAdam(lr=1e-3)``; without one the table can be read only.
    dtype : {float32, float64, float16}
        float16 is for lookups and pooling (results are float32) and takes no optimizer.
    padding_idx : int, optional
        An id whose row is zero and stays zero: it contributes nothing to a bag, counts in no
        divisor and is never updated.
    initializer : callable ``(shape, *, dtype, rng) -> array``
        See `sparsembed.initializers`; default ``uniform``, between -0.05 and 0.05.  It gets a
        `numpy.random.Generator` as `rng`.
    rng : None, int, SeedSequence or Generator
        For the initializer.  An int below 2**64 is the table's `seed`; else 64 bits are drawn for that, after the rows.
        Two tables of one shape and one int start with equal rows: give each its own.
    max_norm : float, optional
        The largest norm of a row.  Rows with a larger norm are scaled by ``max_norm / (norm + 1e-7)``: all
        rows when the table is made or loaded, and the touched rows after each update.  Lookups never write.
        Only for optimizers that change no other rows than those of the batch; other optimizers raise.
    norm_type : float
        The p of the norm, above zero; ``math.inf`` for the largest absolute value.
    scale_grad_by_freq : bool
        Divide a row's gradient by the number of times that the row occurs in the step, all its lookups
        together: the mean over its occurrences, rather than their sum.
    device : str
        "cpu", or "cuda", "cuda:1", ... for a table on a GPU, which takes device arrays; see docs/cuda.md.

    Raises
    ------
    TypeError
        If a number is no integer or float, `optimizer` no optimizer, `dtype` none of the three, or float16 with an
        optimizer.
    ValueError
        If `num_rows` or `dim` is below 1, `max_norm` is not above zero or goes with an optimizer that moves other
        rows, or `initializer` returns another shape or dtype.
    IndexError
        If `padding_idx` is not below `num_rows`.

    See Also
    --------
    EmbeddingTable.from_array : a table of an array that exists.
    warm_up : compile before the first call what calls on a table need.

    Notes
    -----
    =====================  ==========================================================================================
    to read                `lookup` (``table[ids]``), `pool`, `dot`, `dot_loss`, `blocks`, `weight`
                           (``numpy.asarray(table)``), iteration
    to train               `update`, `update_pooled`, `update_dot`; `gradient`, `gradient_pooled`, `gradient_dot` and
                           `apply`; `optimizer`, `flush`
    to save                `state_dict`, `load_state_dict`, `reset_state`, pickle, `copy.deepcopy`
    to change              `set_rows`, `take`, `astype`
    to ask                 `shape`, ``len(table)``, `num_rows`, `dim`, `nbytes`, `step`, `state`, options by name
    on a GPU               `synchronize`, `begin_step`, `recording`
    =====================  ==========================================================================================

    Memory per row: ``dim * itemsize``, the same again for each slot of the optimizer, and one
    item per row slot; SparseAdam and Adam have two slots.  State starts as zeros, of which untouched rows take no
    memory on Linux.
    Any number of threads may look up at once.  Updates of one table wait for each other; with an optimizer
    that equals a dense one, lookups wait as well.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable(1000, 4, optimizer=se.SGD(lr=0.1), padding_idx=0, rng=0)
    >>> ids = np.array([[3, 0], [3, 7]])
    >>> table.lookup(ids).shape
    (2, 2, 4)
    >>> table.update(ids, np.ones((2, 2, 4), np.float32))
    >>> table
    EmbeddingTable(1000 x 4 float32, SGD(lr=0.1), step 1, padding_idx=0, 15.6 KiB)
    >>> other = se.EmbeddingTable(1000, 4, optimizer=se.SGD(lr=0.1), padding_idx=0)
    >>> other.load_state_dict(table.state_dict())  # "weight", "step" and each slot by name
    >>> other.step, bool((other.weight == table.weight).all())
    (1, True)
    >>> table.num_rows, table.dim, table.padding_idx, table.max_norm, table.norm_type, table.scale_grad_by_freq
    (1000, 4, 0, None, 2.0, False)
    >>> table.seed, table.shape, table.nbytes
    (0, (1000, 4), 16000)
    >>> table.optimizer = se.SGD(lr=0.01)  # between steps
    >>> sorted(se.EmbeddingTable(9, 4, se.Adam(lr=0.1)).state)
    ['exp_avg', 'exp_avg_sq']
    """

    _contents: Contents

    def __init__(
        self,
        num_rows: int,
        dim: int,
        optimizer: Rule | None = None,
        *,
        dtype: npt.DTypeLike = np.float32,
        padding_idx: int | None = None,
        initializer: Callable[..., Any] = initializers.uniform,
        rng: Any = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        device: str = "cpu",
    ) -> None:
        shape = (check.count(num_rows, "num_rows"), check.count(dim, "dim"))
        kind = check.table_dtype(dtype)
        check.size(*shape, kind)
        options = Options(padding_idx, max_norm, norm_type, scale_grad_by_freq).checked(shape[0], optimizer, kind)
        where = (engine := engine_for(device_name(device))).place(device)
        rows, seed = first_rows(initializer, shape, kind, rng)
        self._contents = Contents(engine, engine.hold(where, engine.fresh(where, *rows), optimizer, options), seed)

    @classmethod
    def from_array(
        cls,
        weight: Any,
        optimizer: Rule | None = None,
        *,
        copy: bool = False,
        rng: Any = None,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
    ) -> "EmbeddingTable":
        """Make a table of an existing array.

        Parameters
        ----------
        weight : float32, float64 or float16 array of shape (num_rows, dim)
            Any strides; a writeable memory map, too.  A device array makes a table on its GPU.  A list, or an object
            that gives out copies of its memory, needs ``copy=True`` if the table is written to.
        optimizer : Rule, optional
        copy : bool
            False adopts the caller's memory, which updates then change in place.
        rng : None, int, SeedSequence or Generator
            For `seed` alone: no row is drawn.
        padding_idx : int, optional
            This row is set to zero.
        max_norm, norm_type : float, optional
            Rows that are too large are scaled down now, in the caller's memory too.
        scale_grad_by_freq : bool
            As in `EmbeddingTable`.

        Returns
        -------
        EmbeddingTable
            At step 0, with fresh state.

        Raises
        ------
        TypeError
            If `weight` holds no floats, or is a list or gives out copies and would have to be written to.
        ValueError
            If `weight` has no rows or no columns, is read-only and would have to be written to, or an option does not
            fit; see `EmbeddingTable`.
        IndexError
            If `padding_idx` is not below the number of rows.

        Notes
        -----
        Takes no time for the weights themselves; ``copy=True`` and `max_norm` are one pass over them.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> w = np.ones((3, 2), np.float32)
        >>> table = se.EmbeddingTable.from_array(w, optimizer=se.SGD(lr=1.0))
        >>> table.update([1], np.ones((1, 2), np.float32))
        >>> w[1]
        array([0., 0.], dtype=float32)
        """
        options, engine = Options(padding_idx, max_norm, norm_type, scale_grad_by_freq), engine_of(weight)
        seed = seed_of(rng)  # before anything is written
        contents = Contents(engine, engine.adopt(weight, optimizer, options, check.flag(copy, "copy")), seed)
        contents.is_copy = not copy and engine.hands_out_copies(weight)
        return cls._of(contents)

    @classmethod
    def _of(cls, contents: Contents) -> "EmbeddingTable":
        """Return a table of contents."""
        self = cls.__new__(cls)
        self._contents = contents
        return self

    def lookup(self, ids: Any) -> Any:
        """Copy the rows of a batch of ids.

        Parameters
        ----------
        ids : integer array of any shape, or Plan
            A list of arrays (several lookups) gives a list of results.

        Returns
        -------
        array of shape ``ids.shape + (dim,)``
            A copy, of the caller's kind (NumPy, torch, jax), in the dtype of the table; float32 for a float16 table.

        Raises
        ------
        TypeError
            If ids are no integers.
        IndexError
            If an id is negative, or not below `num_rows`.

        See Also
        --------
        sparsembed.gather : the same for an array, also into an array that exists.
        EmbeddingTable.blocks : all rows, block by block.

        Notes
        -----
        ``table[ids]`` is the same.  Moves ``2 * n * dim * itemsize`` bytes for n ids; if the optimizer equals a dense
        one, the state of the rows, too.

        Examples
        --------
        >>> import sparsembed as se
        >>> table = se.EmbeddingTable(9, 4, rng=0)
        >>> table.lookup([[1, 2, 1]]).shape
        (1, 3, 4)
        """
        contents = self._contents
        return lookup(contents.engine, contents.table, None, ids, None, contents)

    def pool(self, bags: Bags, mode: str | None = None) -> Any:
        """Pool the rows of each bag into one; see `sparsembed.pool`.

        Parameters
        ----------
        bags : Bags
        mode : {"sum", "mean", "sqrtn", "max"}, optional
            That of the bags; "sum" where they have none.

        Returns
        -------
        array of shape (num_bags, dim)
            Of the kind of the ids (NumPy, torch, jax), in the dtype of the table; float32 for a float16 table.

        Raises
        ------
        TypeError
            If `bags` is no Bags.
        ValueError
            If `mode` is none of the four, is not that of the bags, or is "max" for bags with weights.
        IndexError
            If an id is out of range.

        See Also
        --------
        sparsembed.pool : the same for an array, with the formulas.
        EmbeddingTable.update_pooled : the step from the gradient of what comes out.

        Notes
        -----
        Reads ``n * dim * itemsize`` bytes for n ids, and writes one row for each bag.

        Examples
        --------
        >>> import sparsembed as se
        >>> table = se.EmbeddingTable(9, 4, padding_idx=0)
        >>> table.pool(se.Bags.from_lists([[1, 2], [0]]), mode="mean")[1]
        array([0., 0., 0., 0.], dtype=float32)
        """
        contents = self._contents
        return pool_bags(contents.engine, contents.table, None, bags, mode, None, contents.padding, contents)

    def update(self, ids: Any, grad_out: Any, *, check_finite: bool = False) -> None:
        """Take one optimizer step on the rows of a batch, in place.

        Parameters
        ----------
        ids : integer array of any shape, or Plan; or a list of them
            int32 and int64 as they are; others are copied to int64.  A list means that one step looked the table up
            several times.
        grad_out : float array of shape ``ids.shape + (dim,)``; or a list of them
            Gradient of each looked-up vector.  Gradients of repeated ids are summed, or averaged if the
            table was made with `scale_grad_by_freq`.
        check_finite : bool
            Refuse NaN and infinity before any row changes; costs one more pass.

        Raises
        ------
        TypeError
            If ids are no integers, or `grad_out` holds no floats, is None, or requires a gradient itself.
        ValueError
            If the table has no optimizer, a shape does not fit, a learning rate is not finite, or `check_finite` finds
            NaN or infinity.
        IndexError
            If an id is out of range.
            After each of these, table, state and step are as they were.

        See Also
        --------
        EmbeddingTable.gradient : the same gradient as a value, to clip or add, and `apply`.

        Notes
        -----
        Gradients of another float dtype are converted, which copies them.
        Moves ``(n + k * (2 + 2 * slots)) * dim * itemsize`` bytes for n ids with k unique rows,
        whatever the size of the table; 24 bytes per id of workspace.  Where rows catch up (`Adam` and its kind), a
        batch of half of the rows steps all rows, and k is their number.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable.from_array(np.zeros((3, 1)), optimizer=se.SGD(lr=1.0))
        >>> table.update([2, 0, 2], np.array([[1.0], [2.0], [3.0]]))
        >>> table.weight.ravel()
        array([-2.,  0., -4.])
        """
        if check_finite is False and self._contents.engine.update_few(self._contents, original(ids), grad_out):
            return
        contents, engine, table = self._ready(check_finite)
        rows, shapes, several = as_batch(engine, as_lookups(ids, grad_out), table.num_rows)
        parts, names = lookup_parts(engine, shapes, several, grad_out, table.dim, table.dtype, "grad_out")
        call = engine.begin(contents, rows, grad_out=grad_out)
        try:
            by_count = contents.options.scale_grad_by_freq
            grads = engine.of_lookups(call, rows, parts, names, table, by_count)
            if check_finite:
                engine.refuse_infinite(grads, "grad_out")
            contents.take_step(call, rows, grads)
        finally:
            engine.end(call)

    def update_pooled(self, bags: Any, grad_out: Any, mode: str | None = None, *, check_finite: bool = False) -> None:
        """Take one optimizer step from the gradient of pooled lookups, in place.

        Parameters
        ----------
        bags : Bags, or list of Bags
            A list means that one step pooled from the table several times.
        grad_out : float array of shape (num_bags, dim), or list of them
        mode : {"sum", "mean", "sqrtn", "max"}, optional
            That of the bags; "sum" where they have none.  For "max" the rows must be those that were pooled.
        check_finite : bool
            Refuse NaN and infinity before any row changes.

        Raises
        ------
        TypeError
            If `bags` is no Bags, or `grad_out` holds no floats, is None, or requires a gradient itself.
        ValueError
            If the table has no optimizer, `mode` is none of the four or not that of the bags, lists are not equally
            long, a shape does not fit, or `check_finite` finds NaN or infinity.
        IndexError
            If an id is out of range.
            After each of these, table, state and step are as they were.

        See Also
        --------
        EmbeddingTable.gradient_pooled : the same gradient as a value.
        sparsembed.pool_gradient : its formula.

        Notes
        -----
        Moves one row of `grad_out` for each id, and the touched rows with their state twice.  24 bytes per id of
        workspace, and one number more for weights; mode "max" needs 4 more per element of
        `grad_out`.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable.from_array(np.zeros((3, 1)), optimizer=se.SGD(lr=1.0))
        >>> table.update_pooled(se.Bags.from_lists([[0, 2], [2]]), np.array([[2.0], [3.0]]), mode="mean")
        >>> table.weight.ravel()
        array([-1.,  0., -4.])
        """
        if check_finite is False and self._contents.engine.update_bags_few(self._contents, bags, grad_out, mode):
            return
        contents, engine, table = self._ready(check_finite)
        parts, grads = as_lists(bags, grad_out)
        options, mode = contents.options, mode_of(parts, mode)
        if mode == "max" and len(parts) > 1 and engine.sums_max_apart:
            by_freq = options.scale_grad_by_freq
            total = max_gradient(parts, grads, engine, table, table.num_rows, contents.padding, by_freq, contents)
            self.apply(total, check_finite=check_finite)
            return
        lookups = pooled(engine, parts, grads, mode, table.dim, table.dtype, table.num_rows)
        where = (table.num_rows, contents.padding, table, options.scale_grad_by_freq, contents)
        call = engine.begin(contents, places=lookups.places, grad_out=grads, **arrays_of(*parts))
        try:
            rows, gradients = bag_gradients(engine, call, lookups, *where)
            if check_finite:
                engine.refuse_infinite(gradients, "grad_out")
            contents.take_step(call, rows, gradients)
        finally:
            engine.end(call)

    def gradient_pooled(
        self, bags: Any, grad_out: Any, mode: str | None = None, *, check_finite: bool = False
    ) -> RowGradient:
        """Return the coalesced gradient of pooled lookups as a value, without its padding.

        Parameters
        ----------
        bags : Bags, or list of Bags
            As for `update_pooled`.
        grad_out : float array of shape (num_bags, dim), or list of them
        mode : {"sum", "mean", "sqrtn", "max"}, optional
            As for `update_pooled`.
        check_finite : bool
            Refuse NaN and infinity in `grad_out`.

        Returns
        -------
        RowGradient
            ``table.apply`` of it is the step that `update_pooled` takes.

        Raises
        ------
        TypeError, ValueError, IndexError
            As for `update_pooled`.

        See Also
        --------
        sparsembed.pool_gradient : the same without a table, which needs the table's padding and options as arguments.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable(3, 1, se.SGD(lr=1.0), padding_idx=0)
        >>> bags = se.Bags.from_lists([[0, 2], [2]])
        >>> gradient = table.gradient_pooled(bags, np.array([[2.0], [3.0]], np.float32), mode="mean")
        >>> gradient.rows, gradient.values.ravel()
        (array([2]), array([5.], dtype=float32))
        """
        contents, engine, table = self._contents, self._contents.engine, self._contents.table
        if check.flag(check_finite, "check_finite"):
            engine.allow_check()
        parts, grads = as_lists(bags, grad_out)
        by_freq = contents.options.scale_grad_by_freq
        where = (table.num_rows, contents.padding, by_freq, contents)
        return pooled_gradients(engine, parts, grads, mode_of(parts, mode), table, *where, check_finite=check_finite)

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
            Of the kind of `x` (NumPy, torch, jax), or else of the ids; in the dtype of the table, float32 for a float16
            table.  The padding has the score 0.

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

    def dot_loss(
        self, bags: Any, x: Any, labels: Any = None, loss: Loss = _LOGISTIC, *, weights: Any = None
    ) -> tuple[Any, Any, Any]:
        """Scores, their loss, and its gradients, in one pass over the rows; nothing is written.

        Parameters
        ----------
        bags : Bags, integer array of shape (n, k), or Plan of such an array
            As in `dot`.
        x : float array of shape (num_bags, dim), or (n, dim)
            One vector of each bag.
        labels : array of shape (len(bags.ids),), or (n, k), optional
            What each score should be, for `Logistic` (0 to 1) and `Squared`; for `Softmax` a distribution over the ids
            of each bag, or None: the first id is the right one.  `Pairwise` takes none.  Labels of the padding are
            not looked at.  Host arrays of integers and booleans are converted.
        loss : Loss
            One of `sparsembed.losses`, or of your own.
        weights : float array of shape (num_bags,), optional
            What the loss of each bag, and its gradients, are multiplied by.

        Returns
        -------
        loss : float
            The sum over all bags, added up in float64.  On a GPU an array without dimensions in the dtype of the
            scores, so that the call does not wait.
        grad_x : array of shape (num_bags, dim)
            Gradient with respect to `x`.
        grad_scores : array of the shape of the scores
            Gradient with respect to the scores, 0 for the padding; `update_dot` takes it.

        Raises
        ------
        TypeError
            If `loss` is no loss, `labels` are missing, an array holds no floats or requires a gradient, or ids are no
            integers.
        ValueError
            If a label is out of the range of the loss or NaN (on a GPU the loss is then NaN), `Pairwise` gets labels,
            bags have weights or a mode, or a shape does not fit.
        IndexError
            If an id is out of range.

        See Also
        --------
        EmbeddingTable.update_dot : the step from `grad_scores`.
        EmbeddingTable.dot : the scores alone.
        sparsembed.reference.dot_loss : the formulas.

        Notes
        -----
        Equal to `dot`, the loss, and ``pool(bags.with_weights(grad_scores))`` for `grad_x`, bit for bit, but rows are
        read from memory once: ``n * dim * itemsize`` bytes for n ids.  The rows of a bag that needs more than 256 KiB
        are read twice, and so are rows that catch up with missed steps in a bag of more than 64 ids.  Threads share
        the bags; the same bits come out for any number of threads.  On a GPU these are three kernels, one after the
        other.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable.from_array(np.array([[0.0, 1.0], [2.0, 0.0]]), optimizer=se.SGD(lr=0.1))
        >>> ids, x = np.array([[0, 1]]), np.array([[0.0, 1.0]])
        >>> loss, grad_x, grad_scores = table.dot_loss(ids, x, labels=np.array([[1.0, 0.0]]))
        >>> round(loss, 4), grad_x.round(4), grad_scores.round(4)
        (1.0064, array([[ 1.    , -0.2689]]), array([[-0.2689,  0.5   ]]))
        >>> table.update_dot(ids, x, grad_scores)
        """
        return loss_of(self._contents, bags, x, labels, loss, weights)

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
        check_finite = check.flag(check_finite, "check_finite")
        parts = weighted(self._contents, bags, x, grad_scores, check_finite)
        self.update_pooled(*parts, check_finite=check_finite)

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
        return self.gradient_pooled(*weighted(self._contents, bags, x, grad_scores))

    def gradient(self, ids: Any, grad_out: Any) -> RowGradient:
        """Return the coalesced gradient of a batch as a value, without its padding.

        Parameters
        ----------
        ids, grad_out : arrays, or lists of them
            As for `update`.

        Returns
        -------
        RowGradient
            For `apply`, perhaps after clipping or adding others; in the dtype of the table.

        Raises
        ------
        TypeError, ValueError, IndexError
            As for `update`; a table without optimizer will do.

        See Also
        --------
        sparsembed.coalesce : the same without a table.

        Notes
        -----
        Allocates the sums of k unique rows, ``k * dim`` numbers, and 24 bytes per id of workspace.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable(3, 1, optimizer=se.SGD(lr=1.0), rng=0)
        >>> gradient = table.gradient([2, 0, 2], np.ones((3, 1), np.float32))
        >>> gradient.rows, gradient.values.ravel()
        (array([0, 2]), array([1., 2.], dtype=float32))
        """
        contents, table, by_freq = self._contents, self._contents.table, self.scale_grad_by_freq
        where = (table.num_rows, contents.padding, by_freq, contents)
        return coalesced(contents.engine, as_lookups(ids, grad_out), grad_out, table.dim, table.result, *where)

    def apply(self, gradient: RowGradient, *, check_finite: bool = False) -> None:
        """Take one optimizer step with a `RowGradient`, in place.

        Parameters
        ----------
        gradient : RowGradient
            Of a table of this shape; taken as it is, whatever `scale_grad_by_freq` says.
        check_finite : bool
            Refuse NaN and infinity before any row changes.

        Raises
        ------
        TypeError
            If `gradient` is no RowGradient, or on a GPU and the table is not.
        ValueError
            If it is of a table of another shape, the table has no optimizer, or `check_finite` finds NaN or infinity.
            After each of these, table, state and step are as they were.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable.from_array(np.zeros((3, 1)), optimizer=se.SGD(lr=1.0))
        >>> table.apply(se.RowGradient([1], np.array([[8.0]]), num_rows=3).clip_values(5.0))
        >>> table.weight.ravel()
        array([ 0., -5.,  0.])
        """
        contents, engine, table = self._ready(check_finite)
        if not isinstance(gradient, RowGradient):
            raise check.not_gradient(gradient)
        if gradient._on_device and engine is CPU:
            raise TypeError("gradient is on a GPU, the table in host memory; pass gradient.to_host()")
        if (got := (gradient.num_rows, gradient.dim)) != (table.num_rows, table.dim):
            raise ValueError(f"gradient must be of a table of shape {(table.num_rows, table.dim)}, got {got}")
        call, rows, grads, skip = engine.of_gradient(contents, gradient)
        try:
            if check_finite:
                engine.refuse_infinite(grads, "gradient")
            contents.take_step(call, rows, grads, skip)
        finally:
            engine.end(call)

    def _ready(self, check_finite: Any) -> tuple[Contents, Any, Any]:
        """Return the contents, the engine and the engine's `Table`; refuse a table that cannot be updated."""
        contents = self._contents
        contents.trainable()
        if check.flag(check_finite, "check_finite"):
            contents.engine.allow_check()
        contents.engine.check_writeable(contents.table)
        return contents, contents.engine, contents.table

    @property
    def padding_idx(self) -> int | None:
        """The id whose row stays zero."""
        return self._contents.options.padding_idx

    @property
    def max_norm(self) -> float | None:
        """The largest norm of a row."""
        return self._contents.options.max_norm

    @property
    def norm_type(self) -> float:
        """The p of the norm that `max_norm` limits."""
        return self._contents.options.norm_type

    @property
    def scale_grad_by_freq(self) -> bool:
        """Whether a row's gradient is the mean over its occurrences, rather than their sum."""
        return self._contents.options.scale_grad_by_freq

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self._contents.table.num_rows)

    @property
    def dim(self) -> int:
        """Numbers in a row."""
        return int(self._contents.table.dim)

    @property
    def shape(self) -> tuple[int, int]:
        """``(num_rows, dim)``."""
        return self.num_rows, self.dim

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and of the optimizer's state."""
        return self._contents.nbytes

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, ids: Any) -> Any:
        if type(ids) is tuple and not any(np.ndim(each) for each in ids if not isinstance(each, slice)):
            shown = ", ".join(map(str, ids))
            raise TypeError(
                f"table[{shown}] is not defined: for several rows pass a list, table[[{shown}]]; for one number or for "
                "columns use table.weight"
            )
        return self.lookup(ids)

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(self.num_rows))

    _instead = "look rows up with table.lookup, train with table.update; its array is table.weight"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        contents = self._contents
        contents.flush()
        return np.array(contents.given, dtype, copy=copy)

    def blocks(self, size: int = 65536) -> Iterator[tuple[int, Any]]:
        """Iterate over all rows, in order, in bounded memory.

        Parameters
        ----------
        size : int
            Rows in a block, at least 1; the last block may have fewer.

        Yields
        ------
        first : int
            The number of the block's first row.
        vectors : array of shape (at most `size`, dim)
            A copy of the rows ``first`` to ``first + len(vectors) - 1``, as `lookup` gives them: with all steps that
            they have missed.  A device array for a table on a GPU.

        Raises
        ------
        TypeError, ValueError
            If `size` is no integer of at least 1.

        See Also
        --------
        EmbeddingTable.weight : the array itself, after one pass over the table for optimizers whose rows catch up.

        Notes
        -----
        Nothing is written.  An update between two blocks shows in the later ones.

        Examples
        --------
        >>> import sparsembed as se
        >>> table = se.EmbeddingTable(5, 2, rng=0)
        >>> [(first, vectors.shape) for first, vectors in table.blocks(size=2)]
        [(0, (2, 2)), (2, (2, 2)), (4, (1, 2))]
        """
        size = check.count(size, "size")
        return map(self._block, range(0, self.num_rows, size), [size] * -(-self.num_rows // size))

    def _block(self, first: int, size: int) -> tuple[int, Any]:
        rows = np.arange(first, min(first + size, self.num_rows))
        return first, self.lookup(self._contents.engine.own_ids(self._contents, rows))

    def set_rows(self, ids: Any, vectors: Any, *, reset: bool = False) -> None:
        """Replace some rows, outside of training: this is no step.

        Parameters
        ----------
        ids : integer array of shape (n,)
            Each row once, and not the padding.  In host memory, also for a table on a GPU.
        vectors : float array of shape (n, dim)
            Converted to the dtype of the table, and scaled down to `max_norm` if the table has one.
        reset : bool
            True sets the rows' state to zero, as in a new table.  False keeps it.

        Raises
        ------
        TypeError, ValueError
            For ids or vectors of another shape or kind, an id that is given twice or is the padding, or a table that
            is read-only; nothing is written then.
        IndexError
            For an id out of range; nothing is written then.

        Notes
        -----
        The rows have missed no step afterwards.  Their state is what it would have been without a gradient up to the
        newest step.  Costs the rows and their state; on a GPU, one copy for each run of neighbouring rows.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable(4, 2, se.SparseAdam(lr=0.1), initializer=se.initializers.zeros)
        >>> table.set_rows([2, 0], np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> table.lookup([0, 1, 2])
        array([[3., 4.],
               [0., 0.],
               [1., 2.]], dtype=float32)
        """
        contents, reset = self._contents, check.flag(reset, "reset")
        rows = self._each_once(ids, "ids")
        contents.trainable_array()
        values = as_array(vectors, "vectors")
        wanted = f"vectors must be a float array of shape {(len(rows), self.dim)}, one row for each id"
        if values.dtype.kind not in "fiu":
            raise check.not_floats(vectors, values, "vectors", "numbers")
        if values.shape != (len(rows), self.dim):
            raise ValueError(f"{wanted}, got shape {values.shape}")
        with np.errstate(over="ignore"):
            given = values.astype(contents.table.dtype)
        if (np.isinf(given) & np.isfinite(values)).any():
            raise ValueError(f"vectors must fit into {given.dtype}, got numbers that become infinite")
        if contents.padding >= 0 and (found := np.flatnonzero(rows == contents.padding)).size:
            raise ValueError(
                f"ids[{found[0]}] is {contents.padding}, the padding_idx, whose row stays zero; leave it out"
            )
        if len(rows):
            contents.reset(rows, given, keep=not reset)

    def take(self, rows: Any) -> "EmbeddingTable":
        """Return a new table of some rows, in this order, with state, step, optimizer and options.

        Parameters
        ----------
        rows : integer array of shape (n,), with n at least 1
            In host memory.  A row may be given several times, but for the padding.

        Returns
        -------
        EmbeddingTable
            A copy: row i is row ``rows[i]`` of this table.  Where the padding is not among the rows, the new table has
            none.

        Raises
        ------
        TypeError, ValueError
            If `rows` are no such array, are empty, or hold the padding twice.
        IndexError
            For a row out of range.

        Notes
        -----
        To shrink a table, or to bring its rows into another order.  This table is not written to, except on a GPU,
        where rows that have missed steps catch up first.  Rows that have missed steps have missed the same ones in
        the new table.

        Examples
        --------
        >>> import sparsembed as se
        >>> table = se.EmbeddingTable(6, 2, se.Adam(lr=0.1), padding_idx=5, rng=0)
        >>> smaller = table.take([5, 2])
        >>> smaller.shape, smaller.padding_idx, bool((smaller[1] == table[2]).all())
        ((2, 2), 0, True)
        """
        contents, chosen = self._contents, self._rows(rows, "rows")
        if not len(chosen):
            raise ValueError("rows must be at least one row, got none")
        place = np.flatnonzero(chosen == contents.padding)
        if len(place) > 1:
            raise ValueError(
                f"rows hold the padding_idx {contents.padding} {len(place)} times; a table has one padding"
            )
        padding = int(place[0]) if len(place) else None
        return self._of(contents.taken(chosen, contents.options._replace(padding_idx=padding)))

    def astype(self, dtype: npt.DTypeLike, *, rounding: None = None) -> "EmbeddingTable":
        """Return a copy in another dtype, with state, step, optimizer and options.

        Parameters
        ----------
        dtype : {float32, float64, float16}
            float16 only for a table without optimizer.
        rounding : None
            There is one way yet: each number is rounded to the nearest one of the new dtype.

        Returns
        -------
        EmbeddingTable

        Raises
        ------
        TypeError, ValueError
            For another dtype, one that the optimizer or `max_norm` does not take, or another rounding.

        Notes
        -----
        All rows of this table catch up first, as when its `weight` is read.  Weights and state are copied twice.

        Examples
        --------
        >>> import sparsembed as se
        >>> table = se.EmbeddingTable(6, 2, rng=0)
        >>> table.astype("float16").weight.dtype
        dtype('float16')
        """
        if rounding is not None:
            raise ValueError(f"rounding must be None, which rounds to nearest, got {rounding!r}")
        contents, kind = self._contents, check.table_dtype(dtype)
        contents.options.checked(self.num_rows, contents.rule, kind)
        found = contents.pickled()
        state = found["state_dict"].items()
        found["state_dict"] = {name: each if name == "step" else each.astype(kind) for name, each in state}
        return self._of(EmbeddingTable._made(found)._contents)

    def _rows(self, rows: Any, name: str) -> Array:
        """Check row numbers, and return them as int64."""
        flat, shape = flat_ids(rows, self.num_rows, name)
        if len(shape) != 1:
            raise ValueError(f"{name} must have shape (n,), got {shape}")
        return flat.astype(np.int64)

    def _each_once(self, rows: Any, name: str) -> Array:
        """Check row numbers, each of which may come once, and return them as int64."""
        found = self._rows(rows, name)
        values, first, counts = np.unique(found, return_index=True, return_counts=True)
        if (counts > 1).any():
            k = int(np.argmax(counts > 1))
            raise ValueError(
                f"{name} must name each row once, got {values[k]} {counts[k]} times, first at {first[k]}; "
                "use np.unique, or update() to add up gradients"
            )
        return found

    def __repr__(self) -> str:
        contents = self._contents
        what = f"{self.num_rows} x {self.dim} {contents.table.dtype}, {contents.rule}, step {contents.step}"
        what += contents.options.shown + f", {shown(contents.nbytes)}" + contents.engine.place_name(contents.where)
        return f"{type(self).__name__}({what})"

    def flush(self) -> None:
        """Let every row catch up with the dense optimizer; reading `weight` or `state` does so, too.

        Notes
        -----
        One pass over the table if any step was taken since; nothing for optimizers that touch only the rows
        of a batch, such as `SparseAdam`.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable.from_array(np.zeros((2, 1)), optimizer=se.Adam(lr=0.1))
        >>> weight = table.weight  # up to date until the next update
        >>> for ids in [[0], [1]]:
        ...     table.update(ids, np.ones((1, 1)))
        >>> table.flush()  # moves row 0, which was not in the second batch
        >>> weight.ravel().round(3)
        array([-0.167, -0.074])
        """
        self._contents.flush()

    def synchronize(self) -> None:
        """Wait for a GPU, and raise for ids that were out of range since the last time; on the CPU nothing waits.

        Raises
        ------
        IndexError
            If a call since the last time had ids out of range; that call wrote nothing.

        Examples
        --------
        >>> import sparsembed as se
        >>> se.EmbeddingTable(9, 4).synchronize()
        """
        self._contents.engine.synchronize(self._contents)

    def begin_step(self) -> None:
        """Count a step on a GPU, and write the step's scalars to the device for updates recorded in `recording`.

        Raises
        ------
        ValueError
            For a table in host memory.

        Examples
        --------
        >>> import sparsembed as se
        >>> table = se.EmbeddingTable(9, 4, se.SGD(lr=0.1), device="cuda")  # doctest: +SKIP
        >>> table.begin_step()  # doctest: +SKIP
        """
        self._contents.engine.begin_step(self._contents)

    def recording(self) -> AbstractContextManager[Any]:
        """Return a context for the capture of a CUDA graph: updates in it belong to the step of `begin_step`.

        `update` and `update_pooled` then read the learning rate, and all other scalars of the step, from the device.
        Launch the captured graph once after each `begin_step`.  Optimizers that equal dense ones raise: their history
        is kept on the host.  Steps of other threads wait.

        Returns
        -------
        context manager

        Raises
        ------
        ValueError
            For a table in host memory, or an optimizer that keeps a history.

        Examples
        --------
        >>> with table.recording():  # doctest: +SKIP
        ...     table.update(ids, grad_out)
        """
        return self._contents.engine.recording(self._contents)  # type: ignore[no-any-return]

    @property
    def optimizer(self) -> Rule | None:
        """The optimizer, an immutable value; set it to change hyperparameters between steps: no step is taken.

        A table without optimizer takes one at any time.  Later the new value must be of the same class, which keeps
        the state; for one of another class call `reset_state` first.  If more than the learning rate changes, every
        row catches up first.
        """
        return self._contents.rule

    @optimizer.setter
    def optimizer(self, rule: Rule) -> None:
        self._contents.set_rule(rule)

    @property
    def weight(self) -> Any:
        """The (num_rows, dim) array itself, up to date; not a copy, in the dtype of the table.

        Write to it between steps if you like.  Reading it takes no time, but with an optimizer whose rows catch up
        (`Adam`, `AdamW`, `RMSprop`, `SGD` with momentum or decay): then it is a `flush`, and the array is up to date
        until the next update.
        """
        self._contents.flush()
        return self._contents.given

    @property
    def state(self) -> dict[str, Any]:
        """Views of the optimizer's state by name: slots (num_rows, dim), row slots (num_rows,).

        In the dtype of the table, and up to date as `weight` is; they may be written to between steps.
        """
        self._contents.flush()
        return self._contents.columns

    @property
    def step(self) -> int:
        """Number of updates so far."""
        return self._contents.step

    @property
    def _on_device(self) -> bool:
        return self._contents.engine is not CPU

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that training changes: "weight", "step" and each slot by name.

        Returns
        -------
        dict of arrays, and an int
            "weight" (num_rows, dim), "step", each slot (num_rows, dim) and each row slot (num_rows,), in the dtype of
            the table.  Hyperparameters and options are not in it; a pickle has them.

        Notes
        -----
        All of one step: updates of other threads wait.  Copies weights and state, after a `flush`.

        Examples
        --------
        >>> import sparsembed as se
        >>> sorted(se.EmbeddingTable(9, 4, se.Adam(lr=0.1)).state_dict())
        ['exp_avg', 'exp_avg_sq', 'step', 'weight']
        """
        return self._contents.saved()

    def load_state_dict(self, state_dict: Mapping[str, Any], *, strict: bool = True) -> None:
        """Restore what `state_dict` returned.

        Parameters
        ----------
        state_dict : mapping
            Of a table of equal shape and dtype.  It holds no hyperparameters: the optimizer stays what it is, its
            learning rate, too.
        strict : bool
            True wants the state of an optimizer with equal slots.  With False, where `state_dict` or the table has
            no such state, only the weights are taken; state and step are zero then.

        Raises
        ------
        KeyError, TypeError, ValueError
            If anything is missing, left over or does not fit; nothing changes then.

        Examples
        --------
        >>> import sparsembed as se
        >>> trained, reader = se.EmbeddingTable(9, 4, se.Adam(lr=0.1)), se.EmbeddingTable(9, 4)
        >>> reader.load_state_dict(trained.state_dict(), strict=False)
        >>> bool((reader.weight == trained.weight).all())
        True
        """
        self._contents.restore(state_dict, check.flag(strict, "strict"))

    def reset_state(self) -> None:
        """Set the optimizer's state and the step to zero, and keep the weights.

        All rows catch up first, as when `weight` is read.  Then `optimizer` may be set to one of another class.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable(9, 4, se.Adagrad(lr=0.1), rng=0)
        >>> table.update([1], np.ones((1, 4), np.float32))
        >>> table.reset_state()
        >>> table.optimizer = se.SparseAdam(lr=0.01)
        >>> table.step, table.state["exp_avg"].any()
        (0, np.False_)
        """
        self._contents.clear()

    def save(self, path: Any, *, progress: Callable[[int], Any] | None = None) -> None:
        """Write the table to a file: weight, state, step, optimizer, options and seed; `sparsembed.load` reads it.

        Parameters
        ----------
        path : str or os.PathLike
            A new file, or one that is replaced; its permissions are kept.  Of a symbolic link, the file it leads to.
        progress : callable ``(rows) -> None``, optional
            Called with the number of rows done since it was last called, such as ``tqdm(...).update``.

        Raises
        ------
        TypeError
            For a path that is no path, and a `progress` that cannot be called.
        ValueError
            For a slot whose name the format uses itself, and a path that is no ordinary file.
        RuntimeError
            If `progress` updated the table.
        OSError
            Of the system, with the path: a folder that is not there, a full disk, no permission.

        See Also
        --------
        sparsembed.load : Read the file.
        EmbeddingTable.state_dict : The same as arrays, without optimizer, options and seed.

        Notes
        -----
        The path is the old file or the new one, whatever happens: the bytes go to a new file in the same folder, which
        is synced and renamed once it is whole.  After an exception no other file is left; a process that is killed
        may leave one, named ``.<name>.<8 hexadecimal digits>.tmp``.

        Every row catches up first, as when `weight` is read.  Updates of other threads wait until the call returns:
        about as long as the disk takes to write the table.  The table is not copied: 16 MiB are used, and on a GPU a
        copy of weight and state in host memory.  A learning rate that is a function, and an optimizer of a class that
        is not of this package, are not saved: `sparsembed.load` then needs ``optimizer=``.

        Examples
        --------
        >>> import os, tempfile, sparsembed as se
        >>> table = se.EmbeddingTable(1000, 4, optimizer=se.SGD(lr=0.1), rng=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "table.safetensors")
        ...     table.save(path)
        ...     se.load(path)
        EmbeddingTable(1000 x 4 float32, SGD(lr=0.1), step 0, 15.6 KiB)
        """
        save_contents(self._contents, path, progress)

    @property
    def seed(self) -> int:
        """The 64 bits for what is drawn later: `rng` if it is an int below 2**64, else drawn from it after the rows."""
        return self._contents.seed

    @staticmethod
    def _made(saved: dict[str, Any]) -> "EmbeddingTable":
        """Return a table of what `__getstate__` returned."""
        table = EmbeddingTable.__new__(EmbeddingTable)
        table.__setstate__(saved)
        return table

    def __getstate__(self) -> dict[str, Any]:
        return self._contents.pickled()

    def __setstate__(self, saved: dict[str, Any]) -> None:
        engine = engine_for(device := f"cuda:{saved['device']}" if "device" in saved else "cpu")
        options = Options(**{name: value for name, value in saved.items() if name in Options._fields})
        where = engine.place(device)
        weight = engine.fresh(where, saved["state_dict"]["weight"], True)
        self._contents = Contents(engine, engine.hold(where, weight, saved["optimizer"], options), saved.get("seed"))
        self._contents.restore(saved["state_dict"])
