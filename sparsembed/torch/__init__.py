"""PyTorch modules whose tables are sparsembed's, and an optimizer for them."""

from ._bag import EmbeddingBag
from ._convert import convert
from ._dot import dot
from ._embedding import Embedding
from ._files import load, save
from ._optimizer import Optimizer
from ._parameters import clip_grad_norm_, dense_parameters, table_parameters

__all__ = [
    "Embedding",
    "EmbeddingBag",
    "Optimizer",
    "clip_grad_norm_",
    "convert",
    "dense_parameters",
    "dot",
    "load",
    "save",
    "table_parameters",
]
