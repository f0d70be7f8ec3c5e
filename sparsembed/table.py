"""EmbeddingTable: weights plus optimizer state, updated in place."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _memory, functional, initializers, pooling
from . import _validate as check
from ._device import SignatureOfInit, device_name, engine, on_device
from ._options import Options
from ._training import TrainedTable
from .bags import Bags
from .rules import Rule


class EmbeddingTable(TrainedTable):
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
        The largest norm of a row.  Rows that are larger are scaled by ``max_norm / (norm + 1e-7)``, all of
        them when the table is made or loaded, and then those that an update touches, after it: no lookup
        finds a larger one, and none writes.  For optimizers that change the rows of a batch only; others
        raise.
    norm_type : float
        The p of that norm, above zero; ``math.inf`` for the largest number.
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
    """

    __signature__ = SignatureOfInit()

    def __new__(cls, *args: Any, **kwargs: Any) -> "EmbeddingTable":
        """Choose the form for a device; subclasses are what they are."""
        form = cls
        if cls is EmbeddingTable and device_name(kwargs.get("device", "cpu")) != "cpu":
            form = engine("table").DeviceTable
        return super().__new__(form)

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
        self._place(device)
        shape = (check.count(num_rows, "num_rows"), check.count(dim, "dim"))
        kind = check.table_dtype(dtype)
        check.size(*shape, kind)
        given = Options(padding_idx, max_norm, norm_type, scale_grad_by_freq)
        options = given.checked(shape[0], optimizer, kind)
        if not callable(initializer):
            raise TypeError(f"initializer must be a function such as se.initializers.normal, got {initializer!r}")
        weight = check.weight(initializer(shape, dtype=kind, rng=rng), "initializer(...)")
        fresh = getattr(initializer, "func", initializer) in initializers.FRESH  # func: of a partial
        if weight.shape != shape or weight.dtype != kind:
            got = f"{weight.dtype} {weight.shape}"
            raise ValueError(f"initializer must return a {kind} array of shape {shape}, got {got}")
        self._hold(_memory.owned(weight) if fresh else _memory.copy(weight), optimizer, options)

    def _place(self, device: str) -> None:
        """Note where the table lies."""
        if device_name(device) != "cpu":
            raise ValueError(
                f"device must be 'cpu' for a {type(self).__name__}, got {device!r}; only EmbeddingTable itself has "
                "tables on a GPU"
            )

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
            Any strides; a writeable memory map, too.  A device array makes a table on its GPU.  Whatever hands
            out copies of its memory, such as a list or a file's array, needs ``copy=True`` if it is to be written to.
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
        given = Options(padding_idx, max_norm, norm_type, scale_grad_by_freq)
        if on_device(weight):
            if cls is not EmbeddingTable:
                raise TypeError(
                    f"weight is on a GPU, where only EmbeddingTable itself has tables, not {cls.__name__}; "
                    "use se.EmbeddingTable.from_array, or move the weight to the host"
                )
            return engine("table").DeviceTable._adopt(weight, optimizer, given, copy)  # type: ignore[no-any-return]
        written = not copy and any(each is not None for each in (optimizer, padding_idx, max_norm))
        array = check.weight(check.ndarray(weight, "weight") if written else weight)
        check.count(len(array), "weight.shape[0]")
        options = given.checked(len(array), optimizer, array.dtype)
        if written:
            check.in_place(array, "weight", "copy=True")
        self = cls.__new__(cls)
        self._hold(_memory.copy(array) if copy else array, optimizer, options)
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
        with self._guard:
            return functional.lookup(self._weight, ids, self._missed())

    __getitem__ = lookup

    def pool(self, bags: Bags, mode: str = "sum") -> Any:
        """Pool the rows of each bag into one; see `sparsembed.pool`.

        Parameters
        ----------
        bags : Bags
        mode : {"sum", "mean", "sqrtn", "max"}

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
        with self._guard:
            return pooling.pool_bags(self._weight, bags, mode, None, self.padding_idx, self._missed())
