"""Steps of tables on fresh random inputs, against the float64 reference."""

from collections.abc import Callable
from typing import Any

import numpy as np

import sparsembed as se

from .inputs import EPS, MODES, Inputs, Size, inputs

TOLERANCES = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-11}  # of how far a row has moved


class Trained:
    """A table on the device, and what the reference makes of the same steps."""

    def __init__(self, device: Any, each: Inputs, rule: Any, **options: Any) -> None:
        self.device, self.each, self.rule, self.options = device, each, rule, options
        self.table = se.EmbeddingTable.from_array(device.up(each.weight), rule, **options)
        self.weight = each.weight.astype(np.float64)
        if "padding_idx" in options:
            self.weight[options["padding_idx"]] = 0
        if "max_norm" in options:
            self.weight = se.reference.clip_rows(self.weight, options["max_norm"])
        shapes = dict.fromkeys(rule.slots, (each.num_rows, each.dim)) | dict.fromkeys(rule.row_slots, (each.num_rows,))
        self.state = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.start = each.weight.astype(np.float64)

    def follow(self, ids: Any, grad: Any) -> None:
        """Take the reference's step, and compare what is looked up; rows that missed steps are read as they are now."""
        step, options = self.table.step, self.options
        self.weight, self.state = se.reference.update(self.rule, self.weight, self.state, ids, grad, step, **options)
        every = self.device.up(np.arange(self.each.num_rows, dtype=self.each.id_dtype))
        self.near(self.device.down(self.table.lookup(every)), "lookup")

    def near(self, got: Any, what: str) -> None:
        got = np.asarray(got)
        moved = np.abs(self.weight - self.start).max(axis=1, keepdims=True)
        largest = np.maximum(np.abs(self.weight), np.abs(self.start)).max(axis=1, keepdims=True)
        bound = TOLERANCES[got.dtype] * moved + (4 * self.table.step + 4) * EPS[got.dtype] * largest
        excess = (np.abs(got - self.weight) - bound).max()
        assert excess <= 0, f"{self.rule}, step {self.table.step}: {what} off by {excess:.3g} more than rounding"

    def finish(self) -> None:
        """Compare the table and its state, all rows up to date."""
        saved = self.table.state_dict()
        self.near(saved["weight"], "weight")
        for name, want in self.state.items():
            largest = np.abs(want).max()
            error = np.abs(saved[name] - want).max()
            assert error <= 10 * TOLERANCES[saved[name].dtype] * largest, (
                f"{self.rule}: state {name!r} off by {error:.3g}"
            )


def update(rule: Any) -> Callable[[Any, Any, Size], None]:
    """The check of a rule: steps of hot ids, of few ids and of none."""

    def check(device: Any, rng: Any, size: Size) -> None:
        for each in inputs(rng, size):
            trained = Trained(device, each, rule, padding_idx=each.padding)
            for turn in range(size.steps):
                ids = each.hot_ids()[: (each.n, each.n // 7, 0)[turn % 3]]
                grad = each.eighths((len(ids), each.dim))
                trained.table.update(device.up(ids), device.up(grad))
                trained.follow(ids, grad)
            trained.finish()

    return check


def update_pooled(device: Any, rng: Any, size: Size) -> None:
    for each in inputs(rng, size):
        for number, mode in enumerate(MODES):
            rule = (se.SGD(0.1), se.RowwiseAdagrad(0.1), se.SparseAdam(0.1), se.Adam(0.1))[number]
            trained = Trained(device, each, rule, padding_idx=each.padding, scale_grad_by_freq=bool(number % 2))
            there, here = each.bags(device, mode != "max")
            for _ in range(2):
                grad = np.abs(each.eighths(each.pooled.shape)) + each.dtype.type(0.125)  # nothing cancels
                seen = np.asarray(device.down(trained.table.lookup(device.up(np.arange(each.num_rows)))))
                trained.table.update_pooled(there, device.up(grad), mode)
                dense = se.reference.pool_gradient(
                    here, grad, each.num_rows, mode, each.padding, seen if mode == "max" else None,
                    scale_grad_by_freq=bool(number % 2),
                )  # fmt: skip
                rows = np.unique(each.ids)
                trained.options = {"padding_idx": each.padding}  # the gradient is scaled already
                trained.follow(rows, dense[rows])
            trained.finish()


def max_norm(device: Any, rng: Any, size: Size) -> None:
    for each in inputs(rng, size):
        limit = float(np.sqrt(each.dim) / 2)  # rows are twice as long
        trained = Trained(device, each, se.SparseAdam(0.1), max_norm=limit)
        trained.near(trained.device.down(trained.table.weight), "weight")
        for _ in range(2):
            ids = each.hot_ids()
            grad = each.eighths((each.n, each.dim))
            trained.table.update(device.up(ids), device.up(grad))
            trained.follow(ids, grad)
        trained.finish()
        norms = np.linalg.norm(trained.table.state_dict()["weight"].astype(np.float64), axis=1)
        assert norms.max() <= limit * (1 + 1e-6), f"a row of norm {norms.max():.6g}, at most {limit:.6g} are allowed"


def of_rules(size: Size) -> dict[str, Callable[[Any, Any, Size], None]]:
    """The checks of rules, by name."""
    return {f"update, {rule}": update(rule) for rule in size.rules}


ALL = {"update_pooled": update_pooled, "max_norm": max_norm}
