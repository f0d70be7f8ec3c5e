"""The logistic loss."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ._dispatch import exp_of, log1p_of
from ._loss import Loss


class LogisticHyper(NamedTuple):
    zero: float
    one: float


@dataclass(frozen=True)
class Logistic(Loss):
    """Logistic loss of each score: ``log(1 + exp(s)) - y * s``, binary cross-entropy with logits.

    Notes
    -----
    Labels are in [0, 1], one a score.  The loss is finite for every finite score; its slope is ``sigmoid(s) - y``.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.array([[0.0], [1000.0]]))
    >>> table.dot_loss([[1, 1]], [[1.0]], labels=[[1, 0]], loss=se.losses.Logistic())
    (1000.0, array([[1000.]]), array([[0., 1.]]))
    """

    Hyper = LogisticHyper
    labels: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def hyper(self) -> tuple[float, ...]:
        return 0.0, 1.0

    @staticmethod
    def term(s, y, hp):
        e = exp_of(-abs(s))
        chance = (hp.one if s > 0 else e) / (hp.one + e)
        return ((hp.one if s > 0 else hp.zero) - y) * s + log1p_of(e), chance - y
