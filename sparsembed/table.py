"""EmbeddingTable: weights plus optimizer state, updated in place."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _backward as backward
from . import _launch, functional, initializers, pooling
from . import _validate as check
from ._arrays import kind_of
from ._storage import TableStorage, aligned_copy, owned
from .bags import Bags
from .gradient import RowGradient
from .plan import Plan, as_lookups, as_plan
from .rules import Rule


class EmbeddingTable(TableStorage):
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
        See `sparsembed.initializers`; default ``uniform``, between -0.05 and 0.05.
    rng : None, int, SeedSequence or Generator
        For the initializer.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit.

    Notes
    -----
    Memory per row: ``dim * itemsize``, the same again for each slot of the optimizer, and one
    item per row slot.  State starts as zeros, of which untouched rows take no memory on Linux.
    Any number of threads may look up; updates of one table wait for each other, and with an optimizer
    that equals a dense one, lookups do, too.

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
    """

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
    ) -> None:
        shape = (check.count(num_rows, "num_rows"), check.count(dim, "dim"))
        kind = check.table_dtype(dtype)
        check.size(*shape, kind)
        check.padding(padding_idx, shape[0])
        check.optimizer(optimizer, kind)
        if not callable(initializer):
            raise TypeError(f"initializer must be a function such as se.initializers.normal, got {initializer!r}")
        weight = check.weight(initializer(shape, dtype=kind, rng=rng), "initializer(...)")
        fresh = getattr(initializer, "func", initializer) in initializers.FRESH  # func: of a partial
        if weight.shape != shape or weight.dtype != kind:
            got = f"{weight.dtype} {weight.shape}"
            raise ValueError(f"initializer must return a {kind} array of shape {shape}, got {got}")
        self._hold(owned(weight) if fresh else aligned_copy(weight), optimizer, padding_idx)

    @classmethod
    def from_array(
        cls, weight: Any, optimizer: Rule | None = None, *, copy: bool = False, padding_idx: int | None = None
    ) -> "EmbeddingTable":
        """Make a table of an existing array.

        Parameters
        ----------
        weight : float32, float64 or float16 array of shape (num_rows, dim)
            Any strides; a writeable memory map, too.
        optimizer : Rule, optional
        copy : bool
            False adopts the caller's memory, which updates then change in place.
        padding_idx : int, optional
            This row is set to zero.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> w = np.ones((3, 2), np.float32)
        >>> table = se.EmbeddingTable.from_array(w, optimizer=se.SGD(lr=1.0))
        >>> table.update([1], np.ones((1, 2), np.float32))
        >>> w[1]
        array([0., 0.], dtype=float32)
        """
        array = check.weight(weight)
        check.count(len(array), "weight.shape[0]")
        check.padding(padding_idx, len(array))
        check.optimizer(optimizer, array.dtype)
        if not copy and (optimizer is not None or padding_idx is not None):
            check.in_place(array, "weight", "copy=True")
        self = cls.__new__(cls)
        self._hold(aligned_copy(array) if copy else array, optimizer, padding_idx)
        return self

    def lookup(self, ids: Any) -> Any:
        """Copy the rows of a batch of ids.

        Parameters
        ----------
        ids : int32 or int64 array of any shape, or Plan
            A list of arrays (several lookups) gives a list of results.

        Returns
        -------
        array of shape ``ids.shape + (dim,)``
            Of the caller's kind (NumPy, torch, jax); see `sparsembed.gather`.
        """
        with self._reading() as lag:
            return functional.lookup(self._weight, ids, lag)

    __getitem__ = lookup

    def pool(self, bags: Bags, mode: str = "sum") -> Any:
        """Pool the rows of each bag, (num_bags, dim); see `sparsembed.pool`."""
        with self._reading() as lag:
            return pooling.pool_bags(self._weight, bags, mode, None, self._padding, lag)

    def update(self, ids: Any, grad_out: Any, *, check_finite: bool = False) -> None:
        """Take one optimizer step on the rows of a batch, in place.

        Parameters
        ----------
        ids : int32 or int64 array of any shape, or Plan; or a list of them
            A list means that one step looked the table up several times.
        grad_out : float array of shape ``ids.shape + (dim,)``; or a list of them
            Gradient of each looked-up vector.  Gradients of repeated ids are summed.
        check_finite : bool
            Refuse NaN and infinity before any row changes; costs one more pass.

        Raises
        ------
        TypeError, ValueError, IndexError
            For arguments that do not fit; table, state and step are as they were then.

        Notes
        -----
        Moves ``(n + k * (2 + 2 * slots)) * dim * itemsize`` bytes for n ids with k unique rows,
        whatever the size of the table; 24 bytes per id of workspace.
        """
        rule = self._trainable()
        plan = as_plan(as_lookups(ids, grad_out), self.num_rows)
        self._run(rule, plan, backward.lookup_gradients(plan, grad_out, self.dim, self._weight), check_finite)

    def update_pooled(self, bags: Any, grad_out: Any, mode: str = "sum", *, check_finite: bool = False) -> None:
        """Take one optimizer step from the gradient of pooled lookups, in place.

        Parameters
        ----------
        bags : Bags, or list of Bags
            A list means that one step pooled from the table several times.
        grad_out : float array of shape (num_bags, dim), or list of them
        mode : {"sum", "mean", "sqrtn", "max"}
            For "max" the rows must be those that were pooled.
        check_finite : bool
            Refuse NaN and infinity before any row changes.

        Raises
        ------
        TypeError, ValueError, IndexError
            For arguments that do not fit; table, state and step are as they were then.

        Notes
        -----
        24 bytes per id of workspace, and one number more for weights; mode "max" needs 4 more per element of
        `grad_out`.
        """
        rule = self._trainable()
        parts, grads = backward.as_bags(bags, grad_out, mode)
        padding = check.padding(self._padding, self.num_rows)
        if mode == "max" and len(parts) > 1:
            with self._reading() as lag:
                total = backward.max_gradient(parts, grads, self._weight, padding, lag)
            self.apply(total, check_finite=check_finite)
            return
        where = (self.num_rows, padding, self._weight, self.dim, self._weight.dtype)
        with self._reading() as lag:
            plan, gradients = backward.pooled_gradients(parts, grads, mode, *where, lag)
        self._run(rule, plan, gradients, check_finite)

    def gradient(self, ids: Any, grad_out: Any) -> RowGradient:
        """Return the coalesced gradient of a batch as a value, without its padding.

        Parameters
        ----------
        ids, grad_out : arrays, or lists of them
            As for `update`.

        Returns
        -------
        RowGradient
            For `apply`, perhaps after clipping or adding others.
        """
        plan = as_plan(as_lookups(ids, grad_out), self.num_rows)
        grads = backward.lookup_gradients(
            plan, grad_out, self.dim, np.empty((0, self.dim), backward.result_dtype(self._weight))
        )
        first = grad_out[0] if plan.several else grad_out
        return backward.row_gradient(
            plan, grads, self.num_rows, check.padding(self._padding, self.num_rows), kind_of(first)
        )

    def apply(self, gradient: RowGradient, *, check_finite: bool = False) -> None:
        """Take one optimizer step with a `RowGradient`, in place.

        Parameters
        ----------
        gradient : RowGradient
            Of a table of this shape.
        check_finite : bool
            Refuse NaN and infinity before any row changes.
        """
        rule = self._trainable()
        if not isinstance(gradient, RowGradient):
            raise TypeError(f"gradient must be a RowGradient, got {type(gradient).__name__}; use update(ids, grad_out)")
        if (got := (gradient.num_rows, gradient.dim)) != self._weight.shape:
            raise ValueError(f"gradient must be of a table of shape {self._weight.shape}, got {got}")
        plan = Plan(gradient._rows, self.num_rows)
        grads = backward.lookup_gradients(plan, gradient._values, self.dim, self._weight, "gradient")
        self._run(rule, plan, grads, check_finite, "gradient")

    def _trainable(self) -> Rule:
        if self._optimizer is None:
            raise ValueError("the table has no optimizer, so it cannot be updated; pass optimizer= when making it")
        check.weight(self._weight, "the table", writeable=True)
        return self._optimizer

    def _run(
        self, rule: Rule, plan: Plan, grads: _launch.Gradients, check_finite: bool, name: str = "grad_out"
    ) -> None:
        """Step: nothing was written before, and nothing is refused after, the kernel starts."""
        if check.flag(check_finite, "check_finite"):
            backward.refuse_infinite(grads, name)
        skip = -1 if self._padding is None else self._padding
        with self._lock:
            exact = rule.hyper(self.step + 1)
            hyper = rule.cast(exact, self.step + 1, self._weight.dtype)
            lag = None if self._history is None else self._before_step(exact)
            arrays = (self._weight, self._state, self._row_state, self._steps)
            _launch.update_rows(*arrays, plan, grads, skip, hyper, lag)
        plan._recycle()
