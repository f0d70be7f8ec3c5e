"""The softmax loss over the ids of a bag."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ._loss import Loss


class SoftmaxHyper(NamedTuple):
    one: float


@dataclass(frozen=True)
class Softmax(Loss):
    """Cross-entropy over the ids of a bag: ``log(sum(exp(s))) * sum(y) - sum(y * s)``.

    Notes
    -----
    Labels are not negative, one a score; those of a bag are a distribution, or any weights.  Without labels the first
    id of a bag is the right one: ``log(sum(exp(s))) - s[0]``; then a bag whose first id is the padding has no loss.
    The padding is in no sum.

    Kernels of both devices have the sums over bags, so a loss of this kind cannot be derived.

    Examples
    --------
    >>> import numpy as np, sparsembed as se
    >>> table = se.EmbeddingTable.from_array(np.array([[0.0], [1.0]]))
    >>> loss, grad_x, grad_scores = table.dot_loss([[0, 0, 1]], [[0.0]], loss=se.losses.Softmax())
    >>> round(loss, 6), grad_scores.round(3)  # log(3)
    (1.098612, array([[-0.667,  0.333,  0.333]]))
    """

    Hyper = SoftmaxHyper
    labels: ClassVar[tuple[float, float]] = (0.0, math.inf)
    _over_bags: ClassVar[bool] = True

    def hyper(self) -> tuple[float, ...]:
        return (1.0,)
