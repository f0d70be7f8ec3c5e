"""Adam on the touched rows only."""

from dataclasses import KW_ONLY, dataclass
from math import sqrt
from typing import Any, ClassVar, NamedTuple

from ._forms import decayed, forms, is_on, shown, touched
from ._rule import Rule, Schedule, check_betas, helper


class SparseAdamHyper(NamedTuple):
    step_size: float
    rest1: float
    rest2: float
    eps: float


@forms(lambda given: TouchedSparseAdam if is_on(given, "touched_weight_decay") else SparseAdam)
@dataclass(frozen=True)
class SparseAdam(Rule):
    """Adam as ``torch.optim.SparseAdam`` computes it: rows without a gradient do not change.

    ``m += (1 - b1) * (g - m);  v += (1 - b2) * (g**2 - v);``
    ``w -= lr * sqrt(1 - b2**step) / (1 - b1**step) * m / (sqrt(v) + eps)``.

    Parameters
    ----------
    lr : float or callable of the step
        Learning rate, finite and not negative.
        A function gets the number of the update, from 1; schedules that count from 0, such as those of optax, are
        ``lambda step: schedule(step - 1)``.
    betas : (float, float)
        Decay of the first and second moment, each in [0, 1).
    eps : float
        Added to the root of the uncorrected second moment, so that SparseAdam(eps) steps like
        dense Adam(eps / sqrt(1 - b2**step)).
    touched_weight_decay : float
        L2 decay of the rows of a step: their gradient gets ``touched_weight_decay * w`` once, after the gradients of
        repeated ids are summed, so that the moments see it, too.  Other rows do not decay.  FBGEMM's mode "L2".

    Raises
    ------
    TypeError, ValueError
        For hyperparameters of another type or out of range.

    Notes
    -----
    State: slots ``exp_avg`` and ``exp_avg_sq``, 2 * dim numbers a row.  The step is the
    table's and counts updates without ids, too.  The moments of untouched rows are frozen,
    which is not what dense Adam does.

    References
    ----------
    Kingma, Ba, "Adam", https://arxiv.org/abs/1412.6980; formula: torch/optim/_functional.py.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.zeros((4, 1)), optimizer=se.SparseAdam(lr=0.1))
    >>> table.update([1], np.array([[5.0]]))
    >>> table.weight.ravel().round(6)
    array([ 0. , -0.1,  0. ,  0. ])
    """

    lr: Schedule = 1e-3
    _: KW_ONLY
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    touched_weight_decay: float = 0.0

    Hyper: ClassVar[type] = SparseAdamHyper
    slots = ("exp_avg", "exp_avg_sq")
    squares = ("exp_avg_sq",)

    def _check(self, name: str, value: Any) -> None:
        if name != "betas":
            super()._check(name, value)
            return
        check_betas("SparseAdam(betas=...)", value)

    def hyper(self, step: int) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        step_size = self.rate(step) * sqrt(1 - beta2**step) / (1 - beta1**step)
        return step_size, 1 - beta1, 1 - beta2, self.eps

    @staticmethod
    def step(w, g, s, a, hp):
        m = s[0] + hp.rest1 * (g - s[0])
        v = s[1] + hp.rest2 * (g * g - s[1])
        # A fresh row with a gradient of zero does not change; with eps = 0 the quotient would be 0 / 0.
        change = m / (sqrt(v) + hp.eps) if m != 0 else m
        return w - hp.step_size * change, (m, v)


_step = helper(SparseAdam.step)


class TouchedSparseAdamHyper(NamedTuple):
    step_size: float
    rest1: float
    rest2: float
    eps: float
    l2: float


@dataclass(frozen=True, repr=False)
class TouchedSparseAdam(SparseAdam, form=True):
    """SparseAdam with decay of touched rows."""

    Hyper = TouchedSparseAdamHyper
    __repr__ = shown

    def hyper(self, step: int) -> tuple[float, ...]:
        return super().hyper(step) + touched(self)

    @staticmethod
    def step(w, g, s, a, hp):
        return _step(w, decayed(w, g, hp), s, a, hp)
