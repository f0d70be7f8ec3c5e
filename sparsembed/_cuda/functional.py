"""The stateless layer on device arrays: same names, arguments and results as on the host."""

from typing import Any

import numpy as np

from .. import _validate as check
from ..plan import is_several, original
from ..rules.sgd import addition
from . import inputs, launch, reading
from .array import DeviceArray
from .inputs import Session, lent
from .values import DevicePlan, DeviceRowGradient, joined
from .views import hand_over, make


def result_dtype(table: DeviceArray) -> np.dtype[Any]:
    """The dtype of what leaves a table."""
    return np.dtype(np.float32) if table.dtype == np.float16 else table.dtype


def gather(weight: Any, ids: Any, out: Any = None) -> Any:
    """`sparsembed.gather` on a GPU."""
    ids, table = original(ids), inputs.weight(weight)
    if is_several(ids):
        return [gather(weight, each) for each in ids]
    return lookup(inputs.opened(weight=weight, ids=ids, out=out), table, ids, out)


def lookup(session: Session, table: DeviceArray, ids: Any, out: Any = None, late: Any = None) -> Any:
    """`gather` within a call that has been opened; `late` reads rows that missed steps."""
    flat, shape = inputs.ids(ids)
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


def lookup_gradients(
    session: Session,
    plan: DevicePlan,
    grad_out: Any,
    dim: int | None,
    dtype: Any,
    name: str,
    by_count: bool = False,
    table: DeviceArray | None = None,
) -> launch.Gradients:
    """Check the gradients of a plan's lookups, and say where they lie; `table` is what they will change."""
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
    whole = joined(session.queue, grads, names) if len(grads) > 1 else inputs.apart(session.queue, grads[0], table)
    return launch.Gradients(whole, by_count=by_count)


def sessions(plan: DevicePlan, table: Any = None, **arrays: Any) -> Session:
    """Open a call on arrays and a plan, which says whether its ids were in range."""
    flat: dict[str, Any] = {}
    for name, value in arrays.items():
        if isinstance(value, list | tuple):
            flat |= {f"{name}[{i}]": each for i, each in enumerate(value)}
        else:
            flat[name] = value
    session = inputs.opened(plan.status, table, **flat)
    if session.caller.device != plan.caller.device:
        raise TypeError(
            f"ids are a plan on cuda:{plan.caller.device}, the other arrays on cuda:{session.caller.device}"
        )
    return session


def scatter_add(weight: Any, ids: Any, values: Any, alpha: float = 1.0) -> None:
    """`sparsembed.scatter_add` on a GPU."""
    table = inputs.weight(weight, writeable=True)
    alpha = check.real(alpha, "alpha")
    if abs(alpha) > float(np.finfo(table.dtype).max):
        raise ValueError(f"alpha must fit into {table.dtype}, got {alpha}")
    batch = as_plan(ids, len(table))
    session = sessions(batch, weight=weight, values=values)
    grads = lookup_gradients(session, batch, values, table.shape[1], table.dtype, "values", table=table)
    none = DeviceArray(0, (len(table), 0, table.shape[1]), table.dtype, None)
    like = addition(alpha, table.dtype)
    hyper = session.queue.upload(np.array(like, table.dtype))
    stateless = launch.Table(table, none, DeviceArray(0, (len(table), 0), table.dtype, None))
    with lent(session.queue, batch.queue):
        launch.update_rows(session.queue, stateless, batch.batch, grads, -1, hyper, like, session.status)


def coalesce(
    ids: Any, grad_out: Any, num_rows: int, *, padding_idx: int | None = None, scale_grad_by_freq: bool = False
) -> DeviceRowGradient:
    """`sparsembed.coalesce` on a GPU."""
    num_rows = check.count(num_rows, "num_rows")
    padding = check.padding(padding_idx, num_rows)
    by_count = check.flag(scale_grad_by_freq, "scale_grad_by_freq")
    batch = as_plan(ids, num_rows)
    session = sessions(batch, grad_out=grad_out)
    grads = lookup_gradients(session, batch, grad_out, None, None, "grad_out", by_count)
    return row_gradient(session, batch, grads, num_rows, padding)


def row_gradient(
    session: Session, plan: DevicePlan, grads: launch.Gradients, num_rows: int, padding: int
) -> DeviceRowGradient:
    """Sum gradients by row."""
    with lent(session.queue, plan.queue):
        sums = launch.segment_sum(session.queue, plan.batch, grads, session.status)
    return DeviceRowGradient(plan, session, sums, num_rows, padding)
