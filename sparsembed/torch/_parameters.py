"""The tables and the dense parameters of a model, and the norm of all gradients."""

from collections.abc import Iterable
from typing import Any

import torch

from ..gradient import RowGradient
from ._module import TableModule
from ._table import table_of


def table_parameters(model: Any) -> list[Any]:
    """Return the weights of tables that an `Optimizer` trains: those that are not fused.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    list of parameters
        In the order of ``model.parameters()``, each once.

    Raises
    ------
    AttributeError
        If `model` is no module.

    Examples
    --------
    >>> import torch, sparsembed as se, sparsembed.torch
    >>> model = torch.nn.Sequential(sparsembed.torch.Embedding(10, 4), torch.nn.Linear(4, 1))
    >>> [tuple(each.shape) for each in sparsembed.torch.table_parameters(model)]
    [(10, 4)]
    >>> [tuple(each.shape) for each in sparsembed.torch.dense_parameters(model)]
    [(1, 4), (1,)]
    """
    fused = {id(module._current()[0]) for module in _modules(model) if module.fused}
    tables = {id(module._current()[0]) for module in _modules(model)}
    return [each for each in model.parameters() if id(each) in tables - fused]


def dense_parameters(model: Any) -> list[Any]:
    """Return the parameters that are no tables, for a torch optimizer.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    list of parameters
        In the order of ``model.parameters()``, each once.

    Raises
    ------
    AttributeError
        If `model` is no module.

    Examples
    --------
    >>> import torch, sparsembed.torch
    >>> sparsembed.torch.dense_parameters(sparsembed.torch.Embedding(10, 4))
    []
    """
    tables = {id(module._current()[0]) for module in _modules(model)}
    return [each for each in model.parameters() if id(each) not in tables]


def _modules(model: Any) -> list[TableModule]:
    return [module for module in model.modules() if isinstance(module, TableModule)]


@torch.no_grad()
def clip_grad_norm_(
    parameters: Any,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """Scale dense and sparse gradients in place so that their norm, taken together, is at most `max_norm`.

    Parameters
    ----------
    parameters : parameter or iterable of parameters
        Those without a gradient count nothing.
    max_norm, norm_type, error_if_nonfinite
        As those of ``torch.nn.utils.clip_grad_norm_``, whose numbers these are for dense gradients, except where the
        sum of powers overflows: torch then makes all gradients zero.
    foreach : bool, optional
        Accepted as by torch, where it picks one of two ways to the same numbers; here there is one.

    Returns
    -------
    tensor
        The norm before clipping.

    Raises
    ------
    ValueError
        For weights of fused tables, whose gradients have been applied already.
    RuntimeError
        If the norm is not finite and `error_if_nonfinite`; nothing is scaled then.

    Examples
    --------
    >>> import torch, sparsembed.torch
    >>> embedding = sparsembed.torch.Embedding(3, 1)
    >>> (3 * embedding(torch.tensor([1])) + 4 * embedding(torch.tensor([2]))).backward()
    >>> sparsembed.torch.clip_grad_norm_(embedding.parameters(), max_norm=1.0)
    tensor(5.)
    >>> embedding.weight.grad.values().ravel()
    tensor([0.6000, 0.8000])
    """
    max_norm, norm_type = float(max_norm), float(norm_type)
    if foreach is not None and not isinstance(foreach, bool):
        raise TypeError(f"foreach must be True, False or None, got {foreach!r}")
    if not max_norm >= 0:
        raise ValueError(f"max_norm must be a number that is not negative, got {max_norm}")
    found = [parameters] if isinstance(parameters, torch.Tensor) else _listed(parameters)
    for i, parameter in enumerate(found):
        table = table_of(parameter)
        if table is not None and table.fused:
            raise ValueError(
                f"parameters[{i}] is the weight of a fused table, which has stepped in backward with the gradient as "
                "it was; to clip, make the module without fused=True and use sparsembed.torch.Optimizer"
            )
    arrays = []
    for parameter in {id(each): each for each in found}.values():  # one listed twice is scaled once
        grad = parameter.grad
        if grad is not None and grad.is_sparse:
            if not grad.is_coalesced():
                grad.data = RowGradient.from_torch(grad).to_torch()  # in the tensor that others may hold
            arrays.append(grad._values())
        elif grad is not None:
            arrays.append(grad)
    if not arrays:
        return torch.tensor(0.0)
    total = _norm(arrays, norm_type)
    if error_if_nonfinite and not torch.isfinite(total):
        raise RuntimeError(f"the norm of the gradients is {total}, expected a finite number")
    factor = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    for each in arrays:
        each.mul_(factor.to(each.device))
    return total


def _norm(arrays: list[Any], norm_type: float) -> torch.Tensor:
    """Return the norm of all numbers in arrays, infinite only if they or the norm itself are."""
    device = arrays[0].device
    norms = [torch.linalg.vector_norm(each, norm_type).to(device) for each in arrays]
    total = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    if torch.isfinite(total):
        return total
    # Squares overflow where their root does not: an infinite norm would make zeros of all gradients.
    largest = torch.stack([each.abs().max().to(device).double() for each in arrays if each.numel()]).max()
    if not torch.isfinite(largest):
        return total
    norms = [torch.linalg.vector_norm(each.double() / largest.to(each.device), norm_type).to(device) for each in arrays]
    exact = largest * torch.linalg.vector_norm(torch.stack(norms), norm_type)
    rounded = exact.to(total.dtype)
    return rounded if torch.isfinite(rounded) else exact


def _listed(parameters: Any) -> list[Any]:
    if not isinstance(parameters, Iterable):
        raise TypeError(f"parameters must be tensors, got {type(parameters).__name__}")
    found = list(parameters)
    for i, each in enumerate(found):
        if not isinstance(each, torch.Tensor):
            raise TypeError(f"parameters[{i}] must be a tensor, got {type(each).__name__}")
    return found
