"""The records that works are made of, and how their results are compared."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .data import Array, Batch, Sample

State = dict[str, Array]
# Numbers in a batch: with 1,000,000 ids x 300, NumPy's ways that sort take 10 to 20 s, ten times the fastest peer.
SORTING = 1 << 25


class Way(NamedTuple):
    """One way to do the work; `state` returns the arrays that it changes, and the number of steps so far."""

    name: str  # begins with "sparsembed" or with the peer's: numpy, torch, FBGEMM
    step: Callable[[Batch], Any]
    state: Callable[[], tuple[State, int]] = lambda: ({}, 0)
    most: float = float("inf")  # numbers in a batch: more would take minutes

    @property
    def family(self) -> str:
        return self.name.split()[0].split(".")[0].rstrip(",")

    @property
    def spins(self) -> bool:
        """Whether threads may run on for a while after a call, as OpenMP's do."""
        return self.family in ("torch", "FBGEMM")


class Seen(NamedTuple):
    """What there was before a call and what there is after it, on the rows of a sample."""

    batch: Batch
    sample: Sample
    before: State
    steps: int
    result: Any
    after: State


class Work(NamedTuple):
    """The ways, ours first; `compare` yields pairs (is, should be) of arrays, in float64."""

    ways: list[Way]
    compare: Callable[[Seen], Any]
    fresh: bool = False  # is made again for each cell


def check(work: Work, way: Way, batch: Batch, sample: Sample, label: str) -> float:
    """Run a way once and compare what it did with float64; AssertionError names the cell and the way.

    Returns the seconds of the call.
    """
    arrays, steps = way.state()
    before = {name: array[sample.rows].astype(np.float64) for name, array in arrays.items()}
    others = {name: array[sample.others] for name, array in arrays.items()}
    start = time.perf_counter()
    result = way.step(batch)
    took = time.perf_counter() - start
    arrays, _ = way.state()
    after = {name: array[sample.rows].astype(np.float64) for name, array in arrays.items()}
    message = f"{label}: {way.name} is wrong"
    for found, expected in work.compare(Seen(batch, sample, before, steps, result, after)):
        # Sums are exact, but steps are not: they may be added to a weight one by one, and each rounds a bit up or down.
        large = max(1.0, float(np.abs(expected).max(initial=0.0)))
        terms = np.bincount(sample.local).max(initial=1)
        atol = 2.0**-24 * large * (8 + 4 * terms**0.5)
        np.testing.assert_allclose(np.asarray(found), expected, rtol=2e-6, atol=atol, err_msg=message)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array[sample.others], others[name], err_msg=f"{message}: rows of no id, {name}")
    return took
