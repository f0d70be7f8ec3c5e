"""Checks of what comes on a GPU, in the words of `_validate`; and calls, from opened to finished."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import _validate as check
from . import errors, launch, reading
from . import queue as queues
from .array import DeviceArray
from .views import Caller, caller_of, converted, current_stream, kind_of, row_major, stream_of, view

_kept: dict[Any, list[Any]] = {}
MOST = 2**31  # ids of a call: kernels count them in int32


class Session(NamedTuple):
    """One call: whose arrays, on which stream, and what it says of its ids."""

    caller: Caller
    queue: Any
    status: DeviceArray


def opened(status: DeviceArray | None = None, table: Any = None, **arrays: Any) -> Session:
    """Start a call with these arrays, which must all be on one device, that of a `table` too.

    `status` is that of a plan.  Arrays that were made on other streams are waited for there.
    """
    caller = caller_of(**arrays) if table is None else caller_of(table=table, **arrays)
    queue = queues.open_queue(caller.device, caller.stream)
    for array in arrays.values():
        stream = None if array is None else stream_of(array, caller.device)
        if stream is not None and stream != caller.stream:
            queue.after(queues.open_queue(caller.device, stream).mark())
    _keep(queue, [array for array in arrays.values() if kind_of(array) == "jax"])
    return Session(caller, queue, launch.new_status(queue) if status is None else status)


@contextlib.contextmanager
def lent(queue: Any, home: Any) -> Iterator[None]:
    """Use on one stream what belongs to another: after what that has been given, and before what it will be."""
    if queue is home:
        yield
        return
    queue.after(home.mark())
    try:
        yield
    finally:
        home.after(queue.mark())


def _keep(queue: Any, arrays: list[Any]) -> None:
    """Hold arrays that their owner would give back too early until the queue is done with the call that begins.

    JAX does, for it does not know of this stream.  When the next call begins, all of this one has been started.
    """
    if before := _kept.pop(queue, None):
        queue.hold(*before)
    if arrays:
        _kept[queue] = arrays


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
        raise TypeError(f"{name} must hold floats, got {array.dtype}; convert with .astype(np.float32)")
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
