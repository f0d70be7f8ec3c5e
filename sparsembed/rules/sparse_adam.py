"""Adam on the touched rows only."""

from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

from ._rule import Rule, Schedule, check_betas


class SparseAdamHyper(NamedTuple):
    step_size: float
    rest1: float
    rest2: float
    eps: float


@dataclass(frozen=True)
class SparseAdam(Rule):
    """Adam as ``torch.optim.SparseAdam`` computes it: rows without a gradient do not change.

    ``m += (1 - b1) * (g - m);  v += (1 - b2) * (g**2 - v);``
    ``w -= lr * sqrt(1 - b2**step) / (1 - b1**step) * m / (sqrt(v) + eps)``.

    Parameters
    ----------
    lr : float or callable of the step
        Learning rate, finite and not negative.
    betas : (float, float)
        Decay of the first and second moment, each in [0, 1).
    eps : float
        Added to the root of the uncorrected second moment, so that SparseAdam(eps) steps like
        dense Adam(eps / sqrt(1 - b2**step)).

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
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    Hyper = SparseAdamHyper
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
