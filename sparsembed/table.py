"""EmbeddingTable: weights plus optimizer state, updated in place."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _check as check
from . import initializers
from ._contents import Contents
from ._cpu.inputs import matrix
from ._cpu.memory import shown
from ._engine import CPU, device_name, engine_for, engine_of
from ._gradients import arrays_of, as_lists, lookup_parts, mode_of, pooled
from ._options import Options
from .bags import Bags
from .functional import coalesced, lookup
from .gradient import RowGradient
from .plan import as_batch, as_lookups, original
from .pooling import bag_gradients, max_gradient, pool_bags
from .rules import Rule


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
        See `sparsembed.initializers`; default ``uniform``, between -0.05 and 0.05.
    rng : None, int, SeedSequence or Generator
        For the initializer.
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
    TypeError, ValueError
        For arguments that do not fit.

    Notes
    -----
    Memory per row: ``dim * itemsize``, the same again for each slot of the optimizer, and one
    item per row slot.  State starts as zeros, of which untouched rows take no memory on Linux.
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
    >>> table = se.EmbeddingTable.from_array(np.zeros((2, 1)), optimizer=se.Adam(lr=0.1))
    >>> weight = table.weight  # up to date until the next update
    >>> for ids in [[0], [1]]:
    ...     table.update(ids, np.ones((1, 1)))
    >>> table.flush()  # moves row 0, which was not in the second batch
    >>> weight.ravel().round(3), sorted(table.state)
    (array([-0.167, -0.074]), ['exp_avg', 'exp_avg_sq'])
    >>> table.optimizer = se.Adam(lr=0.01)  # between steps
    >>> table.synchronize()  # waits for a GPU
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
        if not callable(initializer):
            raise TypeError(f"initializer must be a function such as se.initializers.normal, got {initializer!r}")
        engine = engine_for(device_name(device))
        where = engine.place(device)
        weight = matrix(initializer(shape, dtype=kind, rng=rng), "initializer(...)")
        owned = getattr(initializer, "func", initializer) in initializers.FRESH  # `func` of a functools.partial
        if weight.shape != shape or weight.dtype != kind:
            got = f"{weight.dtype} {weight.shape}"
            raise ValueError(f"initializer must return a {kind} array of shape {shape}, got {got}")
        self._contents = Contents(engine, engine.hold(where, engine.fresh(where, weight, owned), optimizer, options))

    @classmethod
    def from_array(
        cls,
        weight: Any,
        optimizer: Rule | None = None,
        *,
        copy: bool = False,
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
        TypeError, ValueError
            For arguments that do not fit, such as a read-only array that is to be updated in place.

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
        self = cls.__new__(cls)
        self._contents = Contents(engine, engine.adopt(weight, optimizer, options, copy))
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

        Raises
        ------
        TypeError, IndexError
            For ids of another dtype, or out of range.

        Notes
        -----
        ``table[ids]`` is the same.

        Examples
        --------
        >>> import sparsembed as se
        >>> table = se.EmbeddingTable(9, 4, rng=0)
        >>> table.lookup([[1, 2, 1]]).shape
        (1, 3, 4)
        """
        contents = self._contents
        return lookup(contents.engine, contents.table, None, ids, None, contents)

    def __getitem__(self, ids: Any) -> Any:
        return self.lookup(ids)

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
            Of the kind of the ids (NumPy, torch, jax).

        Raises
        ------
        TypeError, ValueError, IndexError
            For arguments that do not fit.

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
        contents, engine, table = self._ready(check_finite)
        if not isinstance(gradient, RowGradient):
            raise TypeError(f"gradient must be a RowGradient, got {type(gradient).__name__}; use update(ids, grad_out)")
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

    def flush(self) -> None:
        """Let every row catch up with the dense optimizer; reading `weight` or `state` does so, too.

        Notes
        -----
        One pass over the table if any step was taken since; nothing for rules that touch only the rows
        of a batch, such as `SparseAdam`.
        """
        self._contents.flush()

    def synchronize(self) -> None:
        """Wait for a GPU, and raise for ids that were out of range since the last time; on the CPU nothing waits."""
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
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self._contents.table.num_rows)

    @property
    def dim(self) -> int:
        """Numbers in a row."""
        return int(self._contents.table.dim)

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
    def optimizer(self) -> Rule | None:
        """The optimizer, an immutable value; set it to change hyperparameters between steps.

        The new value must keep the same state.  If more than the learning rate changes, every row
        catches up first.
        """
        return self._contents.rule

    @optimizer.setter
    def optimizer(self, rule: Rule) -> None:
        self._contents.set_rule(rule)

    @property
    def weight(self) -> Any:
        """The (num_rows, dim) array itself, up to date; not a copy.

        With an optimizer whose rows catch up (`Adam`, `AdamW`, `SGD` with momentum or decay) it is up
        to date until the next update; see `flush`.
        """
        self._contents.flush()
        return self._contents.given

    @property
    def state(self) -> dict[str, Any]:
        """Views of the optimizer's state: slots (num_rows, dim), row slots (num_rows,)."""
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

        Notes
        -----
        All of one step: updates of other threads wait.
        """
        return self._contents.saved()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Parameters
        ----------
        state_dict : mapping
            Of a table of equal shape, dtype and optimizer slots.

        Raises
        ------
        KeyError, TypeError, ValueError
            If anything is missing, left over or does not fit; nothing changes then.
        """
        self._contents.restore(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return self._contents.pickled()

    def __setstate__(self, saved: dict[str, Any]) -> None:
        engine = engine_for(device := f"cuda:{saved['device']}" if "device" in saved else "cpu")
        options = Options(**{name: value for name, value in saved.items() if name in Options._fields})
        where = engine.place(device)
        weight = engine.fresh(where, saved["state_dict"]["weight"], True)
        self._contents = Contents(engine, engine.hold(where, weight, saved["optimizer"], options))
        self._contents.restore(saved["state_dict"])

    def __repr__(self) -> str:
        contents = self._contents
        what = f"{self.num_rows} x {self.dim} {contents.table.dtype}, {contents.rule}, step {self.step}"
        what += contents.options.shown + f", {shown(contents.nbytes)}" + contents.engine.place_name(contents.where)
        return f"{type(self).__name__}({what})"
