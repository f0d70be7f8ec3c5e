"""The stateless layer on device arrays: same names, arguments and results as on the host."""

from typing import Any, NamedTuple

import numpy as np

from .. import _validate as check
from ..plan import is_several, original
from ..rules.sgd import addition
from . import inputs, launch, reading
from .array import DeviceArray
from .inputs import Session, lent
from .together import Together
from .values import DevicePlan, DeviceRowGradient, joined
from .views import ADVICE, hand_over, make


def result_dtype(table: DeviceArray) -> np.dtype[Any]:
    """The dtype of what leaves a table."""
    return np.dtype(np.float32) if table.dtype == np.float16 else table.dtype


def gather(weight: Any, ids: Any, out: Any = None) -> Any:
    """`sparsembed.gather` on a GPU."""
    ids, table = original(ids), inputs.weight(weight)
    if is_several(ids):
        return [gather(weight, each) for each in ids]
    flat = inputs.ids(ids)
    with inputs.opened(weight=weight, ids=ids, out=out) as session:
        return lookup(session, table, *flat, out)


def lookup(
    session: Session, table: DeviceArray, flat: DeviceArray, shape: tuple[int, ...], out: Any = None, late: Any = None
) -> Any:
    """`gather` within a call, of ids of a shape; `late` reads rows that missed steps."""
    dtype, shape = result_dtype(table), (*shape, table.shape[1])
    if out is None:
        result, given = make(session.queue, session.caller, shape, dtype)
    else:
        result, given = inputs.output(out, shape, dtype, weight=table, ids=flat), out
    inputs.in_range(session, flat, len(table), ("ids",), (shape[:-1],))
    rows = result.reshape(flat.size, table.shape[1])
    if late is None:
        reading.gather(session.queue, table, flat, rows, session.status)
    else:
        late(session, flat, rows)
    return given if out is not None else hand_over(given, session.caller)


def as_plan(ids: Any, num_rows: int) -> DevicePlan:
    """Return `ids` if it is a plan for so many rows, else plan it."""
    if not isinstance(ids, DevicePlan):
        return DevicePlan(ids, num_rows)
    if ids.num_rows > num_rows:
        raise IndexError(
            f"plan is for num_rows = {ids.num_rows}, expected at most {num_rows} on a GPU; plan for this table"
        )
    return ids


class Parts(NamedTuple):
    """The gradients of a plan's lookups, which have been checked, and what the caller calls them."""

    grads: list[DeviceArray]
    names: tuple[str, ...]

    def joined(self, queue: Any, by_count: bool = False, table: DeviceArray | None = None) -> launch.Gradients:
        """Say where they lie; `table` is what they will change."""
        several = len(self.grads) > 1
        whole = joined(queue, self.grads, self.names) if several else inputs.apart(queue, self.grads[0], table)
        return launch.Gradients(whole, by_count=by_count)


def lookup_gradients(plan: DevicePlan, grad_out: Any, dim: int | None, dtype: Any, name: str) -> Parts:
    """Check the gradients of a plan's lookups.

    Before the call is opened: what torch and CuPy copy for it, on streams of theirs, is waited for then.
    """
    several, shapes = plan.several, plan.shapes
    if several and not (isinstance(grad_out, list | tuple) and len(grad_out) == len(shapes)):
        got = f"{len(grad_out)}" if isinstance(grad_out, list | tuple) else f"one {type(grad_out).__name__}"
        raise ValueError(f"{name} must be a list of {len(shapes)} gradients, one per lookup in ids, got {got}")
    parts = list(grad_out) if several else [grad_out]
    names = tuple(f"{name}[{i}]" for i in range(len(parts))) if several else (name,)
    grads = []
    for part, shape, each in zip(parts, shapes, names, strict=True):
        grads.append(inputs.gradient(part, shape, dim, dtype, each))
        dim = grads[-1].shape[1]
    return Parts(grads, names)


def sessions(plan: DevicePlan, table: Any = None, **arrays: Any) -> Session:
    """Open a call on arrays and a plan, which says whether its ids were in range."""
    flat: dict[str, Any] = {}
    for name, value in arrays.items():
        if isinstance(value, list | tuple):
            flat |= {f"{name}[{i}]": each for i, each in enumerate(value)}
        else:
            flat[name] = value
    session = inputs.opened(plan.status, table, **flat)
    if (device := session.caller.device) != plan.caller.device:
        raise TypeError(f"ids are a plan on cuda:{plan.caller.device}, the other arrays on cuda:{device}; {ADVICE}")
    return session


def scatter_add(weight: Any, ids: Any, values: Any, alpha: float = 1.0) -> None:
    """`sparsembed.scatter_add` on a GPU."""
    table = inputs.weight(weight, writeable=True)
    alpha = check.real(alpha, "alpha")
    if abs(alpha) > float(np.finfo(table.dtype).max):
        raise ValueError(f"alpha must fit into {table.dtype}, got {alpha}")
    batch = as_plan(ids, len(table))
    parts = lookup_gradients(batch, values, table.shape[1], table.dtype, "values")
    none = DeviceArray(0, (len(table), 0, table.shape[1]), table.dtype, None)
    like = addition(alpha, table.dtype)
    stateless = launch.Table(table, none, DeviceArray(0, (len(table), 0), table.dtype, None))
    with sessions(batch, weight=weight, values=values) as session, lent(session.queue, batch.queue):
        grads, together = parts.joined(session.queue, table=table), Together(session.queue)
        hyper = session.queue.upload(np.array(like, table.dtype))
        launch.update_rows(together, stateless, batch.batch, grads, -1, hyper, like, session.status)
        together.start()


def coalesce(
    ids: Any, grad_out: Any, num_rows: int, *, padding_idx: int | None = None, scale_grad_by_freq: bool = False
) -> DeviceRowGradient:
    """`sparsembed.coalesce` on a GPU."""
    num_rows = check.count(num_rows, "num_rows")
    padding = check.padding(padding_idx, num_rows)
    by_count = check.flag(scale_grad_by_freq, "scale_grad_by_freq")
    batch = as_plan(ids, num_rows)
    parts = lookup_gradients(batch, grad_out, None, None, "grad_out")
    with sessions(batch, grad_out=grad_out) as session:
        return row_gradient(session, batch, parts.joined(session.queue, by_count), num_rows, padding)


def row_gradient(
    session: Session, plan: DevicePlan, grads: launch.Gradients, num_rows: int, padding: int
) -> DeviceRowGradient:
    """Sum gradients by row."""
    with lent(session.queue, plan.queue):
        sums = launch.segment_sum(session.queue, plan.batch, grads, session.status)
    return DeviceRowGradient(plan, session, sums, num_rows, padding)
