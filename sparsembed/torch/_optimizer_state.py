"""The state of a rule, as torch's optimizers save it: checked whole, before any table takes it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .. import _check as check
from .._frameworks import as_array
from .._options import Options
from .._saved import check_slots, check_step
from .._typing import Array
from ..rules import SGD, Rule
from ..rules.sgd import MomentumSGD
from . import _check


def checked(weight: Array, options: Options, rule: Rule, saved: Any) -> dict[str, Any]:
    """Return "step" and each slot in the dtype of the table; an empty state stays empty, which means a fresh one."""
    options.checked(len(weight), rule, weight.dtype)
    if not isinstance(saved, Mapping):
        raise TypeError(f"the state of a table must be a dict, got {type(saved).__name__}")
    saved = _counted(saved, rule)
    if not saved:
        return {}
    shapes = dict.fromkeys(rule.slots, weight.shape) | dict.fromkeys(rule.row_slots, weight.shape[:1])
    if {*saved} != {"step", *shapes}:
        raise KeyError(f"the state of a table with {rule} must be 'step' and {[*shapes]}, got {sorted(saved)}")
    slots = {name: _slot(saved[name], f"the state {name!r}", shapes[name], weight.dtype) for name in shapes}
    check_slots(rule, slots, "the state")
    return {"step": _step(saved["step"], rule), **slots}


def _counted(saved: Mapping[Any, Any], rule: Rule) -> Mapping[Any, Any]:
    """Return the momentum of SGD with a step, which torch does not count."""
    if isinstance(rule, SGD) and saved.get("momentum_buffer", 0) is None:
        return {}
    if not isinstance(rule, MomentumSGD) or {*saved} != {"momentum_buffer"}:
        return saved
    if callable(rule.lr):
        raise ValueError(
            f"the state of a table has no 'step', as that of torch's SGD, but the learning rate of {rule} is a "
            "function of the step; add 'step', the number of updates, to each entry of state_dict['state']"
        )
    return {"step": 1, **saved}  # only the first step differs from the others


def _step(value: Any, rule: Rule) -> int:
    """Check the number of steps, which Adam of torch saves as a float tensor."""
    if isinstance(value, torch.Tensor | np.ndarray):
        if value.size != 1 if isinstance(value, np.ndarray) else value.numel() != 1:
            raise ValueError(f"the step of a state must be one integer, got shape {tuple(value.shape)}")
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    step = check.count(value, "the step of a state", least=0)
    check_step(rule, step, "the step of a state")
    return step


def _slot(value: Any, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Check one slot."""
    if isinstance(value, torch.Tensor):
        _check.place(value.device, name)
        if value.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got {value.layout}")
        value = value.detach().float() if value.dtype == torch.bfloat16 else value
    elif not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if (got := tuple(value.shape)) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {got}")
    array = as_array(value, name)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must hold floats, got {array.dtype}")
    return np.asarray(array, dtype)
