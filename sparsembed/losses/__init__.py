"""Losses of scores: each is an immutable value, in a file of its own; `EmbeddingTable.dot_loss` takes one."""

from ._loss import Loss
from .logistic import Logistic
from .pairwise import Pairwise
from .softmax import Softmax
from .squared import Squared

__all__ = ["Logistic", "Loss", "Pairwise", "Softmax", "Squared"]
