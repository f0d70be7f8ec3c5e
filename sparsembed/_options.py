"""Options of a table: what holds for every step, checked and saved together."""

from typing import Any, NamedTuple

import numpy as np

from . import _validate as check
from .rules import Rule


class Options(NamedTuple):
    """What a table is made with besides its optimizer."""

    padding_idx: int | None = None
    max_norm: float | None = None
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False

    def checked(self, num_rows: int, optimizer: Rule | None, dtype: np.dtype[Any]) -> "Options":
        """Refuse what does not fit a table and its optimizer; returns plain numbers."""
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

    @property
    def shown(self) -> str:
        """The options that are not the default, for `repr`."""
        changed = ((k, v) for k, v in self._asdict().items() if v != self._field_defaults[k])
        return "".join(f", {name}={value}" for name, value in changed)
