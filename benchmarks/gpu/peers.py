"""What torch and CuPy do of the same work, for `benchmarks.gpu`: each a function that makes a step.

A step takes the number of the batch.  Arrays are the ones that the engine works on, adopted without a copy; tables
that an optimizer of torch trains are its own.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from .device import Step

Maker = Callable[["Given"], Step]


class Given(NamedTuple):
    """What works and peers are given: arrays of the device."""

    rows: int
    dim: int
    ids: list[Any]
    grads: list[Any]
    weight: Any = None
    offsets: Any = None  # of bags of `hotness` ids each
    pooled: Any = None  # a gradient of pooled rows


def torch_module() -> Any:
    import torch

    if not torch.cuda.is_available():
        raise ImportError("torch finds no GPU")
    return torch


def adopted(torch: Any, array: Any) -> Any:
    """A device array as a tensor of the same memory."""
    return torch.as_tensor(array, device="cuda")


def installed() -> list[str]:
    """Import the peers that there are; returns their names."""
    found = []
    for name in ("torch", "cupy"):
        if importlib.util.find_spec(name):
            importlib.import_module(name)
            found.append(name)
    return found


def _all(torch: Any, arrays: list[Any]) -> list[Any]:
    return [adopted(torch, each) for each in arrays]


# ------------------------------------------------------------------------------------------ lookups


def embedding(given: Given) -> Step:
    torch = torch_module()
    table, ids = adopted(torch, given.weight), _all(torch, given.ids)
    return lambda i: torch.nn.functional.embedding(ids[i], table)


def embedding_bag(given: Given) -> Step:
    torch = torch_module()
    table, ids, offsets = adopted(torch, given.weight), _all(torch, given.ids), adopted(torch, given.offsets)
    bag = torch.nn.functional.embedding_bag
    return lambda i: bag(ids[i], table, offsets, mode="sum", include_last_offset=True)


def cupy_take(given: Given) -> Step:
    import cupy

    table, ids = cupy.asarray(given.weight), [cupy.asarray(each) for each in given.ids]
    out = cupy.empty((len(ids[0]), given.dim), table.dtype)
    return lambda i: cupy.take(table, ids[i], axis=0, out=out)


# ------------------------------------------------------------------------------------------ backward passes


def dense_backward(given: Given) -> Step:
    torch = torch_module()
    ids, grads = _all(torch, given.ids), _all(torch, given.grads)
    backward = torch.ops.aten.embedding_dense_backward
    return lambda i: backward(grads[i % len(grads)], ids[i], given.rows, -1, False)


def _sparse(torch: Any, given: Given) -> Callable[[int], Any]:
    """The gradient that ``Embedding(sparse=True)`` makes."""
    ids, grads = _all(torch, given.ids), _all(torch, given.grads)
    shape = (given.rows, given.dim)

    def gradient(i: int) -> Any:
        return torch.sparse_coo_tensor(ids[i][None], grads[i % len(grads)], shape, check_invariants=False)

    return gradient


def sparse_coalesce(given: Given) -> Step:
    torch = torch_module()
    gradient = _sparse(torch, given)
    return lambda i: gradient(i).coalesce()


def index_add(given: Given) -> Step:
    torch = torch_module()
    table, ids, grads = adopted(torch, given.weight), _all(torch, given.ids), _all(torch, given.grads)
    return lambda i: table.index_add_(0, ids[i], grads[i % len(grads)], alpha=-0.1)


def cupy_scatter_add(given: Given) -> Step:
    import cupy
    import cupyx

    table = cupy.asarray(given.weight)
    ids, grads = ([cupy.asarray(each) for each in arrays] for arrays in (given.ids, given.grads))
    return lambda i: cupyx.scatter_add(table, ids[i], grads[i % len(grads)])


# ------------------------------------------------------------------------------------------ optimizers


def sparse_step(name: str) -> Maker:
    """The gradient as a sparse tensor, and a step of one of torch's optimizers."""

    def make(given: Given) -> Step:
        torch = torch_module()
        weight = torch.nn.Parameter(torch.zeros(given.rows, given.dim, device="cuda"))
        optimizer, gradient = getattr(torch.optim, name)([weight], lr=0.1), _sparse(torch, given)

        def step(i: int) -> None:
            weight.grad = gradient(i)
            optimizer.step()

        return step

    return make


def dense_adam(given: Given) -> Step:
    """The dense backward pass, and a step of fused Adam on every row."""
    torch = torch_module()
    weight = torch.nn.Parameter(torch.zeros(given.rows, given.dim, device="cuda"))
    optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
    ids, grads = _all(torch, given.ids), _all(torch, given.grads)
    backward = torch.ops.aten.embedding_dense_backward

    def step(i: int) -> None:
        weight.grad = None  # its memory serves the next one
        weight.grad = backward(grads[i % len(grads)], ids[i], given.rows, -1, False)
        optimizer.step()

    return step


def bag_training(sparse: bool) -> Maker:
    """EmbeddingBag, its backward pass, and SparseAdam or, dense, fused Adam on every row."""

    def make(given: Given) -> Step:
        torch = torch_module()
        options = {"mode": "sum", "sparse": sparse, "include_last_offset": True, "device": "cuda"}
        layer = torch.nn.EmbeddingBag(given.rows, given.dim, **options)
        weights = list(layer.parameters())
        optimizer = torch.optim.SparseAdam(weights, lr=0.1) if sparse else torch.optim.Adam(weights, lr=0.1, fused=True)
        ids, offsets, pooled = _all(torch, given.ids), adopted(torch, given.offsets), adopted(torch, given.pooled)

        def step(i: int) -> None:
            optimizer.zero_grad()  # the memory of a dense gradient serves the next one
            layer(ids[i], offsets).backward(pooled)
            optimizer.step()

        return step

    return make
