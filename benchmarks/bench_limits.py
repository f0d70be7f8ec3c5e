"""Ratios, which survive a change of machine: to the speed of memory, and to peers."""

import statistics
import time

from . import cases, peers, timing
from .contests import Contest

EFFORT = timing.Effort(9, 0.5, 0.5)


class Bandwidth:
    """The bytes that must move, each row counted once, over the time: in GB/s, and relative to a copy."""

    params = [["gather", "pool", "scatter_add", "coalesce", "update", "step"], cases.STREAMS]
    param_names = ["work", "ids"]

    def setup(self, work: str, ids: str) -> None:
        self.contest = cases.prepare(work, next(iter(cases.SHAPES)), ids)

    def track_gigabytes_per_second(self, work: str, ids: str) -> float:
        return bytes_per_second(self.contest) / 1e9

    track_gigabytes_per_second.unit = "GB/s"

    def track_share_of_copy_bandwidth(self, work: str, ids: str) -> float:
        copied = max(timing.copy_bandwidth(cases.BASE.copy_bytes, timing.Effort(5, 0.0, 0.0)).values())
        return 100 * bytes_per_second(self.contest) / copied

    track_share_of_copy_bandwidth.unit = "%"


def bytes_per_second(contest: Contest) -> float:
    times = []
    for i in range(4 * contest.batches):
        start = time.perf_counter()
        contest.ours.step(i % contest.batches)
        times.append(time.perf_counter() - start)
    return contest.moved / statistics.median(times)


LINES = {f"{work.name}: {work.build.__name__}": work for work in peers.WORKS if work.kind == "faster"}


class Peers:
    """Time of the fastest way of a peer over ours, in turns; results are compared first."""

    params = [list(LINES), ["uniform", "production"]]
    param_names = ["line", "ids"]

    def setup(self, line: str, ids: str) -> None:
        timing.set_threads(cases.THREADS)
        work = LINES[line]
        if ids not in work.streams:
            raise NotImplementedError("not measured")
        if absent := [module for module in work.needs if not timing.installed(module)]:
            raise NotImplementedError(f"{absent} not installed")

    def track_times_faster(self, line: str, ids: str) -> float:
        size = cases.BASE._replace(effort=EFFORT)
        return peers.compete(LINES[line], size, ids, bandwidth=1.0)["ratio"][1]

    track_times_faster.unit = "times"


def track_threads() -> int:
    """Return the number of threads of all measurements."""
    timing.set_threads(cases.THREADS)
    return int(timing.machine()["threads"])


track_threads.unit = "threads"
