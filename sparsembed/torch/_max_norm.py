"""LimitedTable: rows changed outside the engine are clipped to `max_norm` when they are read."""

from typing import Any

import numpy as np
import torch

from .._cpu import norms
from .._cpu.inputs import in_range, table_of
from .._engine import CPU
from .._typing import Array
from ..bags import Bags
from ..gradient import RowGradient
from ..pooling import per_sample_weights_gradient, pool_bags, pooled_gradient
from ..scores import scores_of
from ..table import EmbeddingTable


def version(parameter: Any) -> int:
    """Return how often autograd knows a parameter to have been written to."""
    return 0 if parameter.is_inference() else int(parameter._version)


def stepped(parameter: Any) -> None:
    """Tell autograd that the engine wrote to a parameter, so that stale graphs are refused."""
    if not parameter.is_inference():
        torch.autograd.graph.increment_version(parameter)


class LimitedTable(EmbeddingTable):
    """A table that others write to as well: torch's initializers, another optimizer.

    A lookup returns clipped copies of long rows, and the next step clips the rows themselves.  A forward pass that
    wrote to the weight would break graphs that have used the weight (pytorch#26596).  Rules whose rows catch up refuse
    `max_norm`, so no row has missed steps here.
    """

    _contents: Any
    _seen = 0  # version of the parameter when no row was too long

    @classmethod
    def _of(cls, contents: Any) -> EmbeddingTable:
        """Return a table that is no parameter's."""
        return EmbeddingTable._of(contents)

    @property
    def written(self) -> bool:
        """Whether rows may be longer than the largest norm."""
        return bool(self._contents.written)

    def notice(self, parameter: Any) -> None:
        """Note whether the parameter was written outside the engine."""
        if self._contents.limit is not None and version(parameter) != self._seen:
            self._contents.written = True

    def suspect(self) -> None:
        """Note that rows may be written without torch's version counter, as through ``weight.data``."""
        self._contents.written = self._contents.limit is not None

    def settle(self, parameter: Any) -> None:
        """Clip all rows in place if any row may be too long."""
        self.notice(parameter)
        if self.written and self._contents.limit is not None:
            norms.clip_rows(self._contents.table.array, self._contents.limit)
            self.wrote(parameter)

    def wrote(self, parameter: Any) -> None:
        """Note that the engine has written to the parameter, and that no row is too long."""
        stepped(parameter)
        self._seen, self._contents.written = version(parameter), False

    def read(self, ids: Any) -> Any:
        """Return copies of rows for a tensor of ids."""
        rows = self.lookup(ids)
        if self.written and self._contents.limit is not None and rows.numel():
            norms.clip_rows(rows.numpy().reshape(-1, self.dim), self._contents.limit)
        return rows

    def read_pooled(self, bags: Bags, mode: str) -> Any:
        """Pool rows of bags."""
        if not (self.written and len(bags.ids)):
            return self.pool(bags, mode)
        _, rows, own, padding = self._shortened(bags)
        return pool_bags(CPU, table_of(rows), None, own, mode, None, padding)

    def read_dot(self, bags: Bags, x: Any) -> Any:
        """Return the scores of rows of bags."""
        if not (self.written and len(bags.ids)):
            return self.dot(bags, x)
        _, rows, own, padding = self._shortened(bags)
        return scores_of(CPU, table_of(rows), None, own, x, None, padding)

    def _shortened(self, bags: Bags) -> tuple[Array, Array, Bags, int]:
        """Return the rows of bags, clipped copies of these rows, and bags and padding numbered by the copies."""
        in_range(bags.ids, self.num_rows, "bags.ids", bags.ids.shape)
        found, places = np.unique(bags.ids, return_inverse=True)
        rows = self._contents.table.array[found]
        if self._contents.limit is not None:
            norms.clip_rows(rows, self._contents.limit)
        own = Bags(places.astype(np.int64, copy=False), bags.offsets, bags.per_sample_weights)
        own._place = own._place._replace(caller=bags._place.caller)
        at = np.flatnonzero(found == self.padding_idx)
        return found, rows, own, int(at[0]) if len(at) else -1

    def _winners_gradient(self, bags: Bags, grad_out: Any) -> RowGradient:
        """Return the gradient of `read_pooled` in mode "max" where rows may be too long."""
        found, rows, own, padding = self._shortened(bags)
        where = (CPU, table_of(rows), len(rows), padding, self.scale_grad_by_freq)
        part = pooled_gradient(own, grad_out, "max", *where)
        return RowGradient._make(found[part._rows], part._values, self.num_rows, "numpy")

    def _weights_gradient(self, bags: Bags, grad_out: Any) -> Any:
        """Return the gradient of `read_pooled` with respect to per-sample weights where rows may be too long."""
        _, rows, own, padding = self._shortened(bags)
        return per_sample_weights_gradient(rows, own, grad_out, padding_idx=None if padding < 0 else padding)
