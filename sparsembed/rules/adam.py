"""Adam and AdamW, equal to the dense optimizers, at a cost that follows the touched rows."""

import math
from dataclasses import KW_ONLY, dataclass
from math import exp, sqrt
from typing import Any, NamedTuple

import numpy as np

from ._catch_up import CatchUp
from ._history import FARTHEST, History
from ._moments import CENTER, PRODUCT, add_step
from ._rule import Rule, Schedule, check_betas


class AdamHyper(NamedTuple):
    step_size: float
    root: float
    beta1: float
    rest1: float
    beta2: float
    rest2: float
    eps: float
    keep: float


class AdamGap(NamedTuple):
    """Coefficients of the series, shared by all rows that missed the same steps."""

    keep: float
    center: float
    n0: float
    n1: float
    n2: float
    n3: float
    limit: float
    beta1: float
    beta2: float
    one: float


class AdamCatchUp(CatchUp):
    """The series in the notes of `Adam`."""

    Gap = AdamGap

    @staticmethod
    def history(rule: Any, dtype: np.dtype[Any], base: int) -> History:
        far = int(reach(*rule.betas))
        log2 = math.log(rule.betas[1]) if rule.betas[1] else -math.inf
        ages = np.vstack([np.array([rule.betas]) ** np.arange(far + 1)[:, None], [[0.0, log2]]])
        ages = np.column_stack([ages, np.sqrt(np.abs(ages[:, 1]))])
        root2 = math.sqrt(rule.betas[1])
        # Tolerance for the truncation error: below the rounding error of the dtype.
        rounding = 2.0**-26 if dtype == np.float32 else 2.0**-54

        def advance(history: History, t: int) -> None:
            add_step(history.entries, history.exact, ages, t, far, root2, rounding, history.written)

        first = (0.0,) * CENTER + (0.0, math.inf, 1.0, 1.0)
        history = History(9, 8, ages, far, advance, dtype, base, PRODUCT, first)
        history.by_step = True
        return history

    @staticmethod
    def gap(entries, first, newest, ages, reach, out, hp):
        product, until = entries[newest, 7], entries[first, 8]
        share = product / until if product != until else 1.0
        out[0] = product / entries[first, 7]
        out[1] = entries[first, 5]
        for q in range(4):
            out[2 + q] = entries[first, q] * share
        out[6] = entries[first, 6]
        if not abs(entries[first, 4]) < 1e30:  # may overflow in float32 (3.4e38): use only the first term
            out[3], out[4], out[5], out[6] = 0.0, 0.0, 0.0, 0.0
        missed = newest - first
        if missed <= reach:
            out[7], out[8] = ages[missed, 0], ages[missed, 1]
        else:
            out[7], out[8] = 0.0, exp(missed * ages[reach + 1, 1])
        out[9] = 1.0

    @staticmethod
    def is_guarded(c, hp):
        return not c.limit >= c.one

    @staticmethod
    def is_unsettled(s, c, hp):
        return s[0] != 0 and hp.eps > c.limit * (sqrt(s[1]) * c.center + hp.eps)

    @staticmethod
    def catch_up(w, s, c, hp):
        y = c.one / (sqrt(s[1]) * c.center + hp.eps)
        d = hp.eps * y
        change = s[0] * y * (c.n0 - d * (c.n1 - d * (c.n2 - d * c.n3))) if s[0] != 0 and c.n0 != 0 else s[0] - s[0]
        return c.keep * w - change, (s[0] * c.beta1, s[1] * c.beta2)


@dataclass(frozen=True)
class Adam(Rule):
    """Adam as ``torch.optim.Adam`` computes it on the dense gradient, every row at every step.

    ``m += (1 - b1) * (g - m);  v = b2 * v + (1 - b2) * g**2;``
    ``w -= lr / (1 - b1**step) * m / (sqrt(v / (1 - b2**step)) + eps)``, with g = 0 for rows not in the batch.

    Parameters
    ----------
    lr : float or callable of the step
        Learning rate, finite and not negative.
        A function gets the number of the update, from 1; schedules that count from 0, such as those of optax, are
        ``lambda step: schedule(step - 1)``.
    betas : (float, float)
        Decay of the first and second moment, each in [0, 1).  ``betas[0] < sqrt(betas[1])`` by enough
        that a row comes to rest within 16,384 steps without a gradient.
    eps : float
        Added to the root of the corrected second moment.
    weight_decay : float
        Must be zero: L2 decay enters the second moment, so that every row would have to be stepped each
        time.  `AdamW` decays exactly.

    Raises
    ------
    ValueError
        For what cannot be exact.

    Notes
    -----
    State: slots ``exp_avg`` and ``exp_avg_sq``, 2 * dim numbers a row, and one int32, the last step of the
    row.  Rows catch up when they are read and when they are updated; with
    `EmbeddingTable.flush`, and when `weight` is read, all rows do.

    A row last touched at step `u` moves at step ``u + j`` by ``c[j] * m / (a * p[j] + eps)``, where
    ``a = sqrt(v)``, ``p[j] = sqrt(b2**j / (1 - b2**(u + j)))`` and ``c[j] = lr / (1 - b1**(u + j)) * b1**j``.
    With ``x = p[1] / p[j] - 1 >= 0``, ``y = 1 / (a * p[1] + eps)`` and ``d = eps * y <= 1`` each summand is
    ``c[j] * m * y * (1 + x) / (1 + d * x)``.  The sum over the missed steps is ``m * y`` times
    ``N0 - d * N1 + d**2 * N2 - d**3 * N3``, where ``Nq = sum(c * (1 + x) * x**q)`` is shared by all rows, and
    what is left out is at most ``d**4 * N4``.  Where that exceeds rounding (only in the first hundred
    steps, and where ``sqrt(v)`` is near eps or below) the row takes the steps one by one, at most as many
    as move it by more than rounding.

    References
    ----------
    Kingma, Ba, "Adam", https://arxiv.org/abs/1412.6980; formula: torch/optim/adam.py.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.zeros((4, 1)), optimizer=se.Adam(lr=0.1))
    >>> table.update([1], np.array([[5.0]]))
    >>> table.update([2], np.array([[5.0]]))  # row 1 moves on, as it does in dense Adam
    >>> table.weight.ravel().round(4)
    array([ 0.    , -0.167 , -0.0744,  0.    ])
    """

    lr: Schedule = 1e-3
    _: KW_ONLY
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    Hyper = AdamHyper
    catching_up = AdamCatchUp
    slots = ("exp_avg", "exp_avg_sq")
    squares = ("exp_avg_sq",)

    def _check(self, name: str, value: Any) -> None:
        kind = type(self).__name__
        if name != "betas":
            super()._check(name, value)
            if name == "weight_decay" and value and type(self) is Adam:
                raise ValueError(
                    f"Adam(weight_decay=...) must be 0, got {value!r}: L2 decay enters the second moment, which makes "
                    "every step dense; use AdamW(weight_decay=...), which is exact"
                )
            return
        check_betas(f"{kind}(betas=...)", value)
        far = reach(*value)
        if not far <= FARTHEST or (value[0] > 0 and value[1] ** far < 1e-290):
            raise ValueError(
                f"{kind}(betas=...) must have betas[0] well below sqrt(betas[1]), got {value!r}: a row without "
                f"gradients would move for more than {FARTHEST} steps; use other betas, or SparseAdam"
            )

    def hyper(self, step: int) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        lr = self.rate(step)
        root = 1 / sqrt(1 - beta2**step)
        return lr / (1 - beta1**step), root, beta1, 1 - beta1, beta2, 1 - beta2, self.eps, 1 - lr * self.weight_decay

    @staticmethod
    def step(w, g, s, a, hp):
        m = hp.beta1 * s[0] + hp.rest1 * g
        v = hp.beta2 * s[1] + hp.rest2 * (g * g)
        # A fresh row without a gradient does not change; with eps = 0 the quotient would be 0 / 0.
        change = m / (sqrt(v) * hp.root + hp.eps) if m != 0 else m
        return hp.keep * w - hp.step_size * change, (m, v)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, as ``torch.optim.AdamW`` on the dense gradient.

    As `Adam`, but each step first multiplies every weight of the table by ``1 - lr * weight_decay``.

    Parameters
    ----------
    lr, betas, eps : as for `Adam`
        With the same ranges.
    weight_decay : float
        Not negative; ``lr * weight_decay`` is the share that a weight loses in each step.

    Raises
    ------
    TypeError, ValueError
        For hyperparameters of another type or out of range.

    Notes
    -----
    Rows that were never touched decay, too.

    References
    ----------
    Loshchilov, Hutter, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.ones((3, 1)), optimizer=se.AdamW(lr=0.1, weight_decay=0.5))
    >>> table.update([1], np.array([[0.0]]))
    >>> table.weight.ravel()
    array([0.95, 0.95, 0.95])
    """

    _: KW_ONLY
    weight_decay: float = 1e-2


def reach(beta1: float, beta2: float) -> float:
    """Return how many steps without a gradient move a row by more than 2**-64 of the first step.

    The same bound holds for float32: with a growing learning rate the later steps are the large ones.
    """
    if beta1 == 0:
        return 1
    if beta1 * beta1 >= beta2:
        return math.inf
    return math.ceil(64 * math.log(2) / (0.5 * math.log(beta2) - math.log(beta1)))
