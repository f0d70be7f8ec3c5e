"""Stochastic gradient descent: plain, with weight decay, with momentum."""

import inspect
import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ._catch_up import CatchUp
from ._history import FARTHEST, History
from ._rule import Rule, Schedule, check_number, plain

_PRODUCT, _UNTIL, _SLOPE = 4, 5, 6  # columns of the history after the 2 x 2 matrix


class SGDHyper(NamedTuple):
    lr: float


@dataclass(frozen=True, repr=False)
class SGD(Rule):
    """Stochastic gradient descent, as ``torch.optim.SGD`` on the dense gradient.

    Without momentum and decay ``w -= lr * g``.  Else, with g = 0 for rows not in the batch, ``d = g +
    weight_decay * w``, ``b = momentum * b + (1 - dampening) * d`` (at the first step ``b = d``) and
    ``w -= lr * b``, or with nesterov ``w -= lr * (d + momentum * b)``.

    Parameters
    ----------
    lr : float or callable of the step
        Learning rate, finite and not negative.  The first update is step 1.
    momentum : float
        In [0, 1), and such that a row comes to rest within 16,384 steps without a gradient.
    dampening : float
        In [0, 1]; needs momentum.
    nesterov : bool
        Needs momentum, and no dampening.
    weight_decay : float, of L2 decay

    Raises
    ------
    TypeError, ValueError
        For hyperparameters of another type or out of range.

    Notes
    -----
    State: none without momentum and decay.  Momentum adds the slot ``momentum_buffer``; momentum and decay add one
    int32 a row, the last step of the row.  Rows catch up when they are read and when they are updated: steps without a
    gradient multiply (w, b) by a 2 x 2 matrix, the same for all rows that missed the same steps.  After `reach` steps
    only the slower mode of the matrix is left, one factor per step.

    References
    ----------
    Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013,
    https://proceedings.mlr.press/v28/sutskever13.html; formula: torch/optim/sgd.py.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.zeros((4, 2), np.float32), optimizer=se.SGD(lr=0.5))
    >>> table.update([1, 1], np.ones((2, 2), np.float32))
    >>> table.weight[1]
    array([-1., -1.], dtype=float32)
    >>> table = se.EmbeddingTable.from_array(np.zeros((4, 1)), optimizer=se.SGD(lr=1.0, momentum=0.5))
    >>> table.update([1], np.array([[1.0]]))
    >>> table.update([2], np.array([[1.0]]))  # row 1 moves on
    >>> table.weight.ravel()
    array([ 0. , -1.5, -1. ,  0. ])
    """

    lr: Schedule
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    Hyper: ClassVar[type] = SGDHyper

    def __new__(cls, *args: Any, **kwargs: Any) -> "SGD":
        """Return the subclass that keeps only the state these hyperparameters need."""
        given = dict(zip((field.name for field in fields(SGD)), args, strict=False)) | kwargs
        form = cls
        if cls is SGD and not _is_zero(given.get("momentum", 0)):
            form = MomentumSGD
        elif cls is SGD and not _is_zero(given.get("weight_decay", 0)):
            form = DecayedSGD
        return super().__new__(form)

    def __repr__(self) -> str:
        shown = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"SGD({', '.join(shown)})"

    def _check(self, name: str, value: Any) -> None:
        if name == "nesterov":
            if not isinstance(value, bool | np.bool_):
                raise TypeError(f"SGD(nesterov=...) must be True or False, got {value!r}")
            if value and (self.momentum == 0 or self.dampening != 0):
                raise ValueError("SGD(nesterov=True) needs momentum, and no dampening, as in torch")
        elif name == "momentum":
            check_number("SGD(momentum=...)", value, below=1.0)
            if reach(value) > FARTHEST:
                raise ValueError(
                    f"SGD(momentum=...) must let a row come to rest within {FARTHEST} steps, got {value!r}; use less"
                )
        elif name == "lr" and callable(value):
            return
        else:
            check_number(f"SGD({name}=...)", value)
            if name == "dampening" and not value <= 1:
                raise ValueError(f"SGD(dampening=...) must be at most 1, got {value!r}")
            if name == "dampening" and value and self.momentum == 0:
                raise ValueError(f"SGD(dampening={value!r}) needs momentum, else it would do nothing")

    def hyper(self, step: int) -> tuple[float, ...]:
        return (self.rate(step),)

    @staticmethod
    def step(w, g, s, a, hp):
        return w - hp.lr * g, s


# Show the hyperparameters in the signature, not the arguments of __new__.
_arguments = [*inspect.signature(SGD.__init__).parameters.values()][1:]
SGD.__signature__ = inspect.Signature(_arguments)  # type: ignore[attr-defined]


class DecayedSGDHyper(NamedTuple):
    lr: float
    l2: float


class DecayedSGDGap(NamedTuple):
    keep: float


class DecayedSGDCatchUp(CatchUp):
    """Missed steps multiply a weight by a product of factors."""

    Gap = DecayedSGDGap

    @staticmethod
    def history(rule: Any, dtype: np.dtype[Any], base: int) -> History:
        def advance(history: History, t: int) -> tuple[int, Any]:
            lr, l2 = history.exact[t]
            return t, history.entries[t - 1 : t] * (1 - lr * l2)

        return History(1, 2, np.zeros((1, 1)), 0, advance, dtype, base, product=0, first=(1.0,))

    @staticmethod
    def gap(entries, first, newest, ages, reach, out, hp):
        out[0] = entries[newest, 0] / entries[first, 0]

    @staticmethod
    def catch_up(w, s, c, hp):
        return c.keep * w, s


@dataclass(frozen=True, repr=False)
class DecayedSGD(SGD):
    """SGD with weight decay and without momentum: rows shrink by a factor in each step."""

    Hyper = DecayedSGDHyper
    catching_up = DecayedSGDCatchUp

    def _check(self, name: str, value: Any) -> None:
        super()._check(name, value)
        if name == "momentum" and value != 0:
            raise ValueError(f"SGD(momentum={value!r}) keeps state that SGD without momentum has not; make a new SGD")

    def hyper(self, step: int) -> tuple[float, ...]:
        return self.rate(step), self.weight_decay

    @staticmethod
    def step(w, g, s, a, hp):
        return w - hp.lr * (g + hp.l2 * w), s


class MomentumSGDHyper(NamedTuple):
    lr: float
    momentum: float
    rest: float
    l2: float
    own: float
    ahead: float


class MomentumSGDGap(NamedTuple):
    """The 2 x 2 matrix of the missed steps, which multiplies (w, b)."""

    ww: float
    wb: float
    bw: float
    bb: float


class MomentumSGDCatchUp(CatchUp):
    """Missed steps multiply (w, b) by a product of matrices."""

    Gap = MomentumSGDGap

    @staticmethod
    def history(rule: Any, dtype: np.dtype[Any], base: int) -> History:
        # The faster mode decays at least by sqrt(momentum) per step: with weight decay it takes twice the steps.
        far = int(reach(rule.momentum)) * (2 if rule.weight_decay else 1)

        def advance(history: History, t: int) -> tuple[int, Any]:
            first, (ww, wb, bw, bb) = max(0, t - far), _matrix(history.exact[t])
            rows = history.entries[first : t + 1].copy()
            young = rows[:-1]
            young[:, 0:2], young[:, 2:4] = (
                ww * young[:, 0:2] + wb * young[:, 2:4],
                bw * young[:, 0:2] + bb * young[:, 2:4],
            )
            slope = rows[-2, _SLOPE]  # b / w of the slower mode
            factor = ww + wb * slope
            product = rows[-2, _PRODUCT] * factor
            young[:, _UNTIL] = product
            slope = (bw + bb * slope) / factor if factor else 0.0
            rows[-1] = (1.0, 0.0, 0.0, 1.0, product, product, slope)
            return first, rows

        first = (1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0)
        history = History(7, 6, np.zeros((1, 1)), far, advance, dtype, base, _PRODUCT, first)
        history.kind_of_step = _swings
        return history

    @staticmethod
    def gap(entries, first, newest, ages, reach, out, hp):
        for k in range(4):
            out[k] = entries[first, k]
        if newest - first > reach:
            product, until = entries[newest, 4], entries[first, 5]
            share = product / until if product != until else 1.0
            for k in range(2):
                out[k] = entries[first, k] * share
                out[k + 2] = entries[newest, 6] * out[k]

    @staticmethod
    def catch_up(w, s, c, hp):
        return c.ww * w + c.wb * s[0], (c.bw * w + c.bb * s[0],)


@dataclass(frozen=True, repr=False)
class MomentumSGD(SGD):
    """SGD with momentum."""

    Hyper = MomentumSGDHyper
    catching_up = MomentumSGDCatchUp
    slots = ("momentum_buffer",)

    def hyper(self, step: int) -> tuple[float, ...]:
        rest = 1 - self.dampening if step > 1 else 1.0
        own, ahead = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        return self.rate(step), self.momentum, rest, self.weight_decay, own, ahead

    @staticmethod
    def step(w, g, s, a, hp):
        d = g + hp.l2 * w
        b = hp.momentum * s[0] + hp.rest * d
        return w - hp.lr * (hp.own * d + hp.ahead * b), (b,)


def _matrix(hyper: Any) -> tuple[float, float, float, float]:
    """Return the 2 x 2 matrix by which a step without a gradient multiplies (w, b)."""
    lr, momentum, rest, l2, own, ahead = map(float, hyper)
    return 1 - lr * l2 * (own + ahead * rest), -lr * ahead * momentum, rest * l2, momentum


def _swings(hyper: tuple[float, ...]) -> bool:
    """Whether rows oscillate around zero: the eigenvalues are complex, and no mode is the slower one."""
    ww, wb, bw, bb = _matrix(hyper)
    return (ww + bb) ** 2 < 4 * (ww * bb - wb * bw)


def _is_zero(value: Any) -> bool:
    value = plain(value)
    return isinstance(value, int | float) and value == 0


def reach(momentum: float) -> float:
    """Return how many steps without a gradient move a row by more than 2**-64 of the first step."""
    return 1 if momentum == 0 else math.ceil(64 * math.log(2) / -math.log(momentum))


def addition(alpha: float, dtype: Any) -> SGDHyper:
    """Return the hyperparameters for which plain SGD is a scatter-add, ``w += alpha * g``."""
    return SGDHyper(dtype.type(-alpha))
