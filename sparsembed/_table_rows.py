"""What a table does with its rows besides looking them up: iterate, replace, take some, convert."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _check as check
from ._contents import Contents
from ._cpu.inputs import flat_ids
from ._cpu.memory import shown
from ._frameworks import as_array
from ._typing import Array


class TableRows:
    """The methods of `EmbeddingTable` that are about rows and not about steps."""

    _contents: Contents
    _of: Callable[[Contents], Any]  # makes a table of contents
    lookup: Callable[[Any], Any]

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
        if type(ids) is tuple and ids and all(isinstance(each, int) for each in ids):
            raise TypeError(
                f"table[{', '.join(map(repr, ids))}] is not defined: for several rows pass a list, table[{list(ids)}]; "
                "for one number use table.weight"
            )
        return self.lookup(ids)

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(self.num_rows))

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
        contents.engine.check_writeable(contents.table)
        values = as_array(vectors, "vectors")
        if values.dtype.kind not in "fiu" or values.shape != (len(rows), self.dim):
            wanted = f"a float array of shape {(len(rows), self.dim)}, one row for each id"
            raise ValueError(f"vectors must be {wanted}, got {values.dtype} {values.shape}")
        if contents.padding >= 0 and (found := np.flatnonzero(rows == contents.padding)).size:
            raise ValueError(
                f"ids[{found[0]}] is {contents.padding}, the padding_idx, whose row stays zero; leave it out"
            )
        if len(rows):
            contents.reset(rows, values.astype(contents.table.dtype), keep=not reset)

    def take(self, rows: Any) -> Any:
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

    def astype(self, dtype: npt.DTypeLike, *, rounding: None = None) -> Any:
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
        return self._of(self._contents.converted(check.table_dtype(dtype)))

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
