"""EmbeddingBag: torch.nn.EmbeddingBag on a sparsembed table."""

from typing import Any

import numpy as np
import torch

from .._frameworks import as_array
from ..bags import Bags
from ..rules import Rule
from . import _check
from ._autograd import Pool
from ._compile import untraced
from ._module import TableModule, new_weight
from ._transforms import Frozen, faking, recording, refuse_tangents, refuse_transform
from ._weight import unwatched

MODES = ("sum", "mean", "max")


class EmbeddingBag(TableModule, torch.nn.EmbeddingBag):
    """`torch.nn.EmbeddingBag` whose table sparsembed trains.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        At least 1 each.
    max_norm, norm_type, scale_grad_by_freq, mode, _weight, include_last_offset, padding_idx, device, dtype
        As torch's; float32 or float64 in host memory.  `max_norm` bounds rows when the module is made, when weights
        are loaded, and at each update, never in forward.
    sparse : bool
        The gradient of `weight` is sparse in any case, for mode "max" and with `scale_grad_by_freq`, too.
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
        If a number is out of its range, `mode` unknown, or an optimizer comes without `fused` or the other way round.
    AssertionError
        If `padding_idx` is out of range, as torch raises it.

    Notes
    -----
    Bags are exactly the intervals between offsets: with `include_last_offset` the last must be ``len(input)``.  Mode
    "max" propagates NaN from anywhere in a bag.

    Examples
    --------
    >>> import torch, sparsembed as se, sparsembed.torch
    >>> bag = sparsembed.torch.EmbeddingBag(10, 4, mode="sum", optimizer=se.SparseAdam(lr=1e-3), fused=True)
    >>> bag(torch.tensor([3, 7, 3]), torch.tensor([0, 2])).sum().backward()  # and it has stepped
    >>> bag.table.step
    1
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Any = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
        *,
        optimizer: Rule | None = None,
        fused: bool = False,
    ) -> None:
        _check.mode_of_training(optimizer, fused, False)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
        if mode == "max" and scale_grad_by_freq:
            raise ValueError("mode='max' does not scale gradients by frequency; leave out scale_grad_by_freq")
        if _weight is not None:
            _check.matrix(_weight, "_weight")
        weight = new_weight(num_embeddings, embedding_dim, device, dtype) if _weight is None else _weight
        options = (max_norm, norm_type, scale_grad_by_freq, mode, True, weight, include_last_offset, padding_idx)
        super().__init__(num_embeddings, embedding_dim, *options)
        self._make_table(optimizer, fused, _weight is None)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Any,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        optimizer: Rule | None = None,
        fused: bool = False,
    ) -> "EmbeddingBag":
        """Make a module of a tensor, whose memory it shares.

        Parameters
        ----------
        embeddings : tensor of shape (num_embeddings, embedding_dim)
        freeze : bool
            Make a module that is not trained; must be False for `fused`.
        max_norm, norm_type, scale_grad_by_freq, mode, sparse, include_last_offset, padding_idx, optimizer, fused
            As for the class; the row of `padding_idx` is left as it is.

        Returns
        -------
        EmbeddingBag

        Raises
        ------
        TypeError, ValueError
            If `embeddings` is no matrix of floats in host memory, `freeze` goes with `fused`, or as for the class.

        Examples
        --------
        >>> import torch, sparsembed.torch
        >>> bag = sparsembed.torch.EmbeddingBag.from_pretrained(torch.eye(3))
        >>> bag(torch.tensor([[1, 2]]))
        tensor([[0.0000, 0.5000, 0.5000]])
        """
        _check.matrix(embeddings, "embeddings")
        _check.mode_of_training(optimizer, fused, freeze)
        num_embeddings, dim = embeddings.shape
        options = (max_norm, norm_type, scale_grad_by_freq, mode, sparse, embeddings, include_last_offset, padding_idx)
        module = cls(num_embeddings, dim, *options, optimizer=optimizer, fused=fused)
        if freeze:
            module._parameters["weight"].requires_grad_(False)
        return module

    def forward(self, input: Any, offsets: Any = None, per_sample_weights: Any = None) -> Any:  # noqa: A002
        """Pool the rows of each bag.

        Parameters
        ----------
        input : int32 or int64 tensor of shape (num_bags, n), or (n,) with `offsets`
        offsets : int32 or int64 tensor of shape (num_bags,), or (num_bags + 1,) with `include_last_offset`
            Where each bag starts, from 0.
        per_sample_weights : float tensor of the shape of `input`, optional
            For mode "sum"; differentiable.

        Returns
        -------
        tensor of shape (num_bags, embedding_dim)
            In the dtype of `weight`; zeros for bags without ids.

        Raises
        ------
        TypeError
            If ids or offsets are no integers, or weights no floats.
        ValueError
            If offsets do not start at 0, decrease or do not fit the ids, or weights come with another mode than "sum".
        IndexError
            If an id is out of range.
        NotImplementedError
            For transforms of `torch.func` and forward-mode derivatives that would have to pass through the table.

        Examples
        --------
        >>> import torch, sparsembed.torch
        >>> bag = sparsembed.torch.EmbeddingBag(10, 4, mode="sum")
        >>> bag(torch.tensor([3, 5, 7]), offsets=torch.tensor([0, 2])).shape
        torch.Size([2, 4])
        """
        run = self._recorded if recording(input) else self._forward
        return run(input, offsets, per_sample_weights)

    def _recorded(self, ids: Any, offsets: Any, factors: Any) -> Any:
        """Return torch's own bags, for a program that torch records."""
        weight = self._settled()
        factors = None if factors is None else factors.to(weight.dtype)
        options = {"include_last_offset": self.include_last_offset, "padding_idx": self.padding_idx}
        pool = torch.nn.functional.embedding_bag
        with unwatched(weight):
            return pool(ids, weight, offsets, mode=self.mode, per_sample_weights=factors, **options)

    @untraced
    def _forward(self, ids: Any, offsets: Any, factors: Any) -> Any:
        if faking():
            return self._recorded(ids, offsets, factors)
        _check.ids(ids)
        if torch._C._are_functorch_transforms_active():
            weight = self._parameters["weight"]
            refuse_transform(self._leaf(weight), weight, offsets, factors)
            return Frozen.apply(lambda rows: self._forward(rows, offsets, factors), ids)
        weight, table = self._current()
        refuse_tangents(weight, factors)
        if factors is not None:
            factors = self._checked(ids, factors, weight.dtype)
        flat, ends = ends_of(ids, offsets, self.include_last_offset)
        bags = Bags(flat, ends, factors)
        leaf = self._leaf(weight)
        try:
            if leaf is None and not (factors is not None and factors.requires_grad and torch.is_grad_enabled()):
                return table.read_pooled(bags, self.mode)
            return Pool.apply(leaf, factors, flat, bags, self.mode, (weight, table, self.training))
        except IndexError:
            _check.outside(ids, table.num_rows)
            raise

    def _checked(self, ids: Any, factors: Any, dtype: Any) -> Any:
        """Check per-sample weights; returns them flat and in the dtype of the table, differentiably."""
        if not isinstance(factors, torch.Tensor) or not factors.is_floating_point():
            raise TypeError(
                f"per_sample_weights must be a tensor of floats, got {getattr(factors, 'dtype', factors)!r}"
            )
        _check.place(factors.device, "per_sample_weights")
        if factors.shape != ids.shape:
            raise ValueError(
                f"per_sample_weights must have the shape of input, {tuple(ids.shape)}, got {tuple(factors.shape)}"
            )
        if self.mode != "sum":
            raise NotImplementedError(f"per_sample_weights are for mode='sum' only, got mode={self.mode!r}")
        return factors.to(dtype).reshape(-1)

    def extra_repr(self) -> str:
        """Describe the module in `repr`."""
        return str(super().extra_repr()) + (f", fused=True, optimizer={self.optimizer}" if self.fused else "")


def ends_of(ids: Any, offsets: Any, include_last_offset: bool) -> tuple[Any, Any]:
    """Return flat ids, and offsets with the end of the last bag."""
    if ids.dim() == 2:
        if offsets is not None:
            raise ValueError("offsets must be None for an input of shape (num_bags, ids in each)")
        return ids.reshape(-1), np.arange(ids.shape[0] + 1) * ids.shape[1]
    if ids.dim() != 1:
        raise ValueError(f"input must have one or two dimensions, got {ids.dim()}")
    if offsets is None:
        raise ValueError("offsets must be given for an input of one dimension")
    _check.ids(offsets, "offsets")
    if offsets.dim() != 1:
        raise ValueError(f"offsets must have one dimension, got {offsets.dim()}")
    starts = as_array(offsets, "offsets")
    if include_last_offset:
        return ids, starts
    if len(starts) == 0 and len(ids):
        raise ValueError(f"offsets is empty, but input has {len(ids)} ids; the first bag starts at 0")
    if len(starts) and starts[-1] > len(ids):
        at = len(starts) - 1
        raise ValueError(f"offsets[{at}] is {starts[at]}, expected at most {len(ids)}, the ids in input")
    return ids, np.append(starts, starts.dtype.type(len(ids)))
