"""What a call costs besides its kernel: how many functions Python calls for 32 ids."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import sparsembed as se

from . import cases

CALLS = ("lookup", "update", "gather", "pool", "plan", "scatter_add")


def count(call: Callable[[], Any]) -> tuple[int, int]:
    """Return how many Python functions and how many C functions a call runs, as `sys.setprofile` reports them."""
    found = {"call": 0, "c_call": 0}

    def note(frame: Any, event: str, argument: Any) -> None:
        if event in found:
            found[event] += 1

    call()  # may compile, which takes four times as long with a profile
    counts = []
    for _ in range(5):  # a collection of garbage may call somebody's function
        found.update(call=0, c_call=0)
        sys.setprofile(note)
        try:
            call()
        finally:
            sys.setprofile(None)
        counts.append((found["call"] - 1, found["c_call"] - 1))  # without `call` itself, and `setprofile`
    return min(counts)


def calls(rule: str) -> dict[str, Callable[[], Any]]:
    """Calls with 32 ids of a table of a rule."""
    table = se.EmbeddingTable(1000, 64, cases.rule(rule), rng=0)
    ids, grad = np.arange(32) * 3, np.ones((32, 64), np.float32)
    bags, weight = se.Bags(ids, np.arange(0, 33, 4)), np.ones((1000, 64), np.float32)
    return {
        "lookup": lambda: table.lookup(ids),
        "update": lambda: table.update(ids, grad),
        "gather": lambda: se.gather(weight, ids),
        "pool": lambda: table.pool(bags),
        "plan": lambda: se.plan(ids, 1000),
        "scatter_add": lambda: se.scatter_add(weight, ids, grad),
    }


class Calls:
    """Function calls for 32 ids; any other number of ids takes as many."""

    params = [CALLS, ["SGD", "SparseAdam", "Adam"]]
    param_names = ["call", "rule"]

    def setup(self, call: str, rule: str) -> None:
        self.call = calls(rule)[call]

    def track_python_calls(self, call: str, rule: str) -> int:
        return count(self.call)[0]

    track_python_calls.unit = "calls"

    def track_all_calls(self, call: str, rule: str) -> int:
        return sum(count(self.call))

    track_all_calls.unit = "calls"
