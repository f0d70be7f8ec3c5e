"""Operations whose results follow from one batch: gather, pool, scatter_add, coalesce."""

from collections.abc import Iterator
from typing import Any

import numpy as np

import sparsembed as se

from .. import timing
from . import fbgemm
from .data import BAG, Array, Data
from .way import SORTING, Seen, Way, Work

_BAGS = 1_000  # that are compared


def numpy_sums(ids: Array, grads: Array) -> tuple[Array, Array]:
    """Return rows and summed gradients as a user of NumPy writes it: sort, then add what is equal."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return ordered[first], np.add.reduceat(grads[order], first, axis=0)


def gather(data: Data) -> Work:
    weight = data.weight
    ways = [
        Way("sparsembed", lambda b: se.gather(weight, b.ids, out=b.out)),
        Way("numpy.take", lambda b: weight.take(b.ids, axis=0)),
        Way("numpy.take, out, clip", lambda b: weight.take(b.ids, axis=0, out=b.out, mode="clip")),
    ]
    if timing.installed("torch"):
        import torch

        tensor = torch.from_numpy(weight)
        ways.append(
            Way("torch index_select, out", lambda b: torch.index_select(tensor, 0, b.torch.ids, out=b.torch.out))
        )
        ways.append(Way("torch embedding", lambda b: torch.nn.functional.embedding(b.torch.ids, tensor)))

    def compare(seen: Seen) -> Iterator[tuple[Any, Any]]:
        assert seen.result.shape == (len(seen.batch.ids), data.dim)
        yield seen.result[seen.sample.positions], weight[seen.batch.ids[seen.sample.positions]]

    return Work(ways, compare)


def pool(data: Data) -> Work:
    weight = data.weight
    ways = [
        Way("sparsembed", lambda b: se.pool(weight, se.Bags(b.ids, b.offsets))),
        Way(
            "numpy.add.reduceat",
            lambda b: np.add.reduceat(weight.take(b.ids, axis=0), b.offsets[:-1], axis=0),
            most=SORTING,
        ),
    ]
    if timing.installed("torch"):
        import torch
        from torch.nn.functional import embedding_bag

        tensor = torch.from_numpy(weight)

        def bags(b: Any) -> Any:
            return embedding_bag(b.torch.ids, tensor, b.torch.offsets, mode="sum", include_last_offset=True)

        ways.append(Way("torch embedding_bag", bags))
        if forward := fbgemm.pool(data):
            ways.append(Way("FBGEMM", forward))

    def compare(seen: Seen) -> Iterator[tuple[Any, Any]]:
        ids, number = seen.batch.ids, len(seen.batch.offsets) - 1
        assert seen.result.shape == (number, data.dim)
        some = np.unique(np.random.default_rng(0).integers(0, number, min(_BAGS, number)))
        sums = [weight[ids[BAG * bag : BAG * bag + BAG]].sum(axis=0, dtype=np.float64) for bag in some]
        yield seen.result[some], np.array(sums)

    return Work(ways, compare)


def scatter_add(data: Data) -> Work:
    weight = data.weight

    def by_sorting(b: Any) -> None:
        rows, sums = numpy_sums(b.ids, b.grads)
        weight[rows] += sums

    def state() -> tuple[dict[str, Array], int]:
        return {"weight": weight}, 0

    ways = [
        Way("sparsembed", lambda b: se.scatter_add(weight, b.ids, b.grads), state),
        Way("numpy.add.at", lambda b: np.add.at(weight, b.ids, b.grads), state, SORTING),
        Way("numpy, sorted", by_sorting, state, SORTING),
    ]
    if timing.installed("torch"):
        import torch

        tensor = torch.from_numpy(weight)
        ways.append(Way("torch index_add_", lambda b: tensor.index_add_(0, b.torch.ids, b.torch.grads), state))

    def compare(seen: Seen) -> Iterator[tuple[Any, Any]]:
        yield seen.after["weight"], seen.before["weight"] + seen.sample.sums()

    return Work(ways, compare)


def coalesce(data: Data) -> Work:
    def ours(b: Any) -> tuple[Any, Any]:
        gradient = se.coalesce(b.ids, b.grads, data.rows)
        return gradient.rows, gradient.values

    ways = [Way("sparsembed", ours), Way("numpy, sorted", lambda b: numpy_sums(b.ids, b.grads), most=SORTING)]
    if timing.installed("torch"):
        import torch

        def sparse(b: Any) -> tuple[Any, Any]:
            ids, shape = b.torch.ids[None], (data.rows, data.dim)
            found = torch.sparse_coo_tensor(ids, b.torch.grads, shape, check_invariants=False).coalesce()
            return found.indices()[0], found.values()

        ways.append(Way("torch coalesce", sparse))

    def compare(seen: Seen) -> Iterator[tuple[Any, Any]]:
        rows, values = map(np.asarray, seen.result)
        yield rows, seen.sample.every
        yield values[np.searchsorted(rows, seen.sample.rows)], seen.sample.sums()

    return Work(ways, compare)
