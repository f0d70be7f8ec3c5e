"""Plans, bags and gradients whose arrays lie on a GPU."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import _validate as check
from ..bags import Bags
from ..gradient import RowGradient
from ..plan import Plan, is_several, original
from . import errors, inputs, launch, reading
from .array import DeviceArray
from .views import caller_of, hand_over, make


class DevicePlan(Plan):
    """The ids of one step, sorted on a GPU; `rows`, `order` and `segment_offsets` wait for it when they are read."""

    __slots__ = ("batch", "call", "caller", "flat", "queue", "status")
    _on_device = True

    def __init__(
        self,
        given: Any,
        num_rows: int,
        name: str = "ids",
        offsets: DeviceArray | None = None,
        checked: tuple[inputs.Session, errors.Call] | None = None,
    ) -> None:
        self.num_rows = check.count(num_rows, "num_rows")
        self.several = is_several(given)
        self.ids = tuple(map(original, given)) if self.several else original(given)
        parts = self.ids if self.several else (self.ids,)
        names = tuple(f"{name}[{i}]" for i in range(len(parts))) if self.several else (name,)
        self._lookups: Any = [inputs.ids(part, each) for part, each in zip(parts, names, strict=True)]
        call: Any = (
            contextlib.nullcontext(checked[0]) if checked else inputs.opened(**dict(zip(names, parts, strict=True)))
        )
        with call as session:
            self.caller, self.queue, self.status = session.caller, session.queue, session.status
            self.flat = joined(session.queue, [flat for flat, _ in self._lookups], names)
            if checked:
                self.call = checked[1]
            else:
                self.call = inputs.in_range(session, self.flat, self.num_rows, names, tuple(self.shapes))
            self.batch = launch.plan(session.queue, self.flat, self.num_rows, offsets)

    def wait(self) -> int:
        """Wait for the GPU, and raise if ids were out of range; returns the number of rows."""
        inputs.queue_of(self.caller)  # makes its device the current one of this thread, perhaps another than before
        errors.raise_for(self.queue, self.status, self.call, self.flat)
        return int(self.queue.download(self.batch.found)[0])

    def _found(self, name: str, extra: int | None) -> Any:
        k, source, caller = self.wait(), getattr(self.batch, name), inputs.here(self.caller)
        count = len(source) if extra is None else min(k + extra, len(source))
        queue = inputs.queue_of(caller)
        with inputs.lent(queue, self.queue):
            array, result = make(queue, caller, (count,), source.dtype)
            queue.copy(array, source.part(0, count))
        return hand_over(result, caller)

    @property
    def rows(self) -> Any:
        """Unique ids in increasing order."""
        return self._found("rows", 0)

    @property
    def segment_offsets(self) -> Any:
        """Where the positions of each row lie in `order`."""
        return self._found("offsets", 1)

    @property
    def order(self) -> Any:
        """Positions of the flattened ids, sorted by id."""
        return self._found("order", None)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a plan on a GPU is not pickled; pickle the ids, and plan again")

    def __repr__(self) -> str:
        return f"Plan({self.batch.n} ids on cuda:{self.caller.device}, num_rows={self.num_rows})"


def joined(queue: Any, parts: list[DeviceArray], names: Sequence[str]) -> DeviceArray:
    """One array of several, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    for each, name in zip(parts, names, strict=True):
        if each.dtype != parts[0].dtype:
            raise TypeError(f"{name} is {each.dtype}, but {names[0]} is {parts[0].dtype}; on a GPU all must be alike")
    inputs.few_enough(sum(map(len, parts)), " and ".join(names))
    whole: DeviceArray = queue.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    start = 0
    for each in parts:
        queue.copy(whole.part(start, len(each)), each)
        start += len(each)
    return whole


class DeviceBags(Bags):
    """Bags on a GPU; their offsets are checked there, whenever they are used."""

    __slots__ = ("caller", "where")
    _on_device = True

    def __init__(self, ids: Any, offsets: Any, per_sample_weights: Any = None) -> None:
        if isinstance(ids, Plan):
            raise TypeError("ids must be an array: on a GPU bags are not made of plans")
        self.caller = caller_of(ids=ids, offsets=offsets, per_sample_weights=per_sample_weights)
        flat, shape = inputs.ids(ids)
        if len(shape) != 1:
            raise ValueError(f"ids must have shape (n,), got {shape}; for 2-D ids use Bags.from_padded on the host")
        ends, shape = inputs.ids(offsets, "offsets")
        if len(shape) != 1 or not len(ends):
            raise ValueError(f"offsets must have shape (num_bags + 1,), got {shape}")
        weights = None
        if per_sample_weights is not None:
            weights = inputs.floats(per_sample_weights, None, "per_sample_weights")
            if weights.shape != flat.shape:
                raise ValueError(f"per_sample_weights must have one weight per id, {flat.shape}, got {weights.shape}")
        self.where = reading.Bags(flat, ends, weights)
        self.ids, self.offsets, self.per_sample_weights = ids, offsets, per_sample_weights
        self._plan, self._kind = None, self.caller.kind

    def __setstate__(self, state: Any) -> None:
        raise TypeError("bags on a GPU are not pickled")

    def __reduce__(self) -> Any:
        raise TypeError("bags on a GPU are not pickled; copy their arrays to the host")

    @property
    def num_bags(self) -> int:
        """Number of bags."""
        return self.where.num_bags

    def __repr__(self) -> str:
        weighted = "" if self.per_sample_weights is None else ", weighted"
        return f"Bags({self.num_bags} bags, {len(self.where.ids)} ids{weighted}, cuda:{self.caller.device})"


class DeviceRowGradient:
    """A coalesced gradient on a GPU: what `coalesce`, `pool_gradient` and `gradient` of a table return there.

    `rows` and `values` wait for the GPU when they are read first, for only it knows how many rows there are, and
    raise if ids were out of range.  `to_host` makes a `RowGradient`, which can be added, clipped and converted.
    """

    __slots__ = ("_cut", "dim", "num_rows", "padding", "plan", "session", "sums")
    _on_device = True

    def __init__(
        self, plan: DevicePlan, session: inputs.Session, sums: DeviceArray, num_rows: int, padding: int
    ) -> None:
        self.plan, self.session, self.sums = plan, session, sums
        self.num_rows, self.padding, self.dim = num_rows, padding, sums.shape[1]
        self._cut: tuple[Any, ...] = (None,)

    @contextlib.contextmanager
    def lent(self, queue: Any) -> Iterator[None]:
        """Use it on a stream."""
        with inputs.lent(queue, self.plan.queue), inputs.lent(queue, self.session.queue):
            yield

    def _kept(self) -> list[tuple[int, int]]:
        """Wait, and say which rows there are: all but that of the padding."""
        queue, k = self.plan.queue, self.plan.wait()
        if self.padding >= 0:
            found = queue.download(self.plan.batch.rows.part(0, k))
            at = int(np.searchsorted(found, self.padding))
            if at < k and found[at] == self.padding:
                return [(0, at), (at + 1, k)]
        return [(0, k)]

    def _parts(self) -> tuple[Any, ...]:
        """The caller they were read for, rows and values: made anew for another stream, which did not wait for them."""
        caller = inputs.here(self.session.caller)
        if self._cut[0] != caller:
            kept, results = self._kept(), []
            queue, count = inputs.queue_of(caller), sum(end - start for start, end in kept)
            with self.lent(queue):
                for source in (self.plan.batch.rows, self.sums):
                    array, result = make(queue, caller, (count, *source.shape[1:]), source.dtype)
                    place = 0
                    for start, end in kept:
                        queue.copy(array.part(place, end - start), source.part(start, end - start))
                        place += end - start
                    results.append(hand_over(result, caller))
            self._cut = (caller, *results)
        return self._cut

    @property
    def rows(self) -> Any:
        """Row numbers, increasing: array of shape (k,)."""
        return self._parts()[1]

    @property
    def values(self) -> Any:
        """Gradient of each row: array of shape (k, dim)."""
        return self._parts()[2]

    def to_host(self) -> RowGradient:
        """Copy to host memory."""
        kept, queue = self._kept(), self.session.queue
        with self.lent(queue):
            rows, values = (
                np.concatenate([queue.download(source.part(start, end - start)) for start, end in kept])
                for source in (self.plan.batch.rows, self.sums)
            )
        return RowGradient(rows, values, self.num_rows)

    def __reduce__(self) -> Any:
        raise TypeError("a gradient on a GPU is not pickled; pickle what its to_host() returns")

    def __getattr__(self, name: str) -> Any:
        if hasattr(RowGradient, name):
            raise AttributeError(f"a gradient on a GPU has no {name}; use gradient.to_host().{name}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name}")

    def __add__(self, other: Any) -> Any:
        raise TypeError("gradients are not added on a GPU; add what to_host() returns, or update with several lookups")

    __radd__ = __add__

    def __repr__(self) -> str:
        where = f"cuda:{self.session.caller.device}"
        return f"DeviceRowGradient({self.num_rows} rows, dim={self.dim}, {self.sums.dtype}, {where})"
