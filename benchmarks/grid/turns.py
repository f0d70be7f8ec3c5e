"""Blocks of calls in turn: 25 of ours, 25 of each peer, of which the first 5 do not count."""

import statistics
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from .. import timing
from .data import Batch
from .way import Way

CALLS, DROPPED = 25, 5
_BLOCK = 0.03  # seconds that a block takes about, where 25 calls would take longer
_ROUNDS = 15  # at most
_LONG = 0.3  # seconds of a call, from which the one before is enough to tell how many are timed
_LEAST = ((0.2, 5), (1.0, 3), (3.0, 2))  # seconds of a round, and how many there are at least; above, one must do
_HOPELESS = 3.0  # times the fastest peer that counts: peers which take longer are not timed again


class Turns(NamedTuple):
    """Microseconds of each way, one median a block; and of the ways that are too slow to be timed, of one call."""

    times: dict[str, list[float]]
    slow: dict[str, float]
    calls: dict[str, int]  # in a block

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def ratios(self, name: str, ours: str = "sparsembed") -> list[float]:
        """Time of a peer over ours, block by block."""
        return [peer / own for own, peer in zip(self.times[ours], self.times[name], strict=True)]


def take_turns(
    ways: list[Way],
    batches: list[Batch],
    seconds: float,
    counted: Callable[[Way], bool] = lambda way: True,
    seen: Mapping[str, float] = MappingProxyType({}),
) -> Turns:
    """Time ways, the first of which is ours, in turn for about `seconds`.

    All have run before; `seen` are seconds of such a call, by the names of ways.  `counted` says which peers are
    compared by ratio.  Callers keep the garbage collector away: `timing.no_garbage_collection`.
    """
    position = 0

    def block(way: Way, calls: int, dropped: int) -> float:
        """Return the median seconds of a call; batches go on where the block before ended, so all are as cold."""
        nonlocal position
        step, clock, times = way.step, time.perf_counter, []
        for i in range(position, position + calls):
            batch = batches[i % len(batches)]
            start = clock()
            step(batch)
            times.append(clock() - start)
        position += calls
        if way.spins:
            time.sleep(timing._PAUSE)
        return statistics.median(times[dropped:])

    first = {way.name: seen[way.name] if seen.get(way.name, 0) > _LONG else block(way, 1, 0) for way in ways}
    first |= {way.name: block(way, 5, 1) for way in ways if first[way.name] < 0.02}
    best = min((first[way.name] for way in ways[1:] if counted(way)), default=float("inf"))
    slow = {way.name: 1e6 * first[way.name] for way in ways[1:] if first[way.name] > _HOPELESS * best}
    timed = [way for way in ways if way.name not in slow]
    calls = {way.name: max(1, min(CALLS, int(_BLOCK / first[way.name]))) for way in timed}
    dropped = {name: 0 if number == 1 else max(1, number * DROPPED // CALLS) for name, number in calls.items()}
    a_round = sum(first[way.name] * calls[way.name] + timing._PAUSE * way.spins for way in timed)
    least = next((rounds for longest, rounds in _LEAST if a_round <= longest), 1)
    times: dict[str, list[float]] = {way.name: [] for way in timed}
    for _ in range(min(_ROUNDS, max(least, int(seconds / a_round)))):
        for way in timed:
            times[way.name].append(1e6 * block(way, calls[way.name], dropped[way.name]))
    return Turns(times, slow, calls)
