"""The optimizers that are timed and checked: all of the package, so that a new one needs no line here."""

import sparsembed as se

NAMES = [name for name in se.rules.__all__ if name != "Rule"]
FORMS_OF_SGD = {"SGD": {}, "SGD, decay": {"weight_decay": 0.01}, "SGD, momentum": {"momentum": 0.9}}


def every(lr: float) -> dict[str, se.rules.Rule]:
    """Return a rule of each kind; SGD in each of the forms that kernels have of it."""
    found: dict[str, se.rules.Rule] = {name: se.SGD(lr, **given) for name, given in FORMS_OF_SGD.items()}  # type: ignore[arg-type]
    return found | {name: getattr(se, name)(lr=lr) for name in NAMES if name != "SGD"}
