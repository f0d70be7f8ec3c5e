"""Checks of what comes on a GPU, in the words of `_validate`; and calls, from opened to finished."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import _validate as check
from . import errors, launch, reading
from . import queue as queues
from .array import DeviceArray
from .views import LEGACY, Caller, by_dlpack, caller_of, converted, current_stream, row_major, stream_of, view

MOST = 2**31  # ids of a call: kernels count them in int32


class Session:
    """One call, for ``with``: whose arrays, on which stream, and what it says of its ids.

    At its end, when everything has been started, the streams of the caller's other arrays wait for it.  Only then
    may these arrays be given back, or read if the call wrote to them.
    """

    __slots__ = ("_held", "_others", "caller", "queue", "status")

    def __init__(
        self, caller: Caller, queue: Any, status: DeviceArray, others: list[Any] | None = None, held: Any = ()
    ) -> None:
        self.caller, self.queue, self.status = caller, queue, status
        self._others, self._held = others or [], held

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: Any) -> None:
        mark = self.queue.mark() if self._others else None
        for other in self._others:
            other.after(mark)
        if self._held:
            self.queue.hold(*self._held)
        self._others, self._held = [], ()


def opened(status: DeviceArray | None = None, table: Any = None, bags: tuple[Any, ...] = (), **arrays: Any) -> Session:
    """Start a call with these arrays, which must all be on one device, that of a `table` too.

    `status` is that of a plan.  Arrays that were made on other streams are waited for there; of a table only the
    caller's array, for the home stream has an order of its own (`lent`).  Held until the queue is done with the call
    are arrays whose owners know of no stream, such as JAX's, and copies that `bags` made on another stream.
    """
    caller = caller_of(**arrays) if table is None else caller_of(table=table, **arrays)
    queue = queues.open_queue(caller.device, caller.stream)
    given = [each for each in arrays.values() if each is not None]
    wanted = [stream_of(each, caller.device) for each in given]
    if table is not None:
        given.append(table)
        wanted.append(None if (its := stream_of(table, caller.device)) == LEGACY else its)
    numbers = [each for each in dict.fromkeys(wanted) if each is not None and each != caller.stream]
    others = [queues.open_queue(caller.device, each) for each in numbers]
    for other in others:
        queue.after(other.mark())
    held = [each for each in given if by_dlpack(each)]
    held += [each.where for each in bags if each.caller.kind != "ours" and each.caller.stream != caller.stream]
    return Session(caller, queue, launch.new_status(queue) if status is None else status, others, held)


@contextlib.contextmanager
def lent(queue: Any, home: Any) -> Iterator[Any]:
    """Use on one stream what belongs to another: after what that has been given, and before what it will be."""
    if queue is home:
        yield queue
        return
    queue.after(home.mark())
    try:
        yield queue
    finally:
        home.after(queue.mark())


def weight(value: Any, name: str = "weight", writeable: bool = False) -> DeviceArray:
    """Check a (num_rows, dim) table."""
    array = view(value, name)
    check.table_dtype(array.dtype, f"{name}.dtype")
    if len(array.shape) != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must have shape (num_rows, dim) with dim at least 1, got {array.shape}")
    if writeable:
        if array.dtype not in check.FLOATS:
            raise TypeError(f"{name} is float16, which is for lookups and pooling; train a float32 table")
        in_place(array, name)
    return array


def in_place(array: DeviceArray, name: str) -> None:
    """Refuse an array that cannot be changed where it lies."""
    if array.readonly:
        raise ValueError(f"{name} is read-only, so it cannot be changed in place; pass a copy")
    plain(array, name)


def ids(value: Any, name: str = "ids") -> tuple[DeviceArray, tuple[int, ...]]:
    """Check the kind of ids; returns them flat, and their shape."""
    array = view(row_major(value), name)
    if array.dtype not in (np.int32, np.int64):
        raise TypeError(f"{name} must be int32 or int64, got {array.dtype}; convert with .astype(np.int64)")
    few_enough(array.size, name)
    plain(array, name)
    return array.reshape(array.size), array.shape


def few_enough(n: int, name: str) -> None:
    """Refuse more ids than kernels count."""
    if n >= MOST:
        raise ValueError(f"{name} must be fewer than {MOST} on a GPU, got {n}; use several calls")


def floats(value: Any, dtype: Any, name: str) -> DeviceArray:
    """Check that an array holds floats of a dtype, or of any that kernels have; torch and CuPy convert theirs."""
    array = view(row_major(value if dtype is None else converted(value, dtype)), name)
    if array.dtype.kind != "f":
        raise TypeError(
            f"{name} must hold floats on a GPU, got {array.dtype}; convert with .astype(np.float32), torch: .float()"
        )
    if array.dtype not in check.FLOATS or (dtype is not None and array.dtype != dtype):
        wanted = np.dtype(dtype if dtype is not None else np.float32)
        raise TypeError(f"{name} must be {wanted} on a GPU, got {array.dtype}; convert with .astype(np.{wanted})")
    plain(array, name)
    return array


def gradient(value: Any, leading: tuple[int, ...], dim: int | None, dtype: Any, name: str = "grad_out") -> DeviceArray:
    """Check a gradient of shape ``leading + (dim,)``; returns it as (n, dim)."""
    array = floats(value, dtype, name)
    dim = check.gradient_shape(array.shape, leading, dim, name)
    return array.reshape(array.size // dim, dim)


def apart(queue: Any, grad: DeviceArray, table: DeviceArray | None) -> DeviceArray:
    """Copy a gradient that shares the memory of the table which it will change."""
    if table is None or not grad.overlaps(table):
        return grad
    mine: DeviceArray = queue.empty(grad.shape, grad.dtype)
    queue.copy(mine, grad)
    return mine


def output(value: Any, shape: tuple[int, ...], dtype: Any, **sources: DeviceArray | None) -> DeviceArray:
    """Check an `out` argument, which must not lie where `sources` do."""
    array = view(value, "out")
    if array.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {array.shape}")
    if array.dtype != dtype:
        raise TypeError(f"out must be {np.dtype(dtype)}, got {array.dtype}")
    in_place(array, "out")
    for name, source in sources.items():
        if source is not None and array.overlaps(source):
            raise ValueError(f"out must not share memory with {name}; pass another array")
    return array


def plain(array: DeviceArray, name: str) -> None:
    """Refuse rows that lie apart."""
    if array.extent != array.size:
        raise ValueError(f"{name} must be C-contiguous on a GPU; make it so with .contiguous() or ascontiguousarray")


def in_range(
    session: Session, flat: DeviceArray, num_rows: int, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> errors.Call:
    """Start the check of ids; it raises now, if so set, or when the host next waits."""
    call = errors.new_call(names, shapes, num_rows)
    launch.check_ids(session.queue, flat, num_rows, session.status, call.number)
    if errors.checks() == "now":
        errors.raise_for(session.queue, session.status, call, flat)
    return call


def bags_in_range(
    session: Session, bags: list[reading.Bags], flat: DeviceArray, num_rows: int, names: list[str]
) -> errors.Call:
    """Start the check of bags: their offsets, and the range of their ids, all of which are `flat`."""
    call = errors.new_call(tuple(names), tuple(each.ids.shape for each in bags), num_rows)
    for each in bags:
        launch.check_offsets(session.queue, each.offsets, len(each.ids), session.status, call.number)
    launch.check_ids(session.queue, flat, num_rows, session.status, call.number)
    if errors.checks() == "now":
        errors.raise_for(session.queue, session.status, call, flat)
    return call


def queue_of(caller: Caller) -> Any:
    """The queue of a caller's stream."""
    return queues.open_queue(caller.device, caller.stream)


def here(caller: Caller) -> Caller:
    """A caller that comes again: on the stream that is current now."""
    return caller._replace(stream=current_stream(caller.kind, caller.device) or caller.stream)
