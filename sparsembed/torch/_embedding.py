"""Embedding: torch.nn.Embedding on a sparsembed table."""

from typing import Any

import torch

from ..rules import Rule
from . import _check
from ._autograd import Lookup
from ._compile import untraced
from ._module import TableModule, new_weight
from ._transforms import Frozen, faking, recording, refuse_tangents, refuse_transform
from ._weight import unwatched


class Embedding(TableModule, torch.nn.Embedding):
    """`torch.nn.Embedding` whose table sparsembed trains.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        At least 1 each.
    padding_idx, max_norm, norm_type, scale_grad_by_freq, _weight, _freeze, device, dtype
        As torch's; float32 or float64 in host memory.  `max_norm` bounds rows when the module is made, when weights
        are loaded, and at each update, never in forward.
    sparse : bool
        The gradient of `weight` is sparse in any case.
    optimizer : Rule, optional
        Such as ``se.SparseAdam(lr=1e-3)``; for `fused` only.
    fused : bool
        Step at the end of each backward pass.  Else `sparsembed.torch.Optimizer` steps.  After ``eval()`` there are no
        steps: the gradient of rows that were looked up in eval mode is dropped, whenever backward runs.

    Raises
    ------
    TypeError
        If `optimizer` is no sparsembed optimizer, or an argument of another type.
    ValueError
        If a number is out of its range, or an optimizer comes without `fused` or the other way round.
    AssertionError
        If `padding_idx` is out of range, as torch raises it.

    Notes
    -----
    Input is an int32 or int64 tensor of any shape, output ``input.shape + (embedding_dim,)``.  `weight` is a parameter
    in the memory of the table; reading it, or `state_dict`, brings rows up to date with rules such as `se.Adam`.

    Examples
    --------
    >>> import torch, sparsembed as se, sparsembed.torch
    >>> embedding = sparsembed.torch.Embedding(10, 4, padding_idx=0)
    >>> optimizer = sparsembed.torch.Optimizer([embedding.weight], se.SparseAdam(lr=1e-3))
    >>> embedding(torch.tensor([[3, 0], [3, 7]])).sum().backward()
    >>> embedding.weight.grad.indices()
    tensor([[3, 7]])
    >>> optimizer.step()
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Any = None,
        _freeze: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        optimizer: Rule | None = None,
        fused: bool = False,
    ) -> None:
        _check.mode_of_training(optimizer, fused, _freeze)
        if _weight is not None:
            _check.matrix(_weight, "_weight")
        weight = new_weight(num_embeddings, embedding_dim, device, dtype) if _weight is None else _weight
        options = (padding_idx, max_norm, norm_type, scale_grad_by_freq)
        super().__init__(num_embeddings, embedding_dim, *options, True, weight, _freeze)
        self._make_table(optimizer, fused, _weight is None)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Any,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        optimizer: Rule | None = None,
        fused: bool = False,
    ) -> "Embedding":
        """Make a module of a tensor, whose memory it shares.

        Parameters
        ----------
        embeddings : tensor of shape (num_embeddings, embedding_dim)
        freeze : bool
            Make a module that is not trained; must be False for `fused`.
        padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, optimizer, fused
            As for the class; the row of `padding_idx` is left as it is.

        Returns
        -------
        Embedding

        Raises
        ------
        TypeError, ValueError
            If `embeddings` is no matrix of floats in host memory, `freeze` goes with `fused`, or as for the class.

        Examples
        --------
        >>> import torch, sparsembed.torch
        >>> embedding = sparsembed.torch.Embedding.from_pretrained(torch.eye(3))
        >>> embedding(torch.tensor(1))
        tensor([0., 1., 0.])
        """
        _check.matrix(embeddings, "embeddings")
        options = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        num_embeddings, dim = embeddings.shape
        return cls(num_embeddings, dim, *options, embeddings, freeze, optimizer=optimizer, fused=fused)

    def forward(self, input: Any) -> Any:  # noqa: A002  (torch's name)
        """Look rows up.

        Parameters
        ----------
        input : int32 or int64 tensor of any shape

        Returns
        -------
        tensor of shape ``input.shape + (embedding_dim,)``
            In the dtype of `weight`.

        Raises
        ------
        TypeError, IndexError
            For ids of another dtype, or out of range.
        NotImplementedError
            For transforms of `torch.func` and forward-mode derivatives that would have to pass through the table.

        Examples
        --------
        >>> import torch, sparsembed.torch
        >>> embedding = sparsembed.torch.Embedding(10, 4)
        >>> embedding(torch.tensor([[3, 5]])).shape
        torch.Size([1, 2, 4])
        """
        return self._recorded(input) if recording(input) else self._forward(input)

    def _recorded(self, ids: Any) -> Any:
        """Return torch's own lookup, for a program that torch records."""
        weight = self._settled()
        with unwatched(weight):
            return torch.nn.functional.embedding(ids, weight, self.padding_idx)

    @untraced
    def _forward(self, ids: Any) -> Any:
        if faking():
            return self._recorded(ids)
        _check.ids(ids)
        if torch._C._are_functorch_transforms_active():
            weight = self._parameters["weight"]
            refuse_transform(self._leaf(weight), weight)
            return Frozen.apply(self._forward, ids)
        weight, table = self._current()
        refuse_tangents(weight)
        leaf = self._leaf(weight)
        try:
            return table.read(ids) if leaf is None else Lookup.apply(leaf, ids, (weight, table, self.training))
        except IndexError:
            _check.outside(ids, table.num_rows)
            raise

    def extra_repr(self) -> str:
        """Describe the module in `repr`."""
        return str(super().extra_repr()) + (f", fused=True, optimizer={self.optimizer}" if self.fused else "")
