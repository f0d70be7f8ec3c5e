"""Check the caller's gradients, and assign each to its lookup."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from . import _check as check
from ._engine import CPU
from .bags import Bags
from .plan import names_of


class Pooled(NamedTuple):
    """Pooled lookups of one step, and their gradients."""

    places: list[Any]  # `Engine.Place` of the bags of each lookup
    parts: list[Any]  # gradients (num_bags, dim)
    names: tuple[str, ...]  # of the ids, for messages
    number: int  # number of the mode
    rows: Any  # `Sorted` ids of a plan, or None


def lookup_parts(
    engine: Any, shapes: list[Any], several: bool, grad_out: Any, dim: int | None, dtype: Any, name: str
) -> tuple[list[Any], tuple[str, ...]]:
    """Check the gradients of lookups, given the shapes of the ids; return the gradients and their names."""
    if several:
        check.gradient_given(grad_out, name)
    else:
        return [engine.gradient(grad_out, shapes[0], dim, dtype, name)], (name,)
    if not (isinstance(grad_out, list | tuple) and len(grad_out) == len(shapes)):
        got = f"{len(grad_out)}" if isinstance(grad_out, list | tuple) else f"one {type(grad_out).__name__}"
        raise ValueError(f"{name} must be a list of {len(shapes)} gradients, one per lookup in ids, got {got}")
    names, parts = names_of(name, len(shapes), True), []
    for part, shape, each in zip(grad_out, shapes, names, strict=True):
        parts.append(engine.gradient(part, shape, dim, dtype, each))
        dim = parts[-1].shape[1]
    return parts, names


def pooled(
    engine: Any, bags: Sequence[Any], grad_out: Sequence[Any], mode: Any, dim: int | None, dtype: Any, num_rows: int
) -> Pooled:
    """Check pooled lookups and their gradients, except the range of the ids; return `Pooled`."""
    if len(grad_out) != len(bags):
        raise ValueError(f"grad_out must be a list of {len(bags)} gradients, one per set of bags, got {len(grad_out)}")
    mode = mode_of(bags, mode)
    several, number, places, parts = len(bags) > 1, 0, [], []
    names = names_of("grad_out", len(bags), several)
    for each, part, name in zip(bags, grad_out, names, strict=True):
        number = check_bags(engine, each, mode)
        parts.append(engine.gradient(part, (each.num_bags,), dim, dtype, name))
        dim, dtype = parts[-1].shape[1], parts[-1].dtype
        places.append(place_of(engine, each, dtype))
    plan = None if several else bags[0]._plan
    if plan is not None:
        engine.fits(plan._sorted, num_rows)
    what = tuple(f"{each}.ids" for each in names_of("bags", len(bags), several))
    return Pooled(places, parts, what, number, None if plan is None else plan._sorted)


def check_bags(engine: Any, bags: Any, mode: Any) -> int:
    """Check bags and mode, except the range of the ids; return the number of the mode."""
    if not isinstance(bags, Bags):
        raise check.not_bags(bags)
    if bags._engine is not engine:
        if engine is CPU:
            raise TypeError("bags are on a GPU, the table is in host memory; make them of arrays in host memory")
        raise TypeError("bags are in host memory, the other arrays on a GPU; make them of device arrays")
    return check.MODES[check.mode(mode, bags.mode, bags.per_sample_weights is not None)]


def mode_of(bags: Sequence[Any], mode: Any) -> str:
    """Return the one mode of several lookups: the given one, or that of the bags."""
    found = [check.mode(mode, each.mode if isinstance(each, Bags) else None) for each in bags]
    for i, each in enumerate(found):
        if each != found[0]:
            raise ValueError(f"bags must be pooled with one mode, got {found[0]!r} of bags[0], {each!r} of bags[{i}]")
    return found[0]


def place_of(engine: Any, bags: Bags, dtype: Any) -> Any:
    """Return the `Place` of bags, with per-sample weights in the dtype of the arithmetic."""
    place = bags._place
    if place.weights is None:
        return place
    return place._replace(weights=engine.sample_weights(bags.per_sample_weights, dtype))


def as_lists(bags: Any, grad_out: Any) -> tuple[list[Any], list[Any]]:
    """Return a list of bags and a list of gradients, also for a single lookup."""
    parts, grads = (list(bags), grad_out) if isinstance(bags, list | tuple) else ([bags], [grad_out])
    if parts and not any(isinstance(each, Bags) for each in parts):
        raise check.not_bags(bags)
    check.gradient_given(grads, "grad_out")
    several, lists = isinstance(bags, list | tuple), isinstance(grad_out, list)
    if not parts or not isinstance(grads, list | tuple) or (lists and not several and _holds_arrays(grad_out)):
        got = f"{check.kind_of(bags)} and {check.kind_of(grad_out)}"
        raise ValueError(f"bags and grad_out must both be lists of one length, not empty, or neither a list, got {got}")
    return parts, list(grads)


def _holds_arrays(given: list[Any]) -> bool:
    """Whether a list is one of arrays with rows, and not the rows of one array."""
    return any(getattr(each, "ndim", 0) > 1 for each in given)


def arrays_of(*bags: Bags) -> dict[str, Any]:
    """Return the caller's arrays of bags by name."""
    found = {}
    for i, each in enumerate(bags):
        after = f"[{i}]" if len(bags) > 1 else ""
        for name in ("ids", "offsets", "per_sample_weights"):
            found[f"{name}{after}"] = getattr(each, name)
    return found
