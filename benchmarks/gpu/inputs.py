"""Fresh random inputs for the checks, and how close is close.

Bounds are those of the tests: of a sum of products, (terms + 8) roundings of the sum of their sizes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import sparsembed as se

from ..rules import every

RULES = [*every(0.1).values()]
EPS = {np.dtype(np.float32): 2.0**-23, np.dtype(np.float64): 2.0**-52}
MODES = ("sum", "mean", "sqrtn", "max")


class Size(NamedTuple):
    """How large inputs are."""

    num_rows: int = 3_000
    n: int = 20_000
    kinds: tuple[tuple[Any, Any, int], ...] = (  # dtype, dtype of ids, dim: 16 bytes at a time, and not
        (np.float32, np.int64, 128),
        (np.float32, np.int32, 7),
        (np.float64, np.int64, 24),
    )
    steps: int = 4
    rules: tuple[Any, ...] = tuple(RULES)


class Inputs:
    """Random inputs: half of the ids are those of one row, the others spread; ragged bags, some of them empty."""

    def __init__(self, rng: Any, size: Size, dtype: Any, id_dtype: Any, dim: int) -> None:
        self.rng, self.dtype, self.dim, self.num_rows, self.n = rng, np.dtype(dtype), dim, size.num_rows, size.n
        self.id_dtype = id_dtype
        self.weight = rng.standard_normal((self.num_rows, dim)).astype(dtype)
        self.padding = int(rng.integers(self.num_rows))
        self.ids = self.hot_ids()
        self.grad = rng.standard_normal((self.n, dim)).astype(dtype)
        bags = max(self.n // 16, 2)
        ends = np.sort(rng.integers(0, self.n + 1, bags - 1))
        self.offsets = np.concatenate([[0], ends, [self.n]]).astype(id_dtype)
        self.shares = rng.uniform(0.5, 1.5, self.n).astype(dtype)
        self.pooled = rng.standard_normal((bags, dim)).astype(dtype)

    def hot_ids(self) -> Any:
        ids = np.minimum(self.rng.zipf(1.3, self.n) - 1, self.num_rows - 1)
        ids[self.rng.random(self.n) < 0.3] = self.rng.integers(self.num_rows)
        spread = self.rng.random(self.n) < 0.5
        ids[spread] = self.rng.integers(0, self.num_rows, spread.sum())
        ids[:3] = self.padding
        return ids.astype(self.id_dtype)

    def eighths(self, shape: tuple[int, ...]) -> Any:
        """Gradients whose sums are exact in any order."""
        return (self.rng.integers(-8, 9, shape) / 8).astype(self.dtype)

    def bags(self, device: Any, weighted: bool) -> tuple[se.Bags, se.Bags]:
        """The bags on the device, and in host memory."""
        shares = self.shares if weighted else None
        there = [None if each is None else device.up(each) for each in (self.ids, self.offsets, shares)]
        return se.Bags(*there), se.Bags(self.ids, self.offsets, shares)


def close(actual: Any, expected: Any, scale: Any, terms: int) -> None:
    actual = np.asarray(actual)
    assert actual.shape == np.shape(expected), f"shape {actual.shape} instead of {np.shape(expected)}"
    excess = np.abs(actual - expected) - (terms + 8) * EPS[actual.dtype] * np.asarray(scale)
    assert not actual.size or excess.max() <= 0, f"off by {excess.max():.3g} more than rounding explains"


def same(actual: Any, expected: Any, what: str = "") -> None:
    """Bit for bit."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} instead of {expected.dtype}"
    np.testing.assert_array_equal(actual, expected, err_msg=what)


def inputs(rng: Any, size: Size) -> Iterator[Inputs]:
    for kind in size.kinds:
        yield Inputs(rng, size, *kind)
