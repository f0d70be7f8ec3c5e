"""TrainedTable: the steps that change a table."""

from typing import Any

import numpy as np

from . import _backward as backward
from . import _launch
from . import _validate as check
from ._arrays import kind_of
from ._device import on_device
from ._storage import TableStorage
from .gradient import RowGradient
from .plan import Plan, as_lookups, as_plan
from .rules import Rule


class TrainedTable(TableStorage):
    """Updates of a table, in place, and gradients as values."""

    def update(self, ids: Any, grad_out: Any, *, check_finite: bool = False) -> None:
        """Take one optimizer step on the rows of a batch, in place.

        Parameters
        ----------
        ids : int32 or int64 array of any shape, or Plan; or a list of them
            A list means that one step looked the table up several times.
        grad_out : float array of shape ``ids.shape + (dim,)``; or a list of them
            Gradient of each looked-up vector.  Gradients of repeated ids are summed, or averaged if the
            table was made with `scale_grad_by_freq`.
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

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable.from_array(np.zeros((3, 1)), optimizer=se.SGD(lr=1.0))
        >>> table.update([2, 0, 2], np.array([[1.0], [2.0], [3.0]]))
        >>> table.weight.ravel()
        array([-2.,  0., -4.])
        """
        self._trainable()
        plan = as_plan(as_lookups(ids, grad_out), self.num_rows)
        grads = backward.lookup_gradients(plan, grad_out, self.dim, self._weight, by_count=self.scale_grad_by_freq)
        self._run(plan, grads, check_finite)

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

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable.from_array(np.zeros((3, 1)), optimizer=se.SGD(lr=1.0))
        >>> table.update_pooled(se.Bags.from_lists([[0, 2], [2]]), np.array([[2.0], [3.0]]), mode="mean")
        >>> table.weight.ravel()
        array([-1.,  0., -4.])
        """
        self._trainable()
        parts, grads = backward.as_bags(bags, grad_out, mode)
        padding = check.padding(self.padding_idx, self.num_rows)
        if mode == "max" and len(parts) > 1:
            with self._guard:
                by_freq = self.scale_grad_by_freq
                total = backward.max_gradient(parts, grads, self._weight, padding, self._missed(), by_freq)
            self.apply(total, check_finite=check_finite)
            return
        where = (self.num_rows, padding, self._weight, self.dim, self._weight.dtype)
        with self._guard:
            missed = self._missed()
            plan, gradients = backward.pooled_gradients(parts, grads, mode, *where, missed, self.scale_grad_by_freq)
        self._run(plan, gradients, check_finite)

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

        Raises
        ------
        TypeError, ValueError, IndexError
            For arguments that do not fit.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable(3, 1, optimizer=se.SGD(lr=1.0), rng=0)
        >>> gradient = table.gradient([2, 0, 2], np.ones((3, 1), np.float32))
        >>> gradient.rows, gradient.values.ravel()
        (array([0, 2]), array([1., 2.], dtype=float32))
        """
        plan = as_plan(as_lookups(ids, grad_out), self.num_rows)
        like = np.empty((0, self.dim), backward.result_dtype(self._weight))
        grads = backward.lookup_gradients(plan, grad_out, self.dim, like, by_count=self.scale_grad_by_freq)
        first = grad_out[0] if plan.several else grad_out
        return backward.row_gradient(
            plan, grads, self.num_rows, check.padding(self.padding_idx, self.num_rows), kind_of(first)
        )

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
        TypeError, ValueError
            For anything else; table, state and step are as they were then.

        Examples
        --------
        >>> import numpy as np, sparsembed as se
        >>> table = se.EmbeddingTable.from_array(np.zeros((3, 1)), optimizer=se.SGD(lr=1.0))
        >>> table.apply(se.RowGradient([1], np.array([[8.0]]), num_rows=3).clip_values(5.0))
        >>> table.weight.ravel()
        array([ 0., -5.,  0.])
        """
        self._trainable()
        if on_device(gradient):
            raise TypeError("gradient is on a GPU, the table in host memory; pass gradient.to_host()")
        if not isinstance(gradient, RowGradient):
            raise TypeError(f"gradient must be a RowGradient, got {type(gradient).__name__}; use update(ids, grad_out)")
        if (got := (gradient.num_rows, gradient.dim)) != self._weight.shape:
            raise ValueError(f"gradient must be of a table of shape {self._weight.shape}, got {got}")
        plan = Plan(gradient._rows, self.num_rows)
        grads = backward.lookup_gradients(plan, gradient._values, self.dim, self._weight, "gradient")
        self._run(plan, grads, check_finite, "gradient")

    def _trainable(self) -> Rule:
        if self._optimizer is None:
            raise ValueError("the table has no optimizer, so it cannot be updated; pass optimizer= when making it")
        check.weight(self._weight, "the table", writeable=True)
        return self._optimizer

    def _run(self, plan: Plan, grads: _launch.Gradients, check_finite: bool, name: str = "grad_out") -> None:
        """Step: nothing was written before, and nothing is refused after, the kernel starts."""
        if check.flag(check_finite, "check_finite"):
            backward.refuse_infinite(grads, name)
        skip = -1 if self.padding_idx is None else self.padding_idx
        with self._lock:
            rule = self._trainable()
            exact = rule.hyper(self.step + 1)
            hyper = rule.cast(exact, self.step + 1, self._weight.dtype)
            lag = self._before_step(exact)
            arrays = (self._weight, self._state, self._row_state, self._steps)
            _launch.update_rows(*arrays, plan, grads, skip, hyper, lag, self._limit)
        plan._recycle()
