"""Options of a table that hold for every step; they are checked and saved together."""

from typing import Any, NamedTuple

import numpy as np

from . import _check as check
from .rules import Rule

_SHARE = {"f": 1 - 2.0**-24, "d": 1 - 2.0**-48}  # scale to this share of max_norm, so that rounding does not exceed it


def limit(max_norm: float, norm_type: float, extra: float, dtype: np.dtype[Any]) -> tuple[float, float, float, float]:
    """Return the first fields of `kernels.cpu.norm.Limit`, to scale rows by ``max_norm / (norm + extra)``."""
    return max_norm, norm_type, extra, _SHARE[dtype.char]


class Options(NamedTuple):
    """The arguments of a table besides its optimizer."""

    padding_idx: int | None = None
    max_norm: float | None = None
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False

    def checked(self, num_rows: int, optimizer: Rule | None, dtype: np.dtype[Any]) -> "Options":
        """Return the options as plain numbers; refuse options that do not fit the table and its optimizer."""
        check.padding(self.padding_idx, num_rows)
        check.optimizer(optimizer, dtype)
        norm_type = check.norm_type(self.norm_type)
        by_freq = check.flag(self.scale_grad_by_freq, "scale_grad_by_freq")
        if self.max_norm is None:
            return self._replace(norm_type=norm_type, scale_grad_by_freq=by_freq)
        max_norm = check.positive(self.max_norm, "max_norm")
        if dtype not in check.FLOATS:
            raise TypeError(f"max_norm needs a float32 or float64 table, got {dtype}; scale the rows before converting")
        if optimizer is not None and optimizer.catch_up is not None:
            raise ValueError(
                f"max_norm does not go with {optimizer}, whose rows move between the updates that touch them, so that "
                "a lookup may find a row that has grown; use an optimizer that changes only the rows of a batch, such "
                "as SparseAdam, Adagrad, or SGD without momentum and weight decay"
            )
        return Options(self.padding_idx, max_norm, norm_type, by_freq)

    def limit(self, dtype: np.dtype[Any]) -> tuple[float, float, float, float] | None:
        """Return `limit` of `max_norm`, or None without `max_norm`."""
        return None if self.max_norm is None else limit(self.max_norm, self.norm_type, 1e-7, dtype)  # 1e-7: as torch

    @property
    def shown(self) -> str:
        """The options that differ from the default, for `repr`."""
        changed = ((k, v) for k, v in self._asdict().items() if v != self._field_defaults[k])
        return "".join(f", {name}={value}" for name, value in changed)
