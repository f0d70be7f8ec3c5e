"""Bytes of a table, of its state, of an update's workspace, and at the peak of a process."""

import tracemalloc

import sparsembed as se

from . import cases
from .workload import Batches

SHAPE = next(iter(cases.SHAPES))


def table(rule: str) -> se.EmbeddingTable:
    size = cases.SHAPES[SHAPE]
    return se.EmbeddingTable(size.num_rows, size.dim, cases.rule(rule), initializer=se.initializers.zeros)


class Table:
    params = [cases.RULES]
    param_names = ["rule"]

    def setup(self, rule: str) -> None:
        self.table = table(rule)

    def track_state_bytes_per_row(self, rule: str) -> float:
        return sum(each.nbytes for each in self.table.state.values()) / self.table.num_rows

    track_state_bytes_per_row.unit = "bytes"

    def track_table_bytes(self, rule: str) -> int:
        return self.table.weight.nbytes + sum(each.nbytes for each in self.table.state.values())

    track_table_bytes.unit = "bytes"


class Workspace:
    params = [cases.RULES, ["uniform", "production"]]
    param_names = ["rule", "ids"]

    def setup(self, rule: str, ids: str) -> None:
        self.batches, self.table = Batches(cases.size(SHAPE, ids)._replace(batches=1), ids), table(rule)
        self.table.update(self.batches.ids[0], self.batches.grads[0])

    def track_update_workspace_bytes_per_id(self, rule: str, ids: str) -> float:
        held = [se.plan(self.batches.ids[0], self.table.num_rows) for _ in range(4)]  # uses up what is kept for reuse
        tracemalloc.start()
        try:
            self.table.update(self.batches.ids[0], self.batches.grads[0])
            return tracemalloc.get_traced_memory()[1] / self.batches.lookups
        finally:
            tracemalloc.stop()
            held.clear()

    track_update_workspace_bytes_per_id.unit = "bytes"


class Peak:
    """Peak memory of a process; without an update: Python, Numba, the compiler and the data."""

    params = [["nothing", "lookup", "update"]]
    param_names = ["work"]

    def setup(self, work: str) -> None:
        self.table = table("SparseAdam")
        self.batches = Batches(cases.SHAPES[SHAPE]._replace(batches=1), "uniform")

    def peakmem_process(self, work: str) -> None:
        if work != "nothing":
            self.table.lookup(self.batches.ids[0])
        if work == "update":
            self.table.update(self.batches.ids[0], self.batches.grads[0])
