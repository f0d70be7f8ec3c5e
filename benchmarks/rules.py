"""The optimizers that are timed and checked: all of the package, so that a new one needs no line here."""

from typing import Any

import sparsembed as se

NAMES = [name for name in se.rules.__all__ if name != "Rule"]
FORMS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "SGD, decay": {"weight_decay": 0.01},
    "SGD, momentum": {"momentum": 0.9},
    **{f"{name}, touched decay": {"touched_weight_decay": 0.01} for name in ("SGD", "Adagrad", "SparseAdam")},
}


def every(lr: float) -> dict[str, se.rules.Rule]:
    """Return a rule of each kind, in each of the forms that kernels have of it."""
    forms: dict[str, se.rules.Rule] = {name: getattr(se, name.split(",")[0])(lr, **FORMS[name]) for name in FORMS}
    return forms | {name: getattr(se, name)(lr=lr) for name in NAMES if name != "SGD"}
