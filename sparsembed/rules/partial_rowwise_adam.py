"""Adam with one second moment per row, on the touched rows only."""

from dataclasses import KW_ONLY, dataclass
from math import sqrt
from typing import Any, NamedTuple

from ._rule import Rule, Schedule, check_betas


class PartialRowwiseAdamHyper(NamedTuple):
    step_size: float
    root: float
    rest1: float
    rest2: float
    eps: float
    decay: float


@dataclass(frozen=True)
class PartialRowwiseAdam(Rule):
    """FBGEMM's PARTIAL_ROWWISE_ADAM: the second moment is one number a row, the mean over its elements.

    ``m += (1 - b1) * (g - m);  v += (1 - b2) * (mean(g**2) - v);``
    ``w -= lr * (m / (1 - b1**step) / (sqrt(v / (1 - b2**step)) + eps) + weight_decay * w)``.

    Parameters
    ----------
    lr : float or callable of the step
        Learning rate, finite and not negative.
        A function gets the number of the update, from 1; schedules that count from 0, such as those of optax, are
        ``lambda step: schedule(step - 1)``.
    betas : (float, float)
        Decay of the first and second moment, each in [0, 1).
    eps : float
    weight_decay : float
        Decoupled, on the touched rows.

    Raises
    ------
    TypeError, ValueError
        For hyperparameters of another type or out of range.

    Notes
    -----
    State: slot ``exp_avg``, dim numbers a row, and row slot ``exp_avg_sq``, one.  Rows without a gradient do
    not change: their moments are frozen, and they do not decay.

    References
    ----------
    Formula: pytorch/FBGEMM, fbgemm_gpu/codegen/genscript/optimizers.py, partial_rowwise_adam.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.zeros((2, 2)), optimizer=se.PartialRowwiseAdam(lr=0.1, eps=0.0))
    >>> table.update([1], np.array([[3.0, -3.0]]))
    >>> table.weight[1].round(6)
    array([-0.1,  0.1])
    """

    lr: Schedule = 1e-3
    _: KW_ONLY
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    Hyper = PartialRowwiseAdamHyper
    slots = ("exp_avg",)
    row_slots = ("exp_avg_sq",)
    squares = ("exp_avg_sq",)

    def _check(self, name: str, value: Any) -> None:
        if name == "betas":
            check_betas("PartialRowwiseAdam(betas=...)", value)
        else:
            super()._check(name, value)

    def hyper(self, step: int) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        lr = self.rate(step)
        root = 1 / sqrt(1 - beta2**step)
        return lr / (1 - beta1**step), root, 1 - beta1, 1 - beta2, self.eps, lr * self.weight_decay

    @staticmethod
    def reduce(w, g, hp):
        return g * g

    @staticmethod
    def row(x, r, hp):
        v = r[0] + hp.rest2 * (x - r[0])
        # A row whose gradients were all zero does not change; with eps = 0 the quotient would be 0 / 0.
        return (hp.step_size / (sqrt(v) * hp.root + hp.eps) if v > 0 else v), (v,)

    @staticmethod
    def step(w, g, s, a, hp):
        m = s[0] + hp.rest1 * (g - s[0])
        return w - (a * m + hp.decay * w), (m,)
