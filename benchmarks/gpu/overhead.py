"""What a small call costs, for `benchmarks.gpu`: microseconds of the host, without and with a CUDA graph."""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

import sparsembed as se
import sparsembed.cuda

from .device import BATCHES
from .frameworks import adopters
from .graph import Captured

IDS, ROWS, DIM = 1_000, 1_000_000, 128


def measure(device: Any, ids: int = IDS, rows: int = ROWS, dim: int = DIM, bursts: int = 15, calls: int = 30) -> Any:
    """Yield (name, microseconds a call); where something fails, (name, why) with a string."""
    rng = np.random.default_rng(0)
    batches = [(device.up(rng.integers(0, rows, ids)), device.noise((ids, dim))) for _ in range(BATCHES)]
    kinds: dict[str, Callable[[Any], Any]] = {"device arrays": lambda array: array}
    kinds |= {f"arrays of {name}": each.adopt for name, each in adopters().items()}
    for kind, adopt in kinds.items():
        given = [(adopt(a), adopt(b)) for a, b in batches]
        for rule in (se.SparseAdam(0.1), se.Adam(0.1)):
            table = se.EmbeddingTable.from_array(device.noise((rows, dim)), rule)
            for when in ("late", "now") if kind == "device arrays" else ("late",):
                name = f"{type(rule).__name__}, {kind}, checked {when}"
                yield from _calls(device, table, given, name, when, bursts, calls)
    for rule in (se.SparseAdam(0.1), se.SGD(0.1)):
        name = f"lookup and update in a graph, {type(rule).__name__}"
        try:
            table = se.EmbeddingTable.from_array(device.noise((rows, dim)), rule)
            yield name, _graph(device, table, batches, bursts, calls)
        except Exception as error:  # the other lines are worth having
            yield name, f"{type(error).__name__}: {error}"


def _calls(device: Any, table: Any, given: list[Any], name: str, when: str, bursts: int, calls: int) -> Any:
    works: dict[str, Callable[[int], Any]] = {
        "lookup": lambda i: table.lookup(given[i][0]),
        "update": lambda i: table.update(*given[i]),
        "lookup and update": lambda i: (table.lookup(given[i][0]), table.update(*given[i])),
    }
    before = sparsembed.cuda.checks(when)
    try:
        for work, step in works.items():
            yield f"{work}, {name}", _microseconds(device, step, bursts, calls, finish=work == "lookup and update")
    except Exception as error:  # as above
        yield name, f"{type(error).__name__}: {error}"
    finally:
        sparsembed.cuda.checks(before)


def _microseconds(device: Any, step: Callable[[int], Any], bursts: int, calls: int, finish: bool) -> float:
    """Median over bursts of calls, the device idle before each; with `finish`, until it is idle again."""
    for i in range(BATCHES):
        step(i)
    found = []
    for _ in range(bursts):
        device.wait()
        start = device.clock()
        for i in range(calls):
            step(i % BATCHES)
        if finish:
            device.wait()
        found.append((device.clock() - start) / calls)
    return 1e6 * statistics.median(found)


def _graph(device: Any, table: Any, batches: list[Any], bursts: int, calls: int) -> float:
    """A step as a user takes it: inputs copied to their place, scalars written, the graph launched."""
    captured = Captured(device, table, device.down(batches[0][0]), device.down(batches[0][1]))

    def step(i: int) -> None:
        captured.put(*batches[i])
        captured.step()

    try:
        return _microseconds(device, step, bursts, calls, finish=True)
    finally:
        captured.close()
