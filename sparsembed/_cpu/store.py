"""The arrays of a table in host memory: make, adopt, save and restore them."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _check as check
from .._options import Options
from .._saved import read
from .._typing import Array
from ..kernels.cpu import restore as restore_kernels
from ..rules import Rule
from . import memory, norms, threads
from .blocks import blocks_of
from .inputs import in_place, matrix, ndarray, table_of

_NOTHING = contextlib.nullcontext()


def place(device: str) -> None:
    """Return the place of a new table: None, since there is only one host memory."""


def place_saved(contents: Any) -> dict[str, Any]:
    """Return the items of a pickle that say where the table lies: none."""
    return {}


def hold(
    where: None, weight: Array, rule: Rule | None, options: Options, step: int = 0, constrain: bool = True
) -> dict[str, Any]:
    """Return the parts of `Contents` of a table at a step, with fresh state."""
    num_rows, dim = weight.shape
    catches_up = rule is not None and rule.catch_up is not None
    limit = options.limit(weight.dtype)
    last = memory.zeros((num_rows if catches_up else 0,), np.int32)
    if step and catches_up:  # at step 0 the zeros take no memory until they are written
        last[:] = step
    slots, row_slots = ((), ()) if rule is None else (rule.slots, rule.row_slots)
    found = {
        "table": table_of(weight),
        "given": weight,
        "rule": rule,
        "options": options,
        "state": memory.zeros((num_rows, len(slots), dim), weight.dtype),
        "row_state": memory.zeros((num_rows, len(row_slots)), weight.dtype),
        "steps": np.array([step, step, 0]),
        "last": last,
        "limit": limit,
        "history": rule.history(weight.dtype, step) if rule is not None and catches_up else None,
    }
    if constrain and options.padding_idx is not None:
        weight[options.padding_idx] = 0
    if constrain and limit is not None:
        norms.clip_rows(weight, limit)
    return found


def fresh(where: None, weight: Array, owned: bool) -> Array:
    """Return initial weights on a cache line; `owned`: no other object uses them, so no copy is needed."""
    return memory.owned(weight) if owned else memory.copy(weight)


def adopt(weight: Any, rule: Rule | None, options: Options, copy: bool) -> dict[str, Any]:
    """Return the parts of `Contents` of the caller's array, or of a copy."""
    written = not copy and any(each is not None for each in (rule, options.padding_idx, options.max_norm))
    array = matrix(ndarray(weight, "weight") if written else weight)
    check.count(len(array), "weight.shape[0]")
    checked = options.checked(len(array), rule, array.dtype)
    if written:
        in_place(array, "weight", "copy=True")
    return hold(None, memory.copy(array) if copy else array, rule, checked)


def with_arrays(contents: Any, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Return parts of `Contents` that hold the given arrays, named "state", "row_state" or "last"."""
    if wrong := sorted(set(arrays) - {"state", "row_state", "last"}):
        raise KeyError(f"arrays must be named state, row_state or last, got {wrong}")
    for name, array in arrays.items():
        mine, flags = getattr(contents, name), array.flags
        if (array.shape, array.dtype) != (mine.shape, mine.dtype) or not (flags.c_contiguous and flags.aligned):
            what = f"C-contiguous and aligned {mine.dtype} array of shape {mine.shape}"
            raise ValueError(f"{name} must be a {what}, got {array.dtype} {array.shape}")
        in_place(array, name, "a writeable array")
    return dict(arrays)


def ready(contents: Any) -> None:
    """Wait for what has been given to the table: on the CPU every call has done its work when it returns."""


def reading(contents: Any, call: Any) -> Any:
    """Return a context manager for a lookup of rows that catch up; on the CPU it does nothing."""
    return _NOTHING


def columns(contents: Any) -> dict[str, Array]:
    """Return views of the state by name: slots (num_rows, dim), row slots (num_rows,)."""
    rule = contents.rule
    if rule is None:
        return {}
    found = {name: contents.state[:, k] for k, name in enumerate(rule.slots)}
    return found | {name: contents.row_state[:, k] for k, name in enumerate(rule.row_slots)}


def saved(contents: Any) -> dict[str, Any]:
    """Return copies of weight, step and state."""
    copies = {name: array.copy() for name, array in columns(contents).items()}
    return {"weight": contents.table.array.copy(), "step": contents.step} | copies


def restore(contents: Any, state_dict: Mapping[str, Any], constrain: bool = True) -> None:
    """Restore a dict that `saved` returned, in one kernel; refuse one that does not fit."""
    weight, limit = contents.table.array, contents.limit
    targets = {"weight": weight} | columns(contents)
    shapes = {name: (target.shape, target.dtype) for name, target in targets.items()}
    step, sources = read(state_dict, shapes, contents.rule)
    for name, source in sources.items():
        if any(np.may_share_memory(source, target) for target in targets.values()):
            sources[name] = source.copy()
    if not weight.flags.writeable:
        raise ValueError("the table is read-only; make it with copy=True")
    if constrain and limit is not None:
        sources["weight"] = memory.copy(sources["weight"])
        norms.clip_rows(sources["weight"], limit)
    padding = contents.padding if constrain else -1
    _write([(targets[name], sources[name]) for name in targets], weight, padding, contents.last, contents.steps, step)


def begin_step(contents: Any) -> None:
    """Raise: only CUDA graphs need to count a step separately from its updates."""
    raise ValueError("begin_step() is for tables on a GPU, whose updates a CUDA graph can record; call update() here")


def recording(contents: Any) -> Any:
    """Raise: only CUDA graphs record updates."""
    raise ValueError("recording() is for tables on a GPU, whose updates a CUDA graph can record; call update() here")


def _write(pairs: list[tuple[Array, Array]], weight: Array, padding: int, last: Array, steps: Array, step: int) -> None:
    """Copy the second array of each pair to the first, zero the padding row, and set the step of the table."""
    jobs = np.zeros((len(pairs), 8), np.int64)
    for job, (to, since) in zip(jobs, pairs, strict=True):
        size = to.itemsize
        for at, array in ((0, to), (3, since)):
            apart = array.strides[1] if array.ndim > 1 and array.shape[1] > 1 else size
            job[at : at + 3] = array.__array_interface__["data"][0], array.strides[0], apart
        job[6:] = to.shape[1] if to.ndim > 1 else 1, size
    num_blocks, block_size = blocks_of(len(weight), 2 * sum(int(columns * size) for columns, size in jobs[:, 6:]))
    bits = weight.view(np.uint16) if weight.dtype == np.float16 else weight.view()
    threads.run(restore_kernels.restore_rows, num_blocks, block_size, jobs, bits, padding, last, steps, step)
