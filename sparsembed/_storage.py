"""TableStorage: what a table holds (weights, optimizer state, step), and how it is saved."""

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from . import _launch, _memory, _norms
from . import _validate as check
from ._arrays import Array, as_array
from ._lag import Lag
from ._options import Options
from .rules import Rule

_TABLES: "weakref.WeakSet[TableStorage]" = weakref.WeakSet()
_LAST_STEP = 2**31 - 2  # of rows that catch up: their last steps are int32


class TableStorage:
    """Weights (num_rows, dim), slots (num_rows, slots, dim), row slots (num_rows, row_slots)."""

    def _hold(self, weight: Array, optimizer: Rule | None, options: Options) -> None:
        num_rows, dim = weight.shape
        self._weight, self._optimizer, self._options = weight, optimizer, options
        self._limit = None
        if options.max_norm is not None:
            self._limit = _norms.limit(options.max_norm, options.norm_type, 1e-7, weight)  # 1e-7: as torch
        self._steps = np.zeros(1, np.int64)  # counted by the kernel
        slots = () if optimizer is None else optimizer.slots
        row_slots = () if optimizer is None else optimizer.row_slots
        self._state = _memory.zeros((num_rows, len(slots), dim), weight.dtype)
        self._row_state = _memory.zeros((num_rows, len(row_slots)), weight.dtype)
        self._constrain()
        self._lock = threading.RLock()
        _TABLES.add(self)
        self._last = _memory.zeros((num_rows if self._catches_up else 0,), np.int32)
        self._begin()

    def _constrain(self) -> None:
        """Make all rows what the options promise, so that no lookup has to."""
        if self.padding_idx is not None:
            self._weight[self.padding_idx] = 0
        if self._limit is not None:
            _norms.clip_rows(self._weight, self._limit)

    @property
    def _catches_up(self) -> bool:
        return self._optimizer is not None and self._optimizer.catch_up is not None

    def _begin(self) -> None:
        """Start a history: every row is up to date."""
        if self._steps[0]:  # else it is zero, and takes no memory yet
            self._last[:] = self._steps[0]
        rule = self._optimizer
        self._history: Any = None
        if rule is not None and self._catches_up:
            self._history = rule.history(self._weight.dtype, self.step)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Lag | None]:
        """Give what rows need to catch up with the newest step, or None if they miss nothing.

        Rows that catch up are read one lookup at a time: a row that another thread brings up to date in
        the middle of it would catch up twice.
        """
        if self._history is None:
            yield None
            return
        with self._lock:
            self._history.sync(self.step)
            yield self._current()

    def _current(self) -> Lag:
        return Lag(self._optimizer, self._state, self._last, self._history)

    def _flush(self) -> None:
        _launch.flush_rows(self._weight, self._state, self._current())
        self._begin()

    def _before_step(self, hyper: tuple[float, ...]) -> Lag:
        """Note what the next step will do."""
        if self.step >= _LAST_STEP:
            raise ValueError(f"the table has taken {self.step} steps, and its int32 column of last steps holds no more")
        self._history.sync(self.step)
        if self._history.full or not self._history.takes(hyper):
            self._flush()
            self._history.takes(hyper)
        self._history.record(self.step + 1, hyper)
        return self._current()

    def flush(self) -> None:
        """Bring every row up to date with the dense optimizer; reading `weight` or `state` does so, too.

        Notes
        -----
        One pass over the table if any step was taken since; nothing for rules that touch only the rows
        of a batch, such as `SparseAdam`.
        """
        with self._reading():
            if self._history is not None and self._history.newest:
                check.weight(self._weight, "the table", writeable=True)
                self._flush()

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
        if self._history is not None and _but_lr(rule) != _but_lr(self._optimizer):
            self.flush()
            self._optimizer = rule
            self._begin()
        self._optimizer = rule

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
        rule = self._optimizer
        if rule is None:
            return {}
        slots = {name: self._state[:, k] for k, name in enumerate(rule.slots)}
        return slots | {name: self._row_state[:, k] for k, name in enumerate(rule.row_slots)}

    @property
    def step(self) -> int:
        """Number of updates so far."""
        return int(self._steps[0])

    def __repr__(self) -> str:
        arrays = (self._weight, self._state, self._row_state, self._last)
        size, unit = float(sum(array.nbytes for array in arrays)), "B"
        for larger in ("KiB", "MiB", "GiB", "TiB"):
            if size >= 1024:
                size, unit = size / 1024, larger
        what = f"{self.num_rows} x {self.dim} {self._weight.dtype}"
        what += f", {self._optimizer}, step {self.step}{self._options.shown}"
        return f"{type(self).__name__}({what}, {size:.1f} {unit})"

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that training changes: "weight", "step" and each slot by name.

        Returns
        -------
        dict of arrays, and an int
        """
        return {"weight": self.weight.copy(), "step": self.step} | {k: v.copy() for k, v in self.state.items()}

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
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
        targets = {"weight": self._weight} | self.state
        if wrong := sorted({*targets, "step"} ^ set(state_dict), key=str):
            raise KeyError(f"state_dict must have exactly the keys {[*targets, 'step']}; missing or left over: {wrong}")
        saved = as_array(state_dict["step"], "step")
        if saved.size != 1:
            raise ValueError(f"state_dict['step'] must be one integer, got an array of shape {saved.shape}")
        step = check.count(saved.item(), "step", least=0)
        if self._catches_up and step > _LAST_STEP:
            raise ValueError(f"state_dict['step'] must be at most {_LAST_STEP} with {self._optimizer}, got {step}")
        sources = {}
        for name, target in targets.items():
            source = as_array(state_dict[name], name)
            if source.shape != target.shape or source.dtype != target.dtype:
                expected = f"{target.dtype} {target.shape}"
                raise ValueError(f"state_dict[{name!r}] must be {expected}, got {source.dtype} {source.shape}")
            own = any(np.may_share_memory(source, each) for each in targets.values())
            sources[name] = source.copy() if own else source
        if not self._weight.flags.writeable:
            raise ValueError("the table is read-only; make it with copy=True")
        with self._lock:
            for name, target in targets.items():
                target[...] = sources[name]
            self._constrain()
            self._steps[0] = step
            self._begin()

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer, "state_dict": self.state_dict()} | self._options._asdict()

    def __setstate__(self, saved: dict[str, Any]) -> None:
        options = Options(*(saved[name] for name in Options._fields))
        self._hold(_memory.owned(saved["state_dict"]["weight"]), saved["optimizer"], options)
        self.load_state_dict(saved["state_dict"])


def _but_lr(rule: Any) -> dict[str, Any]:
    return {field.name: getattr(rule, field.name) for field in fields(rule) if field.name != "lr"}


def _renew_locks() -> None:
    """A child forked while another thread updated a table must not wait for that thread."""
    for table in _TABLES:
        table._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
