"""Ids and offsets out of range: noted on the device, raised when the host next waits, or at once.

A bad id never stops the device.  Kernels write nothing for the batch of a bad id.  The record of the stream keeps the
first bad position together with the number of the call: ``call * 2**31 + position``, once for ids, once for offsets.
"""

import itertools
import threading
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from ..kernels.cuda import records
from ..kernels.cuda._sharing import NONE
from ..kernels.cuda.sort import OF_OFFSETS
from . import queues
from .array import DeviceArray

_REMEMBERED = 4096  # calls whose shapes are kept for messages
_lock = threading.Lock()
_calls: "deque[Noted]" = deque(maxlen=_REMEMBERED)
_numbers = itertools.count(1)
_settings = {"check": "late"}


class Noted(NamedTuple):
    """A call whose ids were checked: what the message of a late error needs."""

    number: int
    names: tuple[str, ...]  # names of the lookups of the call
    shapes: tuple[tuple[int, ...], ...]
    num_rows: int


def checks(when: str | None = None) -> str:
    """Set when ids that are out of range raise: "late" or "now"; returns what was set before."""
    before = _settings["check"]
    if when is not None:
        if when not in ("late", "now"):
            raise ValueError(f"when must be 'late' or 'now', got {when!r}")
        _settings["check"] = when
    return before


def note(names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], num_rows: int) -> Noted:
    """Return the `Noted` of a call, with the number of the call."""
    with _lock:
        call = Noted(next(_numbers), names, shapes, num_rows)
        _calls.append(call)
    return call


def new_status(queue: Any) -> DeviceArray:
    """Return a status that says: no id out of range so far."""
    status: DeviceArray = queue.filled((1,), np.uint64, 0xFF)
    return status


def raise_for(queue: Any, status: DeviceArray, call: Noted, ids: DeviceArray) -> None:
    """Wait, and raise if ids or offsets of this call were out of range; errors of other calls stay in the record."""
    position = int(queue.download(status)[0])
    if position == NONE:
        return
    queue.launch(records.forget_call, 1, len(queue.record), queue.record, call.number)
    if position >= OF_OFFSETS:
        raise offsets_error(position - OF_OFFSETS, None)
    raise ids_error(call, position, queue.download(ids.part(position, 1))[0])


def synchronize(device: int, stream: int | None = None) -> None:
    """Wait for a device or a stream, and raise for the first error that was noted since the last time."""
    if stream is None:
        found = queues.take_records(device)
    else:
        queue = queues.open_queue(device, stream)
        found = queues.taken(queue, queue.record).reshape(1, 2)
    ids, offsets = map(int, found.min(axis=0, initial=NONE))
    if ids == offsets == NONE:
        return
    if offsets >> 31 <= ids >> 31:
        raise offsets_error(offsets & (2**31 - 1), offsets >> 31)
    number, position = ids >> 31, ids & (2**31 - 1)
    with _lock:
        call = next((each for each in _calls if each.number == number), Noted(number, ("ids",), (), 0))
    raise ids_error(call, position, None, late=True)


def offsets_error(position: int, number: int | None) -> ValueError:
    """Return the error of offsets that make no bags."""
    when = "" if number is None else f" (call {number} on the GPU; it wrote nothing)"
    return ValueError(
        f"offsets must start at 0, not decrease, and end at len(ids); offsets[{position}] does not fit{when}"
    )


def ids_error(call: Noted, position: int, value: Any, late: bool = False) -> IndexError:
    """Return the error of an id that is out of range."""
    name, where = call.names[0], str(position)
    for each, shape in zip(call.names, call.shapes, strict=False):
        size = int(np.prod(shape))
        if position < size:
            name, where = each, ", ".join(map(str, np.unravel_index(position, shape))) if shape else "()"
            break
        position -= size
    got = "is out of range" if value is None else f"is {value}"
    when = f" (call {call.number} on the GPU; it wrote nothing)" if late else ""
    limit = f"{call.num_rows} (num_rows)" if call.num_rows else "num_rows"
    return IndexError(f"{name}[{where}] {got}, expected 0 <= id < {limit}; correct the id, or use a larger table{when}")
