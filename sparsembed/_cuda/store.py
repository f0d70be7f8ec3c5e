"""The contents of a table on a GPU: how they are made, adopted, saved and restored."""

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .. import _check as check
from .._cpu import norms
from .._frameworks import LEGACY, NUMPY
from .._options import Options
from .._saved import read
from ..rules import Rule
from . import errors, queues
from .array import DeviceArray
from .call import Call, begin, end, lent
from .catch_up import DeviceHistory, start_at
from .inputs import in_place, plain, table_of
from .inputs import weight as checked_weight
from .launch import has_begun
from .norms import clip_rows
from .views import Caller, caller_of, stream_of, view


class Place:
    """The device of a table, and the state that only a table on a GPU has.

    Attributes
    ----------
    caller : Caller
        The caller of the array that the table was made of.
    hyper : DeviceArray
        Hyperparameters of the step, in device memory, where kernels read them.
    history : DeviceHistory
    begun : tuple or None
        The rule and the step of the last `begin_step`.
    given : array
        The weight as the caller gets it.
    """

    hyper: DeviceArray
    given: Any

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.history, self.begun = DeviceHistory(), None

    @property
    def device(self) -> int:
        """Number of the GPU."""
        return self.caller.device

    @property
    def home(self) -> Any:
        """The stream that the table's memory belongs to: the legacy default stream of its device."""
        return queues.open_queue(self.caller.device, LEGACY)

    def current(self) -> AbstractContextManager[Any]:
        """Return a context that yields the home stream, ordered with the caller's current stream by events."""
        stream = stream_of(self.given, self.caller.device)
        return lent(self.home, queues.open_queue(self.caller.device, stream or LEGACY))


def place(device: str) -> Place:
    """Return the place of a table on a device."""
    _, _, number = device.partition(":")
    return Place(Caller(NUMPY, int(number or 0), LEGACY))


def place_saved(contents: Any) -> dict[str, Any]:
    """Return the entries of a pickle for the place."""
    return {"device": contents.where.device}


def fresh(where: Place, weight: Any, owned: bool) -> DeviceArray:
    """Return initial weights on the GPU."""
    array: DeviceArray = where.home.upload(weight)
    return array


def hold(where: Place, weight: Any, rule: Rule | None, options: Options, constrain: bool = True) -> dict[str, Any]:
    """Return the parts of the contents of a table at step 0; all that can fail comes before the weight is changed."""
    queue, array = where.home, view(weight, "weight")
    (num_rows, dim), dtype, limit = array.shape, array.dtype, options.limit(array.dtype)
    slots, row_slots = ((), ()) if rule is None else (rule.slots, rule.row_slots)
    catches_up = rule is not None and rule.catch_up is not None
    fields = 0 if rule is None else len(rule.Hyper._fields)  # type: ignore[attr-defined]
    hyper = queue.empty((fields,), dtype)
    found = {
        "table": table_of(array),
        "given": weight,
        "rule": rule,
        "options": options,
        "state": queue.filled((num_rows, len(slots), dim), dtype, 0),
        "row_state": queue.filled((num_rows, len(row_slots)), dtype, 0),
        "steps": np.zeros(3, np.int64),
        "last": queue.filled((num_rows if catches_up else 0,), np.int32, 0),
        "limit": limit,
        "history": rule.history(dtype, 0) if rule is not None and catches_up else None,
        "where": where,
        "gate": threading.RLock(),  # held during a step, and while a CUDA graph records one
    }
    if constrain:
        _constrain(queue, array, -1 if options.padding_idx is None else options.padding_idx, limit)
    where.hyper, where.given = hyper, weight
    return found


def adopt(weight: Any, rule: Rule | None, options: Options, copy: bool) -> dict[str, Any]:
    """Return the parts of the contents of a table in the caller's array, or in a copy of it."""
    given = checked_weight(weight, writeable=not copy and rule is not None).array
    check.count(len(given), "weight.shape[0]")
    checked = options.checked(len(given), rule, given.dtype)
    plain(given, "weight")
    if not copy and any(each is not None for each in (options.padding_idx, options.max_norm)):
        in_place(given, "weight")
    where = Place(caller_of(weight=weight))
    home, call = where.home, begin(weight=weight)
    try:
        with lent(home, call.queue):
            if copy:
                weight = home.empty(given.shape, given.dtype)
                home.copy(weight, given)
            return hold(where, weight, rule, checked)
    finally:
        end(call)


def with_arrays(contents: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse to adopt arrays of state, which a GPU does not do yet."""
    raise NotImplementedError("a table on a GPU does not adopt arrays of state")


def ready(contents: Any) -> None:
    """Let the caller's stream wait for what has been given to the table, and the table for what it was given."""
    with contents.where.current():
        pass


def reading(contents: Any, call: Call) -> AbstractContextManager[Any]:
    """Return the context of a lookup, inside the lock: calls from different streams wait for the home stream's events.

    Work captured in a CUDA graph is not ordered.
    """
    return lent(call.queue, contents.where.home)


def columns(contents: Any) -> dict[str, DeviceArray]:
    """Return views of the state by name: slots (num_rows, dim), row slots (num_rows,)."""
    rule, table = contents.rule, contents.table
    if rule is None:
        return {}
    found = {name: _column(contents.state, k, (table.num_rows, table.dim)) for k, name in enumerate(rule.slots)}
    rows = {name: _column(contents.row_state, k, (table.num_rows,)) for k, name in enumerate(rule.row_slots)}
    return found | rows


def saved(contents: Any) -> dict[str, Any]:
    """Return copies of weight, step and state in host memory."""
    rule = contents.rule
    with contents.where.current() as home:
        found: dict[str, Any] = {"weight": home.download(contents.table.array), "step": contents.step}
        state, row_state = home.download(contents.state), home.download(contents.row_state)
    if rule is not None:
        found |= {name: state[:, k].copy() for k, name in enumerate(rule.slots)}
        found |= {name: row_state[:, k].copy() for k, name in enumerate(rule.row_slots)}
    return found


def restore(contents: Any, state_dict: Mapping[str, Any]) -> None:
    """Write what `saved` returned for a table on any device; the arrays are in host memory.

    Everything is checked before the first byte is written.  An interrupt during the write raises after the write.
    """
    table, where, rule, dtype = contents.table, contents.where, contents.rule, contents.table.dtype
    in_place(table.array, "the table")
    slots, row_slots = ((), ()) if rule is None else (rule.slots, rule.row_slots)
    shape = (table.num_rows, table.dim)
    shapes = dict.fromkeys(("weight", *slots), (shape, dtype)) | dict.fromkeys(row_slots, (shape[:1], dtype))
    step, found = read(state_dict, shapes, rule)
    state, row_state = np.zeros(contents.state.shape, dtype), np.zeros(contents.row_state.shape, dtype)
    for array, names in ((state, slots), (row_state, row_slots)):
        for k, name in enumerate(names):
            array[:, k] = found[name]
    weight, last = np.array(found["weight"], dtype, order="C"), np.full(len(contents.last), step, np.int32)
    if contents.padding >= 0:
        weight[contents.padding] = 0
    if contents.limit is not None:  # with the bits of a table in host memory
        norms.clip_rows(weight, contents.limit)

    def write() -> None:
        home.write(table.array, weight)
        home.write(contents.state, state)
        home.write(contents.row_state, row_state)
        home.write(contents.last, last)
        start_at(contents, step)
        where.begun = None

    with where.current() as home:
        whole(write)


def whole(write: Callable[[], None]) -> None:
    """Write everything, and raise only then what came meanwhile."""
    try:
        write()
    except BaseException:  # a part has been written: write everything, then raise
        write()
        raise


def _constrain(queue: Any, weight: DeviceArray, padding: int, limit: Any) -> None:
    """Zero the padding row, and clip all rows to the largest norm."""
    if padding >= 0:
        queue.write(weight.part(padding, 1), np.zeros((1, weight.shape[1]), weight.dtype))
    if limit is not None:
        clip_rows(queue, weight, limit, errors.new_status(queue))


def begin_step(contents: Any) -> None:
    """Count a step, and put its scalars where the updates that `recording` records read them."""
    rule, where, dtype = contents.trainable(), contents.where, contents.table.dtype
    with contents.gate, contents.lock, where.current() as home:
        step = contents.step + 1
        home.write(where.hyper, np.array(rule.cast(rule.hyper(step), step, dtype), dtype))
        begun = (rule, step)
        contents.steps[0] = step
        where.begun = begun


def recording(contents: Any) -> Any:
    """Return the lock that makes steps of other threads wait while updates are recorded."""
    if contents.history is not None:
        raise ValueError(f"{contents.rule} keeps a history on the host, which a graph cannot read")
    has_begun(contents)
    return contents.gate


def _column(array: DeviceArray, k: int, shape: tuple[int, ...]) -> DeviceArray:
    """Return a view of slot k of all rows."""
    size = shape[1] if len(shape) > 1 else 1
    pointer = array.pointer + k * size * array.dtype.itemsize
    return DeviceArray(pointer, shape, array.dtype, array, array.stride, array.stream)
