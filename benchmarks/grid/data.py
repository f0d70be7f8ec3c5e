"""Weights, ids and gradients that everybody gets, and the sample of rows that results are compared on.

All numbers are multiples of 1/256: sums of them are exact in any order, so what differs from float64 is an error.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import sparsembed as se

from .. import ids as streams
from .. import timing

Array = npt.NDArray[Any]

BAG = 20  # ids in a bag
_BLOCK = 4_099  # rows that are drawn; they are repeated over the table and the gradients
_SEED = 2021
_CHECKED = 1 << 22  # numbers of a batch that are compared


class Batch(NamedTuple):
    """A batch as NumPy's arrays and as torch's, of the same memory."""

    ids: Array
    grads: Array
    offsets: Array  # of bags of 20
    ends: Array  # of bags of one
    out: Array
    torch: "Batch | None" = None


class Data:
    """One table, and gradients for batches of up to `most` ids."""

    def __init__(self, rows: int, dim: int, most: int) -> None:
        self.rows, self.dim = rows, dim
        rng = np.random.default_rng(_SEED)
        self.weight = _filled(rows, dim, rng)
        self._grads = _filled(most + most // 4, dim, rng)

    def batches(self, ids: int, kind: str) -> list[Batch]:
        """Return different batches to be worked on in turn: as many rows as do not fit into a cache."""
        offsets = np.append(np.arange(0, ids, BAG), ids)
        ends, out = np.arange(ids + 1), np.empty((ids, self.dim), np.float32)
        room = len(self._grads) - ids
        found = []
        for i, each in enumerate(stream(self.rows, ids, kind)):
            first = i * ids if i * ids <= room else i * 997 % (room + 1)
            first -= first % 16  # on a cache line, as arrays of their own would be
            batch = Batch(each, self._grads[first : first + ids], offsets, ends, out)
            found.append(batch._replace(torch=_tensors(batch)) if timing.installed("torch") else batch)
        return found


@functools.lru_cache(maxsize=40)
def stream(rows: int, ids: int, kind: str) -> list[Array]:
    """Return the ids of the batches, the same for every dim and operation."""
    rng = np.random.default_rng((_SEED, rows, ids))
    number = min(256, max(2, (1 << 18) // ids, 4 * (ids <= 100_000)))
    return [streams.make(kind, rows, ids, rng) for _ in range(number)]


def _filled(rows: int, dim: int, rng: np.random.Generator) -> Array:
    array = se.initializers.zeros((rows, dim))
    block = (rng.integers(-256, 257, (min(rows, _BLOCK), dim)) / 256).astype(np.float32)
    for first in range(0, rows, _BLOCK):
        array[first : first + _BLOCK] = block[: rows - first]
    return array


def _tensors(batch: Batch) -> Batch:
    import torch

    return Batch(*map(torch.from_numpy, batch[:5]))


class Sample:
    """Some rows of a batch, the one that is looked up most among them, and some that are not in the batch."""

    def __init__(self, batch: Batch, num_rows: int) -> None:
        rng = np.random.default_rng(_SEED)
        self.every, counts = np.unique(batch.ids, return_counts=True)
        order = np.concatenate([[counts.argmax()], rng.permutation(len(counts))[:512]])
        _, first = np.unique(order, return_index=True)
        order = order[np.sort(first)]
        fit = np.cumsum(counts[order]) * batch.grads.shape[1] <= _CHECKED
        fit[0] = True
        self.rows = self.every[np.sort(order[fit])]
        self.positions = np.flatnonzero(np.isin(batch.ids, self.rows))
        self.local = np.searchsorted(self.rows, batch.ids[self.positions])
        self.grads = batch.grads[self.positions]
        self.others = np.setdiff1d(rng.integers(0, num_rows, 64), self.every)

    def sums(self) -> Array:
        """Return the summed gradients of the rows, in float64."""
        total = np.zeros((len(self.rows), self.grads.shape[1]))
        np.add.at(total, self.local, self.grads.astype(np.float64))
        return total
