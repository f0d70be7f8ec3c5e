"""One call on a GPU: its caller, its stream, and a status that says whether its ids were in range."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._frameworks import LEGACY, NUMPY, Framework
from . import errors, queues
from .array import DeviceArray
from .inputs import output
from .views import ADVICE, Caller, by_dlpack, caller_of, stream_of, view


class Call:
    """The caller, the queue and the status of a call.

    `end` follows when all kernels have been started: the streams of the caller's other arrays then wait for the call.
    Only after that may these arrays be freed, or read if the call wrote to them.
    """

    __slots__ = ("_held", "_others", "caller", "queue", "status")

    def __init__(
        self, caller: Caller, queue: Any, status: DeviceArray, others: list[Any] | None = None, held: Any = ()
    ) -> None:
        self.caller, self.queue, self.status = caller, queue, status
        self._others, self._held = others or [], held

    def borrow(self, *homes: Any) -> None:
        """Use memory of other streams: wait for their earlier work, and make their later work wait for this call."""
        for home in homes:
            if home is not self.queue:
                self.queue.after(home.mark())
                self._others.append(home)

    def end(self) -> None:
        """Make the other streams wait for the work of this call."""
        mark = self.queue.mark() if self._others else None
        for other in self._others:
            other.after(mark)
        if self._held:
            self.queue.hold(*self._held)
        self._others, self._held = [], ()


def begin(
    contents: Any = None, rows: Any = None, places: Sequence[Any] = (), like: Framework = NUMPY, **arrays: Any
) -> Call:
    """Return a call with these arrays, which must all be on one device, the table included.

    With the rows of a plan, the call has the status of the plan.  The call waits for the streams on which its arrays
    were made.  Of a table only the caller's array counts here: `lent` orders work on the table's home stream.  The
    queue holds some arrays until the call is done: arrays whose owner tracks no stream, such as JAX's, and copies
    that bags made on another stream.
    """
    flat: dict[str, Any] = {}
    for name, value in arrays.items():
        several = isinstance(value, list | tuple)
        flat |= {f"{name}[{i}]": each for i, each in enumerate(value)} if several else {name: value}
    table = None if contents is None else contents.given
    caller = caller_of(**flat) if table is None else caller_of(table=table, **flat)
    if rows is not None and caller.device != rows.caller.device:
        its = rows.caller.device
        raise TypeError(f"ids are a plan on cuda:{its}, the other arrays on cuda:{caller.device}; {ADVICE}")
    queue = queues.open_queue(caller.device, caller.stream)
    given = [each for each in flat.values() if each is not None]
    wanted = [stream_of(each, caller.device) for each in given]
    if table is not None:
        given.append(table)
        wanted.append(None if (its := stream_of(table, caller.device)) == LEGACY else its)
    numbers = [each for each in dict.fromkeys(wanted) if each is not None and each != caller.stream]
    others = [queues.open_queue(caller.device, each) for each in numbers]
    for other in others:
        queue.after(other.mark())
    held = [each for each in given if by_dlpack(each)]
    held += [each for each in places if each.caller.kind != "ours" and each.caller.stream != caller.stream]
    status = errors.new_status(queue) if rows is None else rows.status  # all ids are in range so far
    call = Call(caller, queue, status, others, held)
    if rows is not None:
        call.borrow(rows.queue)
        if rows.queue is not queue:  # a copy of ids that was made on another stream
            held.append(rows)
    return call


def end(call: Call) -> None:
    """End a call, also after an exception."""
    call.end()


def result(
    call: Call, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], **sources: DeviceArray | None
) -> tuple[DeviceArray, Any]:
    """Return a view of the memory of a result, and the array that the caller gets."""
    return make(call.queue, call.caller, shape, dtype) if out is None else (output(out, shape, dtype, **sources), out)


def finish(call: Call, given: Any, out: Any = None) -> Any:
    """Return a result as the caller's kind of array."""
    return given if out is not None else call.caller.framework.of_gpu(given)


def make(queue: Any, caller: Caller, shape: tuple[int, ...], dtype: Any) -> tuple[DeviceArray, Any]:
    """Return a view of an uninitialised array of the caller's kind, and the array."""
    made = caller.framework.empty(queue, shape, np.dtype(dtype), caller.device)
    return view(made, "result"), made


@contextlib.contextmanager
def lent(queue: Any, home: Any) -> Iterator[Any]:
    """Yield `queue` for work with memory of `home`: after earlier work of `home`, and before later work of `home`."""
    if queue is home:
        yield queue
        return
    queue.after(home.mark())
    try:
        yield queue
    finally:
        home.after(queue.mark())


def queue_of(caller: Caller) -> Any:
    """Return the queue of a caller's stream."""
    return queues.open_queue(caller.device, caller.stream)


def here(caller: Caller) -> Caller:
    """Return the caller with the stream that is current now: a result may be read on another stream than its call."""
    return caller._replace(stream=caller.framework.stream(caller.device) or caller.stream)


def place_name(where: Any) -> str:
    """Return the device, as a repr shows it."""
    return f", cuda:{where.device}"


def synchronize(contents: Any) -> None:
    """Wait for the GPU, and raise for ids out of range that were noted since the last time."""
    errors.synchronize(contents.where.device)
