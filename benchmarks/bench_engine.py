"""The engine over time, with asv.  In the folder `benchmarks`, with sparsembed and asv installed::

    asv check -E existing                  # imports every benchmark, runs none
    asv machine --yes                      # once
    asv run -E existing --quick --dry-run  # every benchmark once, in the installed environment
    asv run -E existing --set-commit-hash $(git rev-parse HEAD)    # measure and save
    asv publish && asv preview             # the history as a web page

``asv continuous HEAD~1 HEAD`` builds an environment for each commit and takes minutes.
NUMBA_NUM_THREADS sets the threads; give each number of threads a ``--machine`` name of its own.
"""

import functools
import statistics
import time
import tracemalloc

import sparsembed as se

from .timing import Effort, copy_bandwidth
from .workload import FULL, TINY, Batches, Size

SIZES: dict[str, Size] = {
    "small": TINY,
    "medium": FULL._replace(num_rows=10_000, lookups=1_000),
    "large": FULL,
}
STREAMS = ["uniform", "production"]
RULES = ["SGD", "Adagrad", "RowwiseAdagrad", "SparseAdam", "Adam"]


@functools.lru_cache(maxsize=1)  # asv calls setup before each sample
def _batches(size: str, ids: str, pooled: bool = False) -> Batches:
    grads = SIZES[size].lookups // SIZES[size].bag if pooled else None
    return Batches(SIZES[size], ids, grads=grads)


@functools.lru_cache(maxsize=1)
def _table(size: str, ids: str, rule: str) -> se.EmbeddingTable:
    if not hasattr(se, rule):
        raise NotImplementedError(f"no {rule} in this version")
    batches = _batches(size, ids)
    table = batches.table(getattr(se, rule)(lr=1e-6))
    for each, grads in zip(batches.ids, batches.grads, strict=True):
        table.update(each, grads)  # compiles, and touches the state
    return table


class _Reading:
    params = (list(SIZES), STREAMS)
    param_names = ("size", "ids")

    def setup(self, size: str, ids: str) -> None:
        self.batches, self.calls = _batches(size, ids, pooled=True), 0
        se.gather(self.batches.weight, self.batches.ids[0])
        se.pool(self.batches.weight, self._bags(0))

    def _next(self) -> int:
        self.calls += 1
        return self.calls % self.batches.number

    def _bags(self, i: int) -> se.Bags:
        return se.Bags(self.batches.ids[i], self.batches.offsets)


class Gather(_Reading):
    def time_gather(self, size: str, ids: str) -> None:
        se.gather(self.batches.weight, self.batches.ids[self._next()])


class Pool(_Reading):
    def time_pool(self, size: str, ids: str) -> None:
        se.pool(self.batches.weight, self._bags(self._next()))


class Update:
    params = (list(SIZES), STREAMS, RULES)
    param_names = ("size", "ids", "rule")

    def setup(self, size: str, ids: str, rule: str) -> None:
        self.batches, self.table, self.calls = _batches(size, ids), _table(size, ids, rule), 0

    def time_update(self, size: str, ids: str, rule: str) -> None:
        self.calls += 1
        i = self.calls % self.batches.number
        self.table.update(self.batches.ids[i], self.batches.grads[i])


class Limits:
    params = (list(SIZES), RULES)
    param_names = ("size", "rule")

    def setup(self, size: str, rule: str) -> None:
        self.batches, self.table = _batches(size, "uniform"), _table(size, "uniform", rule)

    def track_state_bytes_per_row(self, size: str, rule: str) -> float:
        return sum(each.nbytes for each in self.table.state.values()) / self.table.num_rows

    track_state_bytes_per_row.unit = "bytes"

    def track_update_workspace_bytes_per_id(self, size: str, rule: str) -> float:
        ids, grads = self.batches.ids[0], self.batches.grads[0]
        held = [se.plan(ids, self.table.num_rows) for _ in range(4)]  # use up what earlier updates left for reuse
        tracemalloc.start()
        try:
            self.table.update(ids, grads)
            return tracemalloc.get_traced_memory()[1] / self.batches.lookups
        finally:
            tracemalloc.stop()
            held.clear()

    track_update_workspace_bytes_per_id.unit = "bytes"

    def track_share_of_copy_bandwidth(self, size: str, rule: str) -> float:
        """Bytes that an update must move, over its time, as a share of what a copy reaches."""
        times = []
        for i in range(16):
            ids, grads = self.batches.ids[i % self.batches.number], self.batches.grads[i % self.batches.number]
            start = time.perf_counter()
            self.table.update(ids, grads)
            times.append(time.perf_counter() - start)
        moved = self.batches.updated(self.batches.lookups, self.table.optimizer)
        copied = max(copy_bandwidth(SIZES[size].copy_bytes, Effort(5, 0.0, 0.0)).values())
        return 100 * moved / statistics.median(times) / copied

    track_share_of_copy_bandwidth.unit = "%"
