"""How much is measured, and the weights, ids and gradients that everybody gets."""

from typing import Any, NamedTuple

import numpy as np

import sparsembed as se

from . import ids as streams
from .timing import Effort


class Size(NamedTuple):
    """How much is measured."""

    num_rows: int = 1_000_000
    dim: int = 64
    lookups: int = 100_000
    bag: int = 20  # ids in a bag
    batches: int = 8  # different batches, in turn, so that one batch does not stay in cache
    flat: tuple[int, int, int] = (10_000_000, 10_000, 8_192)  # rows, rows, ids
    copy_bytes: int = 1 << 29
    effort: Effort = Effort()


FULL = Size()
QUICK = Size(200_000, 64, 20_000, 20, 8, (1_000_000, 10_000, 8_192), 1 << 27, Effort(7, 0.5, 2.0))
TINY = Size(3_000, 8, 600, 20, 2, (4_000, 500, 256), 1 << 16, Effort(1, 0.0, 0.0))


class Batches:
    """The same weights, ids and gradients for everybody."""

    def __init__(
        self, size: Size, stream: str, *, lookups: int = 0, batches: int = 0, grads: int | None = None
    ) -> None:
        rng = np.random.default_rng(2021)
        self.size, self.lookups, self.number = size, lookups or size.lookups, batches or size.batches
        self.weight = se.initializers.uniform((size.num_rows, size.dim), rng=rng)
        self.ids = [streams.make(stream, size.num_rows, self.lookups, rng) for _ in range(self.number)]
        shape = (self.lookups if grads is None else grads, size.dim)
        self.grads = [rng.standard_normal(shape, np.float32) for _ in range(self.number)] if grads != 0 else []
        self.offsets = np.arange(0, self.lookups + 1, size.bag)
        self.unique = float(np.mean([len(np.unique(ids)) for ids in self.ids]))
        self.row_bytes = 4 * size.dim

    def table(self, rule: se.rules.Rule) -> se.EmbeddingTable:
        return se.EmbeddingTable.from_array(self.weight, optimizer=rule, copy=True)

    def torch(self) -> tuple[Any, list[Any], list[Any], Any]:
        """Return weight, ids, gradients and offsets as tensors of the same memory."""
        import torch

        ids, grads = [*map(torch.from_numpy, self.ids)], [*map(torch.from_numpy, self.grads)]
        return torch.from_numpy(self.weight), ids, grads, torch.from_numpy(self.offsets)

    def read(self, outputs: int) -> float:
        """Bytes of reading the rows of a batch, each once, and writing `outputs` rows."""
        return 8 * self.lookups + (self.unique + outputs) * self.row_bytes

    def updated(self, grads: int, rule: se.rules.Rule) -> float:
        """Bytes of an update: gradients are read, weights and state are read and written."""
        state = (1 + len(rule.slots)) * self.row_bytes + 4 * len(rule.row_slots)
        return 8 * self.lookups + grads * self.row_bytes + 2 * self.unique * state
