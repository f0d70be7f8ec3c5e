"""What asv times: shapes of tables, streams of ids, and our step of each kind of work.

Data are made, and kernels compiled, in `prepare`, which benchmarks call from ``setup``: never in the timing.
asv calls ``setup`` before every sample, so the last case is kept.
"""

import functools
import os

import sparsembed as se

from . import timing
from .contests import Contest, ours
from .rules import NAMES
from .timing import set_threads
from .workload import FULL, Batches, Size

BASE = FULL._replace(batches=4)
SHAPES: dict[str, Size] = {
    f"{rows:,} x {dim}": BASE._replace(num_rows=rows, dim=dim)
    for rows, dim in [
        (1_000_000, 64), (10_000, 64), (100_000, 64), (10_000_000, 64),
        (1_000_000, 16), (1_000_000, 33), (1_000_000, 128), (1_000_000, 256),
    ]
}  # fmt: skip
STREAMS = ["uniform", "zipf", "hot", "production"]
THREADS = int(os.environ.get("SPARSEMBED_BENCH_THREADS", timing.THREADS))
RULES = ["SGD", "MomentumSGD", *(name for name in NAMES if name != "SGD")]


def rule(name: str) -> se.rules.Rule:
    """A rule with a small learning rate: asv repeats its updates thousands of times."""
    if name == "MomentumSGD":
        return se.SGD(lr=1e-6, momentum=0.9)
    if not hasattr(se, name):
        raise NotImplementedError(f"no {name} in this version")
    return getattr(se, name)(lr=1e-6)


def size(shape: str, stream: str) -> Size:
    """The size of a shape; asv leaves out what raises NotImplementedError."""
    found = SHAPES[shape]
    if stream == "production" and found.num_rows < found.lookups:
        raise NotImplementedError(f"{found.lookups:,} such ids need more than {found.num_rows:,} rows")
    return found


@functools.lru_cache(maxsize=1)
def prepare(work: str, shape: str, stream: str, rule_name: str = "") -> Contest:
    """Return a kind of work of `contests.ours`, run on each batch: compiled, and with all memory touched."""
    set_threads(THREADS)
    found = size(shape, stream)
    bags = found.lookups // found.bag
    grads = {"gather": 0, "pool": 0, "dot": bags, "pooled_step": bags}.get(work)
    batches = Batches(found, stream, grads=grads)
    contest = getattr(ours, work)(batches, *([rule(rule_name)] if rule_name else []))
    for i in range(contest.batches):
        contest.ours.step(i)
    return contest


class Timed:
    """A benchmark of one kind of work; a subclass names it and calls `next` in its ``time_`` method."""

    work = ""
    params = [list(SHAPES), STREAMS]
    param_names = ["shape", "ids"]

    def setup(self, shape: str, ids: str, rule_name: str = "") -> None:
        self.contest, self.calls = prepare(self.work, shape, ids, rule_name), 0

    def next(self) -> None:
        """Work on the next batch."""
        self.calls += 1
        self.contest.ours.step(self.calls % self.contest.batches)
