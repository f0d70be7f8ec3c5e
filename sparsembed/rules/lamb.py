"""LAMB with one trust ratio per row, on the touched rows only."""

from dataclasses import KW_ONLY, dataclass
from math import sqrt
from typing import Any, NamedTuple

from ._rule import Rule, Schedule, check_betas, helper


class LAMBHyper(NamedTuple):
    lr: float
    scale: float
    root: float
    rest1: float
    rest2: float
    eps: float
    decay: float
    one: float


@helper
def _direction(w, g, s, hp):
    """Return Adam's step with decay for a learning rate of 1, and the new moments."""
    m = s[0] + hp.rest1 * (g - s[0])
    v = s[1] + hp.rest2 * (g * g - s[1])
    return (hp.scale * m / (sqrt(v) * hp.root + hp.eps) if m != 0 else m) + hp.decay * w, m, v


@dataclass(frozen=True)
class LAMB(Rule):
    """LAMB: Adam's step, scaled so that its length is in proportion to the row.

    ``m += (1 - b1) * (g - m);  v += (1 - b2) * (g**2 - v);``
    ``u = m / (1 - b1**step) / (sqrt(v / (1 - b2**step)) + eps) + weight_decay * w;``
    ``w -= lr * norm(w) / norm(u) * u``, with norms over the row, and their ratio 1 where either is zero.

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

    Raises
    ------
    TypeError, ValueError
        For hyperparameters of another type or out of range.

    Notes
    -----
    State: slots ``exp_avg`` and ``exp_avg_sq``, 2 * dim numbers a row.  Rows without a gradient do not
    change: their moments are frozen, and they do not decay.

    References
    ----------
    You et al., "Large Batch Optimization for Deep Learning", https://arxiv.org/abs/1904.00962; the ratio is
    that of the paper with phi the identity.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.full((2, 2), 3.0), optimizer=se.LAMB(lr=0.1, eps=0.0))
    >>> table.update([1], np.array([[5.0, -5.0]]))
    >>> table.weight[1].round(6)
    array([2.7, 3.3])
    """

    lr: Schedule = 1e-3
    _: KW_ONLY
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0

    Hyper = LAMBHyper
    slots = ("exp_avg", "exp_avg_sq")
    squares = ("exp_avg_sq",)

    def _check(self, name: str, value: Any) -> None:
        if name == "betas":
            check_betas("LAMB(betas=...)", value)
        else:
            super()._check(name, value)

    def hyper(self, step: int) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        scale, root = 1 / (1 - beta1**step), 1 / sqrt(1 - beta2**step)
        return self.rate(step), scale, root, 1 - beta1, 1 - beta2, self.eps, self.weight_decay, 1.0

    @staticmethod
    def reduce_pair(w, g, s, hp):
        u, _, _ = _direction(w, g, s, hp)
        return w * w, u * u

    @staticmethod
    def row_pair(x, y, r, hp):
        return (sqrt(x / y) if x > 0 and y > 0 else hp.one), r

    @staticmethod
    def step(w, g, s, a, hp):
        u, m, v = _direction(w, g, s, hp)
        return w - hp.lr * a * u, (m, v)
