"""DeviceStorage: what a table on a GPU holds, and how it is saved."""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np

from .. import _norms
from .. import _validate as check
from .._device import device_name
from .._options import Options
from .._storage import _TABLES
from ..kernels.cpu.catch_up import STARTS
from ..rules import Rule
from ..rules._history import History
from ..table import EmbeddingTable
from . import errors, inputs, launch
from . import queue as queues
from .array import DeviceArray
from .late import LateRows
from .views import LEGACY, Caller, caller_of, stream_of, view


class DeviceStorage(EmbeddingTable):
    """Weights and state on a GPU, and how they are saved."""

    _on_device = True
    _begun: Any = None  # the rule and the step that `begin_step` was for
    _caller: Caller

    def _place(self, device: Any) -> None:
        _, _, number = device_name(device).partition(":")
        self._caller = Caller("ours", int(number or 0), LEGACY)

    @classmethod
    def _adopt(cls, weight: Any, optimizer: Rule | None, options: Options, copy: bool) -> "DeviceStorage":
        """Make a table of a device array."""
        given = inputs.weight(weight, writeable=not copy and optimizer is not None)
        check.count(len(given), "weight.shape[0]")
        checked = options.checked(len(given), optimizer, given.dtype)
        inputs.plain(given, "weight")
        if not copy and any(each is not None for each in (options.padding_idx, options.max_norm)):
            inputs.in_place(given, "weight")
        self: Any = cls.__new__(cls)
        self._caller = caller_of(weight=weight)
        home = self._home
        with inputs.opened(weight=weight) as session, inputs.lent(home, session.queue):
            if copy:
                weight = home.empty(given.shape, given.dtype)
                home.copy(weight, given)
            self._hold(weight, optimizer, checked)
        return cast("DeviceStorage", self)

    @property
    def _home(self) -> Any:
        """The stream that the table's memory belongs to: the legacy default stream of its device."""
        return queues.open_queue(self._caller.device, LEGACY)

    def _running(self, session: inputs.Session) -> AbstractContextManager[Any]:
        """Work on the table on the stream of a call.

        Calls on several streams follow each other as the host makes them: each waits, on the device, for what the
        home stream has been given, and that waits for it; but for what is captured in a graph, which cannot wait.
        The lock is the caller's: one that a generator held would stay locked for as long as an exception lives that
        ended it.
        """
        return inputs.lent(session.queue, self._home)

    def _at_home(self) -> AbstractContextManager[Any]:
        """Work on the table on its home stream, as part of what the caller's current stream is given."""
        stream = stream_of(self._given, self._caller.device)
        return inputs.lent(self._home, queues.open_queue(self._caller.device, stream or LEGACY))

    def _hold(self, weight: Any, optimizer: Rule | None, options: Options) -> None:  # type: ignore[override]
        """Hold a weight and fresh state; what may fail is made before anything of the table is set."""
        queue = self._home
        given = queue.upload(weight) if isinstance(weight, np.ndarray) else weight
        array = view(given, "weight")
        (num_rows, dim), dtype, limit = array.shape, array.dtype, None
        if options.max_norm is not None:
            limit = _norms.limit(options.max_norm, options.norm_type, 1e-7, array)  # 1e-7: as torch
        slots = () if optimizer is None else optimizer.slots
        row_slots = () if optimizer is None else optimizer.row_slots
        state = queue.filled((num_rows, len(slots), dim), dtype, 0)
        row_state = queue.filled((num_rows, len(row_slots)), dtype, 0)
        fields = 0 if optimizer is None else len(optimizer.Hyper._fields)  # type: ignore[attr-defined]
        catches_up = optimizer is not None and optimizer.catch_up is not None
        last = queue.filled((num_rows if catches_up else 0,), np.int32, 0)
        hyper, late, history = queue.empty((fields,), dtype), LateRows(), None
        if optimizer is not None and catches_up:
            history = optimizer.history(dtype, 0)
        steps, lock, gate = np.zeros(3, np.int64), threading.RLock(), threading.RLock()
        self._given, self._optimizer, self._options, self._limit = given, optimizer, options, limit
        self._weight: Any = array
        self._state: Any = state
        self._row_state: Any = row_state
        self._last: Any = last
        self._hyper, self._late, self._history, self._begun = hyper, late, history, None
        self._steps, self._lock = steps, lock
        self._gate: Any = gate  # whoever steps holds it, and whoever records a step
        self._constrain()
        _TABLES.add(self)

    def _constrain(self) -> None:  # type: ignore[override]
        queue = self._home
        if self.padding_idx is not None:
            queue.write(self._weight.part(self.padding_idx, 1), np.zeros((1, self.dim), self._weight.dtype))
        if self._limit is not None:
            launch.clip_rows(queue, self._weight, self._limit, launch.new_status(queue))

    def _start_at(self, step: int) -> None:
        """Note that every row is up to date at a step: a history starts there."""
        self._steps[:] = step, step, self._steps[STARTS] + 1

    def _current(self, history: History) -> Any:
        """The hyperparameters of the newest step."""
        rule: Any = self._optimizer
        return type(rule).Hyper(*history.past[history.newest])

    def _flush(self, history: History) -> History:
        queue, like = self._home, self._current(history)
        self._late.sync(queue, history)
        hyper = queue.upload(np.array(like, self._weight.dtype))
        where = (self._optimizer, self._weight, self._state, self._last)
        self._late.flush(queue, *where, hyper, like, launch.new_status(queue))
        self._start_at(self.step)
        return self._synced(history)

    def flush(self) -> None:
        """Bring every row up to date with the dense optimizer."""
        with self._lock, self._at_home():
            if self._history is not None and (history := self._synced(self._history)).newest:
                self._flush(history)

    def synchronize(self) -> None:
        """Wait for the GPU, and raise for ids that were out of range since the last time."""
        errors.synchronize(self._caller.device)

    @property
    def weight(self) -> Any:
        """The (num_rows, dim) array itself, up to date: the caller's, or one that others adopt without a copy."""
        self.flush()
        return self._given

    @property
    def state(self) -> dict[str, Any]:
        """Views of the optimizer's state on the GPU: slots (num_rows, dim), row slots (num_rows,)."""
        self.flush()
        rule, found = self._optimizer, {}
        for k, name in enumerate(() if rule is None else rule.slots):
            found[name] = _column(self._state, k, (self.num_rows, self.dim))
        for k, name in enumerate(() if rule is None else rule.row_slots):
            found[name] = _column(self._row_state, k, (self.num_rows,))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Copy everything that training changes to the host, all of one step; raises for ids out of range."""
        with self._lock:
            self.synchronize()
            with self._at_home() as home:
                self.flush()
                rule, step = self._optimizer, self.step
                saved: dict[str, Any] = {"weight": home.download(self._weight), "step": step}
                state, row_state = home.download(self._state), home.download(self._row_state)
        if rule is not None:
            saved |= {name: state[:, k].copy() for k, name in enumerate(rule.slots)}
            saved |= {name: row_state[:, k].copy() for k, name in enumerate(rule.row_slots)}
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, of a table on any device; its arrays are in host memory.

        Everything is checked before the first byte is written.  Whoever interrupts it has to wait: it ends first.
        """
        inputs.in_place(self._weight, "the table")
        host = self._host()
        host.load_state_dict(state_dict)
        last = np.full(len(self._last), host.step, np.int32)

        def write() -> None:
            home.write(self._weight, host._weight)
            home.write(self._state, host._state)
            home.write(self._row_state, host._row_state)
            home.write(self._last, last)
            self._start_at(host.step)
            self._begun = None

        with self._gate, self._lock, self._at_home() as home:
            try:
                write()
            except BaseException:  # half of it is there
                write()
                raise

    def _host(self) -> EmbeddingTable:
        """A table of the same kind in host memory, empty."""
        empty = np.zeros(self._weight.shape, self._weight.dtype)
        return EmbeddingTable.from_array(empty, self._optimizer, **self._options._asdict())

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return super().__getstate__() | {"device": self._caller.device}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self._place(f"cuda:{saved['device']}")
        super().__setstate__(saved)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, cuda:{self._caller.device})".replace("DeviceTable", "EmbeddingTable", 1)


def _column(array: DeviceArray, k: int, shape: tuple[int, ...]) -> DeviceArray:
    """Slot k of all rows."""
    size = shape[1] if len(shape) > 1 else 1
    pointer = array.pointer + k * size * array.dtype.itemsize
    return DeviceArray(pointer, shape, array.dtype, array, array.stride, array.stream)
