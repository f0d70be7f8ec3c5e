"""TableStorage: what a table holds (weights, optimizer state, step), and how it is saved."""

import contextlib
import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _launch, _memory, _norms, _saved
from . import _validate as check
from ._arrays import Array
from ._lag import Lag
from ._options import Options
from .kernels.cpu.catch_up import BASE, STARTS, STEP
from .rules import Rule
from .rules._history import History
from .rules._rule import but_lr

_TABLES: "weakref.WeakSet[TableStorage]" = weakref.WeakSet()
_NOTHING = contextlib.nullcontext()


class TableStorage:
    """Weights (num_rows, dim), slots (num_rows, slots, dim), row slots (num_rows, row_slots).

    `_steps` = (step, step up to which every row was up to date, how often that was so): kernels write it, in the
    call that writes the rows, and the history follows it.  So no interrupt can come between rows and steps.
    Whatever else belongs together is made apart, and put in place by one assignment.
    """

    _weight: Array
    _optimizer: Rule | None
    _options: Options
    _state: Array
    _row_state: Array
    _steps: Array
    _last: Array
    _limit: Any
    _history: History | None
    _lock: Any

    def _hold(
        self,
        weight: Array,
        optimizer: Rule | None,
        options: Options,
        step: int = 0,
        state: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """Hold these weights, at a step, with fresh state or that of some slots; and `others` in the same moment."""
        found = self._made(weight, optimizer, options, step)
        for array, part in zip((found["_state"], found["_row_state"]), _names(optimizer), strict=True):
            for k, name in enumerate(part if state else ()):
                array[:, k] = state[name]  # type: ignore[index]
        lock = vars(self).get("_lock") or threading.RLock()
        self._commit(found | others | {"_lock": lock})
        _TABLES.add(self)

    def _made(self, weight: Array, optimizer: Rule | None, options: Options, step: int) -> dict[str, Any]:
        """Return what a table of these weights holds, at a step and with fresh state; nothing is in place yet."""
        num_rows, dim = weight.shape
        slots, row_slots = _names(optimizer)
        limit = None
        if options.max_norm is not None:
            limit = _norms.limit(options.max_norm, options.norm_type, 1e-7, weight)  # 1e-7: as torch
        history, catches_up = None, optimizer is not None and optimizer.catch_up is not None
        if optimizer is not None and catches_up:
            history = optimizer.history(weight.dtype, step)
        last = _memory.zeros((num_rows if catches_up else 0,), np.int32)
        if step and catches_up:  # else it is zero, and takes no memory yet
            last[:] = step
        self._constrain(weight, limit, options.padding_idx)
        return {
            "_weight": weight,
            "_optimizer": optimizer,
            "_options": options,
            "_state": _memory.zeros((num_rows, len(slots), dim), weight.dtype),
            "_row_state": _memory.zeros((num_rows, len(row_slots)), weight.dtype),
            "_steps": np.array([step, step, 0]),
            "_last": last,
            "_limit": limit,
            "_history": history,
        }

    def _commit(self, found: dict[str, Any]) -> None:
        """Put all of it in place: one call into C, which no interrupt can split."""
        vars(self).update(found)

    def _constrain(self, weight: Array, limit: Any, padding_idx: int | None) -> None:
        """Make all rows what the options promise, so that no lookup has to."""
        if padding_idx is not None:
            weight[padding_idx] = 0
        if limit is not None:
            _norms.clip_rows(weight, limit)

    @property
    def _catches_up(self) -> bool:
        return self._optimizer is not None and self._optimizer.catch_up is not None

    @property
    def _guard(self) -> Any:
        """What a lookup holds while it reads: the lock, where rows catch up.

        They are read one lookup at a time: a row that another thread brings up to date in the middle of it would
        catch up twice.
        """
        return _NOTHING if self._history is None else self._lock

    @property
    def _some_missed(self) -> bool:
        """Whether rows may have missed steps."""
        return self._history is not None and bool(self._steps[STEP] != self._steps[BASE])

    def _missed(self) -> Lag | None:
        """What rows need to catch up with the newest step, or None if they miss nothing; within `_guard`."""
        return None if self._history is None else self._current(self._synced(self._history))

    def _synced(self, history: History) -> History:
        """Bring the history forward to the newest step, or start anew where every row has been brought up to date."""
        _, base, start = self._steps.tolist()
        if history.start != start and self._optimizer is not None:
            history = self._optimizer.history(self._weight.dtype, base)
            history.start = start
            self._history = history
        history.sync(self.step)
        return history

    def _current(self, history: History) -> Lag:
        return Lag(self._optimizer, self._state, self._last, history)

    def _flush(self, history: History) -> History:
        _launch.flush_rows(self._weight, self._state, self._steps, self._current(history))
        return self._synced(history)

    def _before_step(self, hyper: tuple[float, ...]) -> Lag | None:
        """Note what the next step will do; returns what rows need to catch up with the one before it."""
        _saved.check_next(self._optimizer, self.step)
        if self._history is None:
            return None
        history = self._synced(self._history)
        if history.full or not history.takes(hyper):
            history = self._flush(history)
        history.record(self.step + 1, hyper)
        return self._current(history)

    def flush(self) -> None:
        """Bring every row up to date with the dense optimizer; reading `weight` or `state` does so, too.

        Notes
        -----
        One pass over the table if any step was taken since; nothing for rules that touch only the rows
        of a batch, such as `SparseAdam`.
        """
        with self._guard:
            if self._history is not None and (history := self._synced(self._history)).newest:
                check.weight(self._weight, "the table", writeable=True)
                self._flush(history)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self._weight.shape[0])

    @property
    def dim(self) -> int:
        """Numbers in a row."""
        return int(self._weight.shape[1])

    @property
    def padding_idx(self) -> int | None:
        """The id whose row stays zero."""
        return self._options.padding_idx

    @property
    def max_norm(self) -> float | None:
        """The largest norm of a row."""
        return self._options.max_norm

    @property
    def norm_type(self) -> float:
        """The p of the norm that `max_norm` limits."""
        return self._options.norm_type

    @property
    def scale_grad_by_freq(self) -> bool:
        """Whether a row's gradient is the mean over its occurrences, rather than their sum."""
        return self._options.scale_grad_by_freq

    @property
    def optimizer(self) -> Rule | None:
        """The optimizer, an immutable value; set it to change hyperparameters between steps.

        The new value must keep the same state.  If more than the learning rate changes, every row is
        brought up to date first.
        """
        return self._optimizer

    @optimizer.setter
    def optimizer(self, rule: Rule) -> None:
        check.optimizer(rule, self._weight.dtype)
        if type(rule) is not type(self._optimizer):
            raise ValueError(f"optimizer must keep the state of {self._optimizer!r}, got {rule!r}; make a new table")
        with self._lock:
            history = self._history
            if history is not None and but_lr(rule) != but_lr(self._optimizer):
                self.flush()
                history = rule.history(self._weight.dtype, self.step)
                history.start = int(self._steps[STARTS])
            self._commit({"_optimizer": rule, "_history": history})

    @property
    def weight(self) -> Array:
        """The (num_rows, dim) array itself, up to date; not a copy.

        With an optimizer whose rows catch up (`Adam`, `AdamW`, `SGD` with momentum or decay) it is up
        to date until the next update; see `flush`.
        """
        self.flush()
        return self._weight

    @property
    def state(self) -> dict[str, Array]:
        """Views of the optimizer's state: slots (num_rows, dim), row slots (num_rows,)."""
        self.flush()
        return self._slots()

    def _slots(self) -> dict[str, Array]:
        """Views of the state as it lies."""
        slots, row_slots = _names(self._optimizer)
        found = {name: self._state[:, k] for k, name in enumerate(slots)}
        return found | {name: self._row_state[:, k] for k, name in enumerate(row_slots)}

    @property
    def step(self) -> int:
        """Number of updates so far."""
        return int(self._steps[STEP])

    def __repr__(self) -> str:
        arrays = (self._weight, self._state, self._row_state, self._last)
        what = f"{self.num_rows} x {self.dim} {self._weight.dtype}"
        what += f", {self._optimizer}, step {self.step}{self._options.shown}"
        return f"{type(self).__name__}({what}, {_memory.shown(sum(array.nbytes for array in arrays))})"

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that training changes: "weight", "step" and each slot by name.

        Returns
        -------
        dict of arrays, and an int

        Notes
        -----
        All of one step: updates of other threads wait.
        """
        with self._lock:
            self.flush()
            copies = {name: array.copy() for name, array in self._slots().items()}
            return {"weight": self._weight.copy(), "step": self.step} | copies

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
        with self._lock:
            targets = {"weight": self._weight} | self._slots()
            step, sources = _saved.read(state_dict, targets, self._optimizer)
            if not self._weight.flags.writeable:
                raise ValueError("the table is read-only; make it with copy=True")
            padding = self._ready_to_restore(sources)
            pairs = [(targets[name], sources[name]) for name in targets]
            _launch.restore_rows(self._weight, pairs, padding, self._last, self._steps, step)

    def _ready_to_restore(self, sources: dict[str, Array]) -> int:
        """Make weights to be restored what the options promise, in a copy; returns the row to clear, or -1."""
        if self._limit is not None:
            sources["weight"] = _memory.copy(sources["weight"])
            _norms.clip_rows(sources["weight"], self._limit)
        return -1 if self.padding_idx is None else self.padding_idx

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {"optimizer": self._optimizer, "state_dict": self.state_dict()} | self._options._asdict()

    def __setstate__(self, saved: dict[str, Any]) -> None:
        options = Options(*(saved[name] for name in Options._fields))
        self._hold(_memory.owned(saved["state_dict"]["weight"]), saved["optimizer"], options)
        self.load_state_dict(saved["state_dict"])


def _names(rule: Rule | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the slots and of the row slots of a rule."""
    return ((), ()) if rule is None else (rule.slots, rule.row_slots)


def _renew_locks() -> None:
    """A child forked while another thread updated a table must not wait for that thread."""
    for table in _TABLES:
        table._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
