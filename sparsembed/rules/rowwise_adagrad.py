"""Adagrad with one accumulator per row."""

from dataclasses import KW_ONLY, dataclass
from math import sqrt
from typing import Any, NamedTuple

from ._forms import decayed
from ._rule import Rule, Schedule


class RowwiseAdagradHyper(NamedTuple):
    lr: float
    eps: float
    l2: float
    decay: float


@dataclass(frozen=True)
class RowwiseAdagrad(Rule):
    """Adagrad whose accumulator is the mean square of a row's gradient.

    FBGEMM's EXACT_ROWWISE_ADAGRAD.  With ``g' = g + wd * w`` for L2 decay and ``g' = g``
    otherwise: ``v += mean(g'**2);  m = lr / (sqrt(v) + eps);  w = c * w - m * g``, where `c` is
    ``1 - m * wd`` (L2) or ``1 - lr * wd`` (decoupled).

    Parameters
    ----------
    lr : float or callable of the step
        Learning rate, finite and not negative.
        A function gets the number of the update, from 1; schedules that count from 0, such as those of optax, are
        ``lambda step: schedule(step - 1)``.
    eps : float
        Added to the root of the accumulator.
    weight_decay : float
        Decay `wd` of the rows that a step touches; other rows do not decay.
    weight_decay_mode : {"decoupled", "l2"}
        Where the decay enters.

    Raises
    ------
    TypeError, ValueError
        For hyperparameters of another type or out of range.

    Notes
    -----
    State: row slot ``sum``, one number a row.  FBGEMM's CPU kernel ignores the decay; here it
    works.

    References
    ----------
    Formula: pytorch/FBGEMM, fbgemm_gpu/codegen/genscript/optimizers.py, rowwise_adagrad.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.zeros((4, 2)), optimizer=se.RowwiseAdagrad(lr=1.0, eps=0.0))
    >>> table.update([3], np.array([[3.0, 4.0]]))
    >>> table.state["sum"][3]
    np.float64(12.5)
    """

    lr: Schedule = 1e-2
    _: KW_ONLY
    eps: float = 1e-8
    weight_decay: float = 0.0
    weight_decay_mode: str = "decoupled"

    Hyper = RowwiseAdagradHyper
    row_slots = ("sum",)
    squares = ("sum",)

    def _check(self, name: str, value: Any) -> None:
        if name != "weight_decay_mode":
            super()._check(name, value)
        elif value not in ("decoupled", "l2"):
            raise ValueError(f"RowwiseAdagrad(weight_decay_mode=...) must be 'decoupled' or 'l2', got {value!r}")

    def hyper(self, step: int) -> tuple[float, ...]:
        lr = self.rate(step)
        if self.weight_decay_mode == "l2":
            return lr, self.eps, self.weight_decay, 0.0
        return lr, self.eps, 0.0, lr * self.weight_decay

    @staticmethod
    def reduce(w, g, hp):
        x = decayed(w, g, hp)
        return x * x

    @staticmethod
    def row(x, r, hp):
        total = r[0] + x
        # A row whose gradients were all zero does not change; with eps = 0 the quotient would be 0 / 0.
        return (hp.lr / (sqrt(total) + hp.eps) if total > 0 else total), (total,)

    @staticmethod
    def step(w, g, s, a, hp):
        return w - ((a * hp.l2 + hp.decay) * w + a * g), s
