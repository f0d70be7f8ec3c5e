"""LimitedTable: rows that were written from outside are read no longer than `max_norm` allows."""

from typing import Any

import numpy as np
import torch

from .. import _norms
from .. import _validate as check
from .._arrays import Array
from .._backward import max_gradient
from ..bags import Bags
from ..gradient import RowGradient
from ..pooling import per_sample_weights_gradient, pool_bags
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

    Whoever looks up gets shortened copies of long rows, and the next step shortens the rows themselves.  A forward
    pass that wrote to them would break graphs that have used the weight (pytorch#26596).  Rules with a largest norm
    never catch up, so that no row is read with a lag here.
    """

    _limit: Any = None
    written = False  # whether rows may be longer than the largest norm
    _seen = 0  # version of the parameter when they were not

    def notice(self, parameter: Any) -> None:
        """Note whether anybody else wrote to the parameter."""
        if self._limit is not None and version(parameter) != self._seen:
            self.written = True

    def suspect(self, limit: Any = None) -> None:
        """Note that somebody may write to rows without telling torch, as through ``weight.data``."""
        self.written = (limit or self._limit) is not None

    def settle(self, parameter: Any) -> None:
        """Shorten rows in place, all of them, if any may be too long."""
        self.notice(parameter)
        if self.written and self._limit is not None:
            _norms.clip_rows(self._weight, self._limit)
            self.wrote(parameter)

    def wrote(self, parameter: Any) -> None:
        """Note that the engine has written to the parameter, and that no row is too long."""
        stepped(parameter)
        self._seen, self.written = version(parameter), False

    def read(self, ids: Any) -> Any:
        """Return copies of rows for a tensor of ids."""
        rows = self.lookup(ids)
        if self.written and self._limit is not None and rows.numel():
            _norms.clip_rows(rows.numpy().reshape(-1, self.dim), self._limit)
        return rows

    def read_pooled(self, bags: Bags, mode: str) -> Any:
        """Pool rows of bags."""
        if not (self.written and len(bags.ids)):
            return self.pool(bags, mode)
        _, rows, own, padding = self._shortened(bags)
        return pool_bags(rows, own, mode, None, padding, None)

    def _shortened(self, bags: Bags) -> tuple[Array, Array, Bags, int | None]:
        """Return which rows bags hold, shortened copies of them, and bags and padding in terms of those."""
        check.in_range(bags.ids, self.num_rows, "bags.ids", bags.ids.shape)
        found, places = np.unique(bags.ids, return_inverse=True)
        rows = self._weight[found]
        if self._limit is not None:
            _norms.clip_rows(rows, self._limit)
        own = Bags(places.astype(np.int64, copy=False), bags.offsets, bags.per_sample_weights)
        own._kind = bags._kind
        at = np.flatnonzero(found == self.padding_idx)
        return found, rows, own, int(at[0]) if len(at) else None

    def _winners_gradient(self, bags: Bags, grad_out: Any) -> RowGradient:
        """Return the gradient of `read_pooled` in mode "max" where rows may be too long."""
        found, rows, own, padding = self._shortened(bags)
        part = max_gradient([own], [grad_out], rows, -1 if padding is None else padding, None, self.scale_grad_by_freq)
        return RowGradient._make(found[part._rows], part._values, self.num_rows, "numpy")

    def _weights_gradient(self, bags: Bags, grad_out: Any) -> Any:
        """Return the gradient of `read_pooled` with respect to per-sample weights where rows may be too long."""
        _, rows, own, padding = self._shortened(bags)
        return per_sample_weights_gradient(rows, own, grad_out, padding_idx=padding)
