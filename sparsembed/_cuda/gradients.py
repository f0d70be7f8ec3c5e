"""The gradient of each occurrence, also for pooled lookups, and the sums of rows as a value."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _check as check
from .._jit import PRESENT
from . import reading, sorting
from .array import DeviceArray
from .call import Call, begin, here, lent, make, queue_of
from .inputs import Table
from .reading import Place
from .sorting import Sorted, check_bags, joined, one_each, sort
from .views import ADVICE


class Gradients(NamedTuple):
    """The arrays that hold the gradient of each occurrence; see `kernels.cuda.segment`."""

    grad: DeviceArray
    bags: DeviceArray | None = None
    coefs: DeviceArray | None = None
    winners: DeviceArray | None = None
    by_count: bool = False

    @property
    def where(self) -> tuple[Any, ...]:
        """The arguments of kernels."""
        return self.grad, self.bags, self.coefs, self.winners

    @property
    def divided(self) -> int | None:
        """The argument `by_count` of kernels."""
        return PRESENT if self.by_count else None


def of_lookups(
    call: Call, rows: Sorted, parts: list[DeviceArray], names: Sequence[str], table: Table | None, by_count: bool
) -> Gradients:
    """Return the gradients of several lookups, concatenated."""
    if len(parts) > 1:
        return Gradients(joined(call.queue, parts, names), by_count=by_count)
    return Gradients(apart(call.queue, parts[0], None if table is None else table.array), by_count=by_count)


def of_bags(
    call: Call, pooled: Any, num_rows: int, padding: int, table: Table | None, by_count: bool, missed: Any = None
) -> tuple[Sorted, Gradients]:
    """Return the sorted rows of bags, and the gradients of these rows; mode max compares rows of `table`."""
    queue, status, number, places = call.queue, call.status, pooled.number, pooled.places
    dtype, comparing = pooled.parts[0].dtype, number == check.MODES["max"]
    place = joined_bags(call, places, pooled.names, dtype)
    noted = check_bags(call, place, num_rows, places, pooled.names)
    plain = place.weights is None and not comparing
    batch = sorting.plan(queue, place.ids, num_rows, place.offsets if plain else None)
    rows = Sorted(call, place.ids, batch, noted, num_rows)
    grad = joined(queue, pooled.parts, [name.replace("bags", "grad_out") for name in pooled.names])
    grad = apart(queue, grad, None if table is None else table.array)
    if plain:
        summing = number == check.MODES["sum"]
        shares = None if summing else reading.share(queue, place, number, padding, dtype, status)
        return rows, Gradients(grad, None, shares, None, by_count)
    only_bags = place.weights is None and (comparing or number == check.MODES["sum"])
    bag_of, coefs = reading.expand(queue, place, number, padding, dtype, only_bags, status)
    winners = None
    if comparing and table is not None:
        room = queue.empty((place.num_bags, table.dim), table.result)
        winners = reading.pool(call, table, place, number, padding, room, missed)
    return rows, Gradients(grad, bag_of, coefs, winners, by_count)


def joined_bags(call: Call, parts: list[Place], names: Sequence[str], dtype: Any) -> Place:
    """Return several sets of bags, concatenated; if any set has weights, weights are 1 in a set without."""
    if len(parts) == 1:
        return parts[0]
    queue = call.queue
    ids, weights = joined(queue, [each.ids for each in parts], names), None
    offsets: DeviceArray = queue.empty((sum(each.num_bags for each in parts) + 1,), np.int64)
    bags = base = 0
    for each in parts:
        reading.shift(queue, each.offsets, base, offsets.part(bags, len(each.offsets)), call.status)
        bags, base = bags + each.num_bags, base + len(each.ids)
    if any(each.weights is not None for each in parts):
        weights = joined(queue, [_weights(queue, each, dtype) for each in parts], names)
    return Place(ids, offsets, weights)


def _weights(queue: Any, bags: Place, dtype: Any) -> DeviceArray:
    if bags.weights is not None:
        return bags.weights
    ones: DeviceArray = queue.empty(bags.ids.shape, dtype)
    reading.fill(queue, ones, 1)
    return ones


def of_gradient(contents: Any, gradient: Any) -> tuple[Call, Sorted, Gradients, int]:
    """Return a call, sorted rows, gradients and the row to skip, for a gradient that is a value."""
    where, dtype, padding = contents.where, contents.table.dtype, contents.padding
    sums: Sums | None = gradient._held if gradient._on_device else None
    if sums is not None and padding >= 0 and sums.padding not in (-1, padding):
        gradient, sums = gradient.to_host(), None  # kernels leave out one row, not two
    if sums is None:
        values = gradient._values.astype(dtype, copy=False)
        rows, array = map(where.home.upload, (gradient._rows, values))
        shape = (rows.size,)
        found = sort([(rows, shape)], ("row numbers",), gradient.num_rows, given=(rows,))
        call = begin(contents, found, values=array)
        return call, found, Gradients(array), padding
    if sums.dtype != dtype:
        raise TypeError(f"gradient must be {dtype}, got {sums.dtype}; pass its to_host() to convert it")
    found, caller = sums.found, here(sums.caller)
    if caller.device != where.device:
        raise TypeError(f"gradient is on cuda:{caller.device}, the table on cuda:{where.device}; {ADVICE}")
    call = Call(caller, queue_of(caller), found.status)
    call.borrow(found.queue, sums.queue)
    try:
        batch = one_each(call.queue, found.batch)
    except BaseException:
        call.end()
        raise
    own = Sorted(call, found.flat, batch, found.noted, found.num_rows)
    return call, own, Gradients(sums.sums), max(padding, sums.padding)


def allow_check() -> None:
    """Refuse ``check_finite=True``."""
    raise ValueError("check_finite=True would wait for the GPU; look for NaN before, where the gradient is made")


def refuse_infinite(grads: Gradients, name: str) -> None:
    """Refuse to look for NaN and infinity on a GPU."""
    allow_check()


def apart(queue: Any, grad: DeviceArray, table: DeviceArray | None) -> DeviceArray:
    """Return the gradient, or a copy if it shares memory with the table that it will change."""
    if table is None or not grad.overlaps(table):
        return grad
    mine: DeviceArray = queue.empty(grad.shape, grad.dtype)
    queue.copy(mine, grad)
    return mine


class Sums:
    """The gradient sum of each row, on a GPU; the first read of `rows` or `values` waits for the GPU.

    Only the GPU knows the number of rows.  Reading raises if ids were out of range.

    Parameters
    ----------
    found : Sorted
    call : Call
    sums : DeviceArray (n, dim)
    padding : int
        The row that is left out, or -1.
    """

    __slots__ = ("_cut", "caller", "found", "padding", "queue", "sums")

    def __init__(self, found: Sorted, call: Call, sums: DeviceArray, padding: int) -> None:
        self.found, self.sums, self.padding = found, sums, padding
        self.caller, self.queue = call.caller, call.queue
        self._cut: tuple[Any, ...] = (None,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the allocated sums; the last rows may be unused."""
        return self.sums.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the sums."""
        return self.sums.dtype

    @property
    def shown(self) -> str:
        """The text for a repr."""
        return f"{self.sums.dtype}, cuda:{self.caller.device}"

    def _kept(self) -> list[tuple[int, int]]:
        """Wait, and return the ranges (start, end) of all rows but the padding row."""
        queue, k = self.found.queue, self.found.wait()
        if self.padding >= 0:
            rows = queue.download(self.found.batch.rows.part(0, k))
            at = int(np.searchsorted(rows, self.padding))
            if at < k and rows[at] == self.padding:
                return [(0, at), (at + 1, k)]
        return [(0, k)]

    def _parts(self) -> tuple[Any, ...]:
        """Return caller, rows and values; copied again if the current stream is another, which has not waited."""
        caller = here(self.caller)
        if self._cut[0] != caller:
            kept, results = self._kept(), []
            queue, count = queue_of(caller), sum(end - start for start, end in kept)
            with lent(queue, self.found.queue), lent(queue, self.queue):
                for source in (self.found.batch.rows, self.sums):
                    array, result = make(queue, caller, (count, *source.shape[1:]), source.dtype)
                    place = 0
                    for start, end in kept:
                        queue.copy(array.part(place, end - start), source.part(start, end - start))
                        place += end - start
                    results.append(caller.framework.of_gpu(result))
            self._cut = (caller, *results)
        return self._cut

    @property
    def rows(self) -> Any:
        """Row numbers, increasing."""
        return self._parts()[1]

    @property
    def values(self) -> Any:
        """Sum of each row."""
        return self._parts()[2]

    def to_host(self) -> tuple[Any, Any]:
        """Return rows and sums in host memory."""
        kept, queue = self._kept(), self.queue
        with lent(queue, self.found.queue):
            rows, values = (
                np.concatenate([queue.download(source.part(start, end - start)) for start, end in kept])
                for source in (self.found.batch.rows, self.sums)
            )
        return rows, values
