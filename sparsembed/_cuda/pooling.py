"""Pooling on device arrays: same names, arguments and results as on the host."""

from typing import Any, NamedTuple

import numpy as np

from .. import _validate as check
from .._backward import check_mode, table_of_max
from . import inputs, launch, reading
from .array import DeviceArray
from .functional import result_dtype, row_gradient
from .inputs import Session
from .values import DeviceBags, DevicePlan, DeviceRowGradient, joined
from .views import hand_over, make


def bags_of(bags: Any, mode: Any, dtype: Any) -> tuple[int, reading.Bags]:
    """Check bags, but for the range of their ids; returns the mode's number and where they lie."""
    number = check_mode(bags, mode)
    if not isinstance(bags, DeviceBags):
        raise TypeError("bags are in host memory, the other arrays on a GPU; make them of device arrays")
    weights = bags.per_sample_weights
    if weights is None:
        return number, bags.where
    return number, bags.where._replace(weights=inputs.floats(weights, dtype, "per_sample_weights"))


def opened_for(bags: Any, table: Any = None, **arrays: Any) -> Session:
    """Open a call on bags and other arrays."""
    arrays |= {"offsets": bags.offsets, "per_sample_weights": bags.per_sample_weights}
    return inputs.opened(None, table, (bags,), ids=bags.ids, **arrays)


def pool(weight: Any, bags: Any, mode: str = "sum", out: Any = None, *, padding_idx: int | None = None) -> Any:
    """`sparsembed.pool` on a GPU."""
    table = inputs.weight(weight)
    number, where = bags_of(bags, mode, result_dtype(table))
    padding = check.padding(padding_idx, len(table))
    dtype, shape = result_dtype(table), (where.num_bags, table.shape[1])
    with opened_for(bags, weight=weight, out=out) as session:
        if out is None:
            result, given = make(session.queue, session.caller, shape, dtype)
        else:
            lies = {"weight": table, "ids": where.ids, "offsets": where.offsets, "per_sample_weights": where.weights}
            result, given = inputs.output(out, shape, dtype, **lies), out
        inputs.bags_in_range(session, [where], where.ids, len(table), ["bags.ids"])
        if mode == "max":
            reading.pool_max(session.queue, table, where, padding, result, session.status)
        else:
            reading.pool(session.queue, table, where, number, padding, result, session.status)
        return given if out is not None else hand_over(given, session.caller)


class Pooled(NamedTuple):
    """Pooled lookups and their gradients, which have been checked."""

    bags: list[Any]
    names: list[str]
    mode: str
    number: int  # of the mode
    places: list[reading.Bags]
    grads: list[DeviceArray]
    given: dict[str, Any]  # the caller's arrays

    def opened(self, table: Any = None, **arrays: Any) -> Session:
        """Open a call on them, a table and other arrays."""
        return inputs.opened(None, table, tuple(self.bags), **arrays, **self.given)


def checked(bags: list[Any], grad_out: list[Any], mode: str, source: DeviceArray | None, dtype: Any) -> Pooled:
    """Check pooled lookups and their gradients; `source` is what "max" compares."""
    if len(bags) != len(grad_out):
        raise ValueError(f"grad_out must be a list of {len(bags)} gradients, one per set of bags, got {len(grad_out)}")
    names = ["bags"] if len(bags) == 1 else [f"bags[{i}]" for i in range(len(bags))]
    grads, places, dim = [], [], None if source is None else source.shape[1]
    number = 0
    given: dict[str, Any] = {}
    for i, (each, part, name) in enumerate(zip(bags, grad_out, names, strict=True)):
        which = name.replace("bags", "grad_out")
        number, _ = bags_of(each, mode, None)
        grads.append(inputs.gradient(part, (each.num_bags,), dim, dtype, which))
        dim, dtype = grads[-1].shape[1], grads[-1].dtype
        places.append(bags_of(each, mode, dtype)[1])
        given |= {which: part, f"ids {i}": each.ids, f"offsets {i}": each.offsets, f"w {i}": each.per_sample_weights}
    return Pooled(bags, names, mode, number, places, grads, given)


def pooled_gradients(
    session: Session,
    lookups: Pooled,
    num_rows: int,
    padding: int,
    source: DeviceArray | None,
    by_count: bool,
    with_rows: Any = None,
) -> tuple[DevicePlan, launch.Gradients]:
    """Plan pooled lookups within a call, and say where the gradients lie.

    `source` is what "max" compares, unless ``with_rows(session, bags, work)`` calls ``work(rows, gathered)``.
    """
    queue, status, mode, number = session.queue, session.status, lookups.mode, lookups.number
    names, places, dtype = lookups.names, lookups.places, lookups.grads[0].dtype
    where = joined_bags(queue, places, names, dtype, status)
    call = inputs.bags_in_range(session, places, where.ids, num_rows, [f"{name}.ids" for name in names])
    plain = where.weights is None and mode != "max"
    plan = DevicePlan(where.ids, num_rows, "bags.ids", where.offsets if plain else None, (session, call))
    grad = inputs.apart(queue, joined(queue, lookups.grads, names), source)
    if plain:
        shares = None if mode == "sum" else reading.share(queue, where, number, padding, dtype, status)
        return plan, launch.Gradients(grad, None, shares, None, by_count)
    only_bags = mode in ("sum", "max") and where.weights is None
    bag_of, coefs = reading.expand(queue, where, number, padding, dtype, only_bags, status)
    winners = None
    if mode == "max":
        assert source is not None
        room = queue.empty((where.num_bags, source.shape[1]), result_dtype(source))

        def compare(rows: DeviceArray, gathered: bool) -> DeviceArray:
            return reading.pool_max(queue, rows, where, padding, room, status, gathered)

        winners = compare(source, False) if with_rows is None else with_rows(session, where, compare)
    return plan, launch.Gradients(grad, bag_of, coefs, winners, by_count)


def joined_bags(
    queue: Any, parts: list[reading.Bags], names: list[str], dtype: Any, status: DeviceArray
) -> reading.Bags:
    """One set of bags of several, one behind the other; where some have weights, those of the others are 1."""
    if len(parts) == 1:
        return parts[0]
    ids, weights = joined(queue, [each.ids for each in parts], names), None
    offsets: DeviceArray = queue.empty((sum(each.num_bags for each in parts) + 1,), np.int64)
    bags = base = 0
    for each in parts:
        reading.shift(queue, each.offsets, base, offsets.part(bags, len(each.offsets)), status)
        bags, base = bags + each.num_bags, base + len(each.ids)
    if any(each.weights is not None for each in parts):
        weights = joined(queue, [_weights(queue, each, dtype) for each in parts], names)
    return reading.Bags(ids, offsets, weights)


def _weights(queue: Any, bags: reading.Bags, dtype: Any) -> DeviceArray:
    if bags.weights is not None:
        return bags.weights
    ones: DeviceArray = queue.empty(bags.ids.shape, dtype)
    reading.fill(queue, ones, 1)
    return ones


def pool_gradient(
    bags: Any,
    grad_out: Any,
    num_rows: int,
    mode: str = "sum",
    *,
    padding_idx: int | None = None,
    weight: Any = None,
    scale_grad_by_freq: bool = False,
) -> DeviceRowGradient:
    """`sparsembed.pool_gradient` on a GPU."""
    num_rows = check.count(num_rows, "num_rows")
    table = table_of_max(mode, weight, num_rows, inputs.weight)
    check_mode(bags, mode)
    padding = check.padding(padding_idx, num_rows)
    by_count = check.flag(scale_grad_by_freq, "scale_grad_by_freq")
    lookups = checked([bags], [grad_out], mode, table, None)
    with lookups.opened(weight=weight) as session:
        plan, grads = pooled_gradients(session, lookups, num_rows, padding, table, by_count)
        return row_gradient(session, plan, grads, num_rows, padding)


def per_sample_weights_gradient(
    weight: Any, bags: Any, grad_out: Any, mode: str = "sum", *, padding_idx: int | None = None
) -> Any:
    """`sparsembed.per_sample_weights_gradient` on a GPU."""
    table = inputs.weight(weight)
    if mode == "max":
        raise ValueError("mode='max' has no per_sample_weights, so no gradient of them; use sum, mean or sqrtn")
    dtype = result_dtype(table)
    number, where = bags_of(bags, mode, dtype)
    padding = check.padding(padding_idx, len(table))
    grad = inputs.gradient(grad_out, (where.num_bags,), table.shape[1], dtype)
    with opened_for(bags, weight=weight, grad_out=grad_out) as session:
        inputs.bags_in_range(session, [where], where.ids, len(table), ["bags.ids"])
        result, given = make(session.queue, session.caller, (len(where.ids),), dtype)
        reading.weights_gradient(session.queue, table, where, grad, number, padding, result, session.status)
        return hand_over(given, session.caller)
