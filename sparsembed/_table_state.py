"""What a table keeps from step to step: weights, state, optimizer; saved, loaded, pickled."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from . import _check as check
from ._contents import Contents
from ._engine import CPU, engine_for
from ._options import Options
from .rules import Rule
from .storage.saving import save_contents


class TableState:
    """The methods of `EmbeddingTable` that are about its contents as a whole."""

    _contents: Contents

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
        may leave one, named ``.<name>.<8 digits>.tmp``.

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

    def __getstate__(self) -> dict[str, Any]:
        return self._contents.pickled()

    def __setstate__(self, saved: dict[str, Any]) -> None:
        engine = engine_for(device := f"cuda:{saved['device']}" if "device" in saved else "cpu")
        options = Options(**{name: value for name, value in saved.items() if name in Options._fields})
        where = engine.place(device)
        weight = engine.fresh(where, saved["state_dict"]["weight"], True)
        self._contents = Contents(engine, engine.hold(where, weight, saved["optimizer"], options), saved.get("seed"))
        self._contents.restore(saved["state_dict"])
