"""Contents: what a table holds (weight, state, step, missed steps), on any engine."""

import os
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from . import _check as check
from ._options import Options
from ._saved import check_next, weights_of
from .rules import Rule
from .rules._history import History
from .rules._rule import but_lr, keeps_state

STEP, BASE, STARTS = 0, 1, 2  # indices into `steps`
_CONTENTS: "weakref.WeakSet[Contents]" = weakref.WeakSet()


class Contents:
    """Weight (num_rows, dim), slots (num_rows, slots, dim), row slots (num_rows, row_slots), step and history.

    An engine makes, reads and writes these parts; `Contents` decides the order.  `steps` holds three numbers: the
    newest step, the step at which the history starts, and how many histories were started.  A kernel writes `steps`
    in the same call as the rows, so an interrupt cannot separate rows and steps; the history is then updated from
    `steps`.  Other parts that must change together are made first, and then replaced in one assignment.

    Parameters
    ----------
    engine : Engine
    parts : dict
        What `Engine.hold` and `Engine.adopt` return.
    seed : int, optional
        64 bits for everything that is drawn later; of entropy by default.
    """

    lock: Any
    gate: Any  # the lock that a step holds
    table: Any  # an engine's `Table`
    given: Any  # the weight as the caller gets it
    rule: Rule | None
    options: Options
    state: Any
    row_state: Any
    steps: Any
    last: Any  # (num_rows,): the last step that each row has taken; empty unless rows catch up
    limit: Any  # the argument `limit` of kernels, for max_norm; or None
    history: History | None
    where: Any  # where the table lies, as its engine describes it
    is_free: bool  # whether lookups need no lock
    padding: int  # -1 for none
    few: dict[Any, Any]  # what the engine keeps for calls with few ids
    # Told the rows of each batch before they are written: an interrupt may name rows in vain, and cannot miss any.
    # When all rows catch up, or a batch steps all of them (`steps[STARTS]` tells), other rows are written, too.
    watch: Callable[[Any], None] | None

    def __init__(self, engine: Any, parts: dict[str, Any], seed: int | None = None) -> None:
        self.engine, self.seed = engine, secrets.randbits(64) if seed is None else seed
        self.lock = self.gate = threading.RLock()  # on a GPU another lock, held during a recording
        self.where = self.watch = None
        self.saving = self.is_copy = False  # a copy: nobody who gave the array would see it change
        self.commit(parts)
        _CONTENTS.add(self)

    def commit(self, parts: dict[str, Any]) -> None:
        """Replace parts in one call into C, which an interrupt cannot split."""
        if "options" in parts:
            padding = parts["options"].padding_idx
            parts = parts | {"padding": -1 if padding is None else padding}
        parts = parts | {"few": {}}  # made for the old parts
        if "history" in parts:
            parts = parts | {"is_free": parts["history"] is None and self.engine.locks_free}
        vars(self).update(parts)

    @property
    def step(self) -> int:
        """Number of updates so far."""
        return int(self.steps[STEP])

    @property
    def catches_up(self) -> bool:
        """Whether steps change rows that are not in their batch."""
        return self.rule is not None and self.rule.catch_up is not None

    @property
    def some_missed(self) -> bool:
        """Whether rows may have missed steps."""
        return self.history is not None and bool(self.steps[STEP] != self.steps[BASE])

    def trainable(self) -> Rule:
        """Return the rule; refuse a table that cannot be updated."""
        if self.rule is None:
            raise ValueError("the table has no optimizer, so it cannot be updated; set table.optimizer first")
        return self.rule

    def synced(self) -> History:
        """Return the history up to the newest step; a new one if every row has caught up since."""
        step, base, start = self.steps.tolist()
        history = self.history
        if history is None or self.rule is None:
            raise ValueError("rows of this table miss no steps")
        if history.start != start:
            if history.by_step:
                self.history = history = history.renewed(base, start)
            else:
                history = self.rule.history(self.table.dtype, base)
                history.start = start
                self.history = history
        history.sync(step)
        return history

    def flush(self) -> None:
        """Apply the missed steps to every row."""
        if not self.is_free:
            with self.lock:
                self.engine.ready(self)
                if self.history is not None and self.synced().newest:
                    self.engine.flush(self)

    def take_step(self, call: Any, rows: Any, grads: Any, skip: int | None = None) -> None:
        """Take a step: check everything, then start the kernels, which alone write."""
        skip = self.padding if skip is None else skip
        recording = self.gate is not self.lock and bool(self.gate._is_owned())
        with self.gate, self.lock:
            rule, step = self.rule or self.trainable(), int(self.steps[STEP])
            exact = rule.hyper(step + 1)
            hyper = rule.cast(exact, step + 1, self.table.dtype)
            check_next(rule, step)
            self.record(step + 1, exact)
            missed = self.engine.missed(self, writing=True)
            if self.watch is not None:
                self.watch(self.engine.part(rows, "rows"))
            self.engine.update(call, self, rows, grads, skip, hyper, missed, recording)
        rows.recycle()

    def record(self, step: int, hyper: tuple[float, ...]) -> None:
        """Record the next step in the history, which then holds the steps before it; nothing if rows miss no steps."""
        if self.history is not None:
            history = self.synced()
            if history.full or not history.takes(hyper):
                self.engine.flush(self)
                history = self.synced()
            history.record(step, hyper)

    def set_rule(self, rule: Rule) -> None:
        """Replace the hyperparameters; if more than the learning rate changes, all rows catch up first."""
        check.optimizer(rule, self.table.dtype)
        if rule is None:
            raise ValueError("optimizer must be an optimizer, got None; a table that is not updated needs none")
        with self.gate, self.lock:
            if not keeps_state(rule, self.rule):
                self._exchange(rule)
                return
            history = self.history
            if history is not None and but_lr(rule) != but_lr(self.rule):
                self.flush()
                history = rule.history(self.table.dtype, self.step)
                history.start = int(self.steps[STARTS])
            self.commit({"rule": rule, "history": history})

    def _exchange(self, rule: Rule) -> None:
        """Replace the rule by one of another class, before the first step."""
        if self.step:
            raise ValueError(
                f"optimizer must keep the state of {self.rule!r} at step {self.step}, got {rule!r}; call reset_state() "
                "first, which sets state and step to zero"
            )
        self._unread()
        self.trainable_array()
        options = self.options.checked(self.table.num_rows, rule, self.table.dtype)
        parts = self.engine.hold(self.where, self.given, rule, options, constrain=False)
        parts.pop("gate", None)  # this thread holds it
        self.commit(parts)

    def trainable_array(self) -> None:
        """Refuse a weight that cannot be changed in place, or not where its giver would see it."""
        if self.is_copy:
            raise TypeError(
                "the table is of a list, or of an object that gave out a copy of its memory, which would not change; "
                "make it with copy=True"
            )
        self.engine.check_trainable(self.table)

    def _unread(self) -> None:
        """Refuse a change while the table is being saved, by the function that hears of the progress."""
        if self.saving:
            raise RuntimeError("the table is being saved; progress must not change it")

    def adopt(self, arrays: Mapping[str, Any]) -> None:
        """Replace "state", "row_state" or "last" by given arrays, such as the arrays of a file."""
        with self.gate, self.lock:
            self.commit(self.engine.with_arrays(self, arrays))

    def grow(self, rows: Any) -> None:
        """Append rows to the table; their state is zero, and they have missed no step."""
        with self.gate, self.lock:
            self.commit(self.engine.grown(self, rows))

    def reset(self, rows: Any, weights: Any, keep: bool = False) -> None:
        """Give rows new weights, and fresh state unless `keep`; all or nothing.  They have missed no step then."""
        with self.gate, self.lock:
            self._unread()
            slots = None
            if keep and self.some_missed and self.engine.rows_catch_up_alone:
                part = Contents(self.engine, self.engine.taken(self, rows, Options()))
                part.flush()
                slots = part.state
            elif keep:
                self.flush()
            self.engine.reset(self, rows, weights, slots, keep)

    def clear(self) -> None:
        """Set state and step to zero; the weights are those that all rows have caught up to."""
        with self.gate, self.lock:
            self._unread()
            self.engine.synchronize(self)
            self.flush()
            self.engine.clear(self)

    def taken(self, rows: Any, options: Options) -> "Contents":
        """Return copies of these rows, with their state and step, as the contents of another table."""
        with self.gate, self.lock:
            return Contents(self.engine, self.engine.taken(self, rows, options), self.seed)

    def saved(self) -> dict[str, Any]:
        """Return copies of weight, step and state as NumPy arrays, all of one step."""
        with self.lock:
            self.engine.synchronize(self)
            self.flush()
            found: dict[str, Any] = self.engine.saved(self)
            return found

    def restore(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Restore a dict that `saved` returned; refuse one that does not fit, or unless `strict` take its weights."""
        with self.gate, self.lock:
            self._unread()
            if not strict:
                state_dict = weights_of(state_dict, self.columns, self.table.dtype)
            self.engine.restore(self, state_dict)

    @property
    def columns(self) -> dict[str, Any]:
        """Views of the state by name."""
        found: dict[str, Any] = self.engine.columns(self)
        return found

    def pickled(self) -> dict[str, Any]:
        """Return what a pickle holds: names and plain values, all of one step."""
        with self.lock:
            found = {"optimizer": self.rule, "state_dict": self.saved(), "seed": self.seed} | self.options._asdict()
            place: dict[str, Any] = self.engine.place_saved(self)
            return found | place

    @property
    def nbytes(self) -> int:
        """Bytes of weight and state."""
        return int(sum(each.nbytes for each in (self.table.array, self.state, self.row_state, self.last)))


def _renew_locks() -> None:
    """Make new locks in a forked child: a thread that does not exist in the child may have held the old ones."""
    for contents in _CONTENTS:
        shared = contents.gate is contents.lock
        contents.lock = threading.RLock()
        contents.gate = contents.lock if shared else threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
